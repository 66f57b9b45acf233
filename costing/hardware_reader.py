"""What each key of a device's file says: `Hardware` from the file's sections."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from costing.energy import Energy
from costing.engine import AttentionKernel, Engine, Tile
from costing.hardware import Clock, Hardware, Launch, MemoryLevel
from costing.hardware_base import read_device
from costing.hardware_section import Section
from costing.link import DIRECT, GRID, SWITCH, UPLINK, Link, Protocol
from costing.runtime import Runtime
from graph_ir.errors import HardwareError, OpboundError, did_you_mean
from graph_ir.tensor_type import DType

RUNTIMES = Path(__file__).with_name("runtimes.yaml")
ALLOCATORS = ("caching", "plain")
ALGORITHMS = ("ring", "tree", "in_network", "nvls", "pairwise")
TOPOLOGIES = (SWITCH, UPLINK, DIRECT, GRID)
KINDS = ("matrix", "vector")


def read_hardware(top: Section) -> Hardware:
    """The device that a file's keys describe.

    Raises:
        HardwareError: if a key or value is wrong.
    """
    top.get("sources", required=False)
    name, title = top.text("name"), top.text("title")
    engines = tuple(_engine(s) for s in top.sections("engines"))
    memory = tuple(_memory_level(s) for s in top.sections("memory"))
    links = tuple(_link(s) for s in top.sections("links", required=False))
    _check_links(links, top)
    launch = _launch(top.section("launch"))
    energy = _energy(top, name, links)
    clock = _clock(top)
    runtime = _runtime(top)
    top.done()
    for key, found in (("engines", engines), ("memory", memory)):
        if not found:
            raise HardwareError(f"{top.where(key)}: at least one entry is needed")
    known = dict(top.sources)
    return Hardware(
        name, title, engines, memory, links, launch, known, top.file, energy, clock, runtime
    )


def _clock(top: Section) -> Clock | None:
    if top.get("clock", required=False) is None:
        return None
    s = top.section("clock")
    clock = Clock(base_hz=s.quantity("base", "Hz"), boost_hz=s.quantity("boost", "Hz"))
    if clock.base_hz > clock.boost_hz:
        raise HardwareError(f"{s.where('base')}: the base clock is above the boost clock")
    s.done()
    return clock


def _runtime(top: Section) -> Runtime | None:
    """The section `runtime`, or the one of `runtimes.yaml` that the file names."""
    given = top.get("runtime", required=False)
    if given is None:
        return None
    table = read_device(RUNTIMES, RUNTIMES.parent) if isinstance(given, str) else {}
    if isinstance(given, str):
        if given not in table:
            raise HardwareError(
                f"{top.where('runtime')}: there is no {given!r} in {RUNTIMES.name}; "
                f"{did_you_mean(given, table)}"
            )
        top.data["runtime"] = table[given]
    s = top.section("runtime")
    if table:
        # Its sources are not the device's own.
        s.root, s.sources = s, {}
    channels: dict[str, int] = {}
    if s.get("channels", required=False) is not None:
        inner = s.section("channels")
        channels = {kind: int(inner.quantity(kind, "count")) for kind in inner.data}
    runtime = Runtime(
        name=given if isinstance(given, str) else top.file,
        context_bytes=s.quantity("context", "bytes"),
        product_workspace_bytes=s.quantity("product_workspace", "bytes", 0.0),
        connection_bytes=s.quantity("connection", "bytes", 0.0),
        pair_connection_bytes=s.quantity("pair_connection", "bytes", 0.0),
        channels=channels,
        pair_channels=int(s.quantity("pair_channels", "count", 0.0)),
        caches=s.get("allocator", required=False) is not None
        and s.words("allocator", ALLOCATORS) == ("caching",),
        sources=s.root.sources,
    )
    s.done()
    return runtime


def _energy(top: Section, name: str, links: tuple[Link, ...]) -> Energy | None:
    """What the file says of power, else what is known of a shipped device of that name."""
    if top.get("energy", required=False) is None:
        return _known_energy(name, links)
    s = top.section("energy")
    power, idle = s.quantity("power", "watts"), s.quantity("idle", "watts")
    if idle >= power:
        raise HardwareError(f"{s.where('idle')}: {idle:g} W is not below the limit of {power:g} W")
    memory = s.quantity("memory", "J/byte")
    each: dict[str, float] = {}
    if s.get("links", required=False) is not None:
        inner = s.section("links")
        each = {link.name: inner.quantity(link.name, "J/byte", 0.0) for link in links}
        inner.done()
    s.done()
    return Energy(power, idle, memory, each)


def _known_energy(name: str, links: tuple[Link, ...]) -> Energy | None:
    from costing.technology import build_of, link_energy, memory_energy

    build = build_of(name)
    if build is None:
        return None
    known = {link.name: link_energy(link.kind, link.bandwidth_bytes_per_s) for link in links}
    each = {name: joules for name, joules in known.items() if joules is not None}
    joules_per_byte = memory_energy(build.memory, build.node)
    return Energy(build.watts, build.idle_watts, joules_per_byte, each)


def _engine(s: Section) -> Engine:
    engine = Engine(
        name=s.text("name"),
        kinds=s.words("kinds", KINDS),
        processors=int(s.quantity("processors", "count")),
        peak_flops=_by_dtype(s.section("peak"), "FLOP/s"),
        efficiency=_by_dtype(s.section("efficiency"), "fraction"),
        tiles=_tiles(s),
        tile_overhead_s=s.quantity("tile_overhead", "seconds", 0.0),
        drain_exposed=s.quantity("drain_exposed", "fraction", 0.0),
        unhidden=s.quantity("unhidden", "fraction", 0.0),
        split_depth_bytes=s.quantity("split_depth", "bytes", 0.0),
        split_latency_s=s.quantity("split_latency", "seconds", 0.0),
        split_evenly=s.one_of("split", ("even", "parts")) == "even",
        operand_cost=s.quantity("operand_cost", "count", 0.0),
        clock_headroom=s.quantity("clock_headroom", "fraction", 0.0),
        winograd=s.one_of("convolution", ("implicit", "winograd")) == "winograd",
        attention=_attention(s),
    )
    s.done()
    if "default" not in engine.efficiency:
        raise HardwareError(f"{s.where('efficiency')}: the required key 'default' is missing")
    return engine


def _attention(s: Section) -> AttentionKernel:
    plain = AttentionKernel()
    if s.get("attention", required=False) is None:
        return plain
    a = s.section("attention")
    kernel = AttentionKernel(
        efficiency=a.quantity("efficiency", "fraction", plain.efficiency),
        backward_efficiency=a.quantity(
            "backward_efficiency", "fraction", plain.backward_efficiency
        ),
        softmax_flops=a.quantity("softmax_flops", "count", 0.0),
        rows=int(a.quantity("rows", "count", plain.rows)),
        blocks_per_processor=int(a.quantity("blocks_per_processor", "count", 1)),
        block_latency_s=a.quantity("block_latency", "seconds", 0.0),
        split_tokens=int(a.quantity("split_tokens", "count", plain.split_tokens)),
        split_latency_s=a.quantity("split_latency", "seconds", 0.0),
        latency_s=a.quantity("latency", "seconds", 0.0),
        unhidden=a.quantity("unhidden", "fraction", 0.0),
        splits_ungrouped=a.one_of("split", ("all", "grouped")) == "all",
        copies_groups=a.one_of("groups", ("in_place", "copied")) == "copied",
    )
    a.done()
    return kernel


def _by_dtype(s: Section, dimension: str) -> dict[str, float]:
    values = {}
    for key in s.data:
        label = key
        if key != "default":
            try:
                label = DType.parse(key).label
            except OpboundError as error:
                raise HardwareError(f"{s.where(key)}: {error}") from error
        values[label] = s.quantity(key, dimension)
    return values


def _tiles(s: Section) -> tuple[Tile, ...]:
    raw = s.sourced("tiles", required=False)
    tiles = []
    for item in raw if isinstance(raw, list) else [] if raw is None else [raw]:
        sides = str(item).split("x")
        if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
            raise HardwareError(f"{s.where('tiles')}: {item!r} is not a tile such as 128x64")
        tiles.append(Tile(int(sides[0]), int(sides[1])))
    return tuple(tiles) or (Tile(1, 1),)


def _memory_level(s: Section) -> MemoryLevel:
    per_processor = s.quantity("per_processor_bandwidth", "bytes/s", 0.0)
    level = MemoryLevel(
        name=s.text("name"),
        capacity_bytes=s.quantity("capacity", "bytes"),
        bandwidth_bytes_per_s=s.quantity("bandwidth", "bytes/s"),
        efficiency=s.quantity("efficiency", "fraction"),
        latency_s=s.quantity("latency", "seconds"),
        processor_bytes_per_s=per_processor or None,
        keeps_bytes=s.quantity("keeps", "bytes", 0.0),
    )
    s.done()
    return level


def _check_links(links: Sequence[Link], top: Section) -> None:
    """Whether each link can stand on the ones below it."""
    for s, link, below in zip(
        top.sections("links", required=False), links, (None, *links), strict=False
    ):
        inner = 1 if below is None else below.devices or 0
        if link.topology == UPLINK and below is None:
            raise HardwareError(
                f"{s.where('topology')}: an uplink joins the switches of the link below, and there is none"
            )
        if link.dims and link.devices != inner * prod(link.dims):
            raise HardwareError(
                f"{s.where('dims')}: a grid of {' x '.join(map(str, link.dims))} does not make "
                f"{link.devices} devices of domains of {inner}; correct dims or devices"
            )
        if link.shared_by > 1 and link.shared_by > inner:
            raise HardwareError(
                f"{s.where('shared_by')}: {link.shared_by} devices share a port, but the link below "
                f"joins {inner}; put a link in front that joins those that share it"
            )


def _link(s: Section) -> Link:
    devices = s.quantity("devices", "count", 0.0)
    link = Link(
        name=s.text("name"),
        kind=s.text("kind"),
        devices=int(devices) or None,
        bandwidth_bytes_per_s=s.quantity("bandwidth", "bytes/s"),
        algorithms=s.words("algorithms", ALGORITHMS),
        protocols=tuple(_protocol(p) for p in s.sections("protocols")),
        local_bytes_per_s=s.quantity("local_bandwidth", "bytes/s", 0.0) or None,
        processor_share=s.quantity("processor_share", "fraction", 0.0),
        topology=s.one_of("topology", TOPOLOGIES),
        shared_by=int(s.quantity("shared_by", "count", 1.0)),
        dims=_dims(s),
        wraps=int(s.quantity("wraps", "count", 0.0)) or None,
    )
    s.done()
    if not link.protocols:
        raise HardwareError(f"{s.where('protocols')}: at least one entry is needed")
    if link.topology in (DIRECT, GRID) and link.devices is None:
        raise HardwareError(f"{s.where()}: a {link.topology} link needs its number of devices")
    if (link.topology == GRID) is not bool(link.dims):
        raise HardwareError(f"{s.where('dims')}: a grid has dims, and nothing else has")
    return link


def _dims(s: Section) -> tuple[int, ...]:
    sides = s.sourced("dims", required=False)
    if sides is None:
        return ()
    if not isinstance(sides, list) or not all(isinstance(n, int) and n > 0 for n in sides):
        raise HardwareError(f"{s.where('dims')}: {sides!r} are not sides of a grid such as [4, 5]")
    return tuple(sides)


def _protocol(s: Section) -> Protocol:
    protocol = Protocol(
        name=s.text("name"),
        efficiency=s.quantity("efficiency", "fraction"),
        base_latency_s=s.quantity("base_latency", "seconds"),
        step_latency_s=s.quantity("step_latency", "seconds"),
        algorithms=s.words("algorithms", ALGORITHMS),
    )
    s.done()
    return protocol


def _launch(s: Section) -> Launch:
    launch = Launch(
        device_latency_s=s.quantity("device_latency", "seconds"),
        host_s=s.quantity("host", "seconds"),
        hidden=s.flag("hidden"),
        switch_s=s.quantity("switch", "seconds", 0.0),
        view_s=s.quantity("view", "seconds", 0.0),
    )
    s.done()
    return launch
