"""A device's file in another technology: node, memory generation, link generation.

With area and power budgets relative to the base (1: the same die, the same watts):

    area of a processor      a = logic / density ratio + (1 - logic) * SRAM cell ratio
    processors               p = floor(area budget * base processors / a)
    clock                    c = min(speed ratio, power left / (p / base processors * power ratio))
    power left               (power budget * W - memory' - links') / (W - memory - links)
    FLOP/s, cache bandwidth  base * p / base processors * c
    cache capacity           base * p / base processors
    main memory              stacks * width * rate per pin; stacks * capacity

The first bound of the clock is what the node allows, the second what the power budget feeds beside memory
and links at their full rates (W: the base's limit; where it is not known, the budget itself); voltage
is not lowered, so the second is on the safe side. A memory that takes more power lowers the clock also
without a new node. Latencies of a tile shrink with the clock, those of
launches and links do not. What a design does better than its predecessor (wider matrix units) is not
technology, and not in here.

Source: the method of Kundu et al., arXiv 2407.14645, section 4 (area and power budgets per node).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from costing.technology import link, link_energy, memory, memory_energy, node
from graph_ir.errors import HardwareError

LOGIC_SHARE = 0.7
"""Share of a processor's area that scales as logic; registers, scratchpads and caches are SRAM.
Estimate, from die photographs of GPUs."""

_QUANTITY = re.compile(r"^\s*([0-9][0-9_.]*(?:[eE][-+]?\d+)?)\s*(.*)$")
_CLOCKED = ("tile_overhead", "split_latency", "block_latency")


@dataclass(frozen=True)
class Target:
    """What a device is scaled to; None keeps what it has."""

    base_node: str | None = None
    node: str | None = None
    memory: str | None = None
    stacks: int | None = None
    pin_bits_per_s: float | None = None
    links: Sequence[str] = ()
    area: float = 1.0
    """Die area over the base's."""
    power: float = 1.0
    """Power over the base's."""
    logic_share: float = LOGIC_SHARE
    watts: float | None = None
    """Power limit of the base; None where it is not known: then the new file tells no energy."""
    idle_watts: float | None = None
    base_memory: str | None = None
    """Memory generation of the base."""


@dataclass(frozen=True)
class NodeFactors:
    """What a change of node does under a budget."""

    processors: int
    count: float
    """Processors over the base's."""
    clock: float
    """Clock over the base's."""
    limit: str
    """What bounds the clock: the node's speed, or the power."""


def node_factors(target: Target, processors: int, power: float | None = None) -> NodeFactors:
    """Processors and clock after a change of node.

    Args:
        target: the technology.
        processors: of the base.
        power: what is left for the processors, over the base's; None: the whole budget.

    Raises:
        HardwareError: if a node is unknown, or the budget holds no processor.
    """
    if target.base_node is None or target.node is None:
        raise HardwareError("a change of node needs the node of the base: give it with --base-node")
    old, new = node(target.base_node), node(target.node)
    logic = target.logic_share * old.density / new.density
    each = logic + (1 - target.logic_share) * new.sram_um2 / old.sram_um2
    count = int(target.area * processors / each)
    if count < 1:
        raise HardwareError(f"an area of {target.area} times the base's holds no processor")
    ratio = count / processors
    speed = new.speed / old.speed
    fed = (target.power if power is None else power) / (ratio * new.power / old.power)
    return NodeFactors(count, ratio, min(speed, fed), "speed" if speed <= fed else "power")


def scaled_device(data: dict[str, Any], name: str, target: Target) -> dict[str, Any]:
    """The content of a device's file in another technology.

    Args:
        data: of the base, as YAML has it, already checked.
        name: of the new device.
        target: the technology.

    Raises:
        HardwareError: if a generation is unknown or cannot replace what the base has.
    """
    made = copy.deepcopy(data)
    base = str(data["name"])
    made["name"] = name
    changes = []
    if target.memory is not None:
        changes.append(_scale_memory(made, base, target))
    for generation in target.links:
        changes.append(_scale_link(made, base, generation))
    power = _power_left(data, made, target)
    if target.node is not None:
        changes.insert(0, _scale_node(made, base, target, power))
    elif power < 1 and target.base_node is not None:
        _scale_node(made, base, replace(target, node=target.base_node), power)
    if target.watts is not None and target.idle_watts is not None:
        made["energy"] = _energy(made, base, target)
    made["title"] = f"{data['title']}, scaled: {'; '.join(changes)}"
    return made


def _power_left(old: dict[str, Any], new: dict[str, Any], target: Target) -> float:
    """What memory and links leave of the power for the processors, over what they leave in the base."""
    if target.watts is None or target.base_memory is None:
        return target.power
    before = target.watts - _moving_watts(old, target.base_memory)
    after = target.power * target.watts - _moving_watts(new, target.memory or target.base_memory)
    if after <= 0:
        raise HardwareError(
            f"memory and links alone take {target.power * target.watts - after:.0f} W of "
            f"{target.power * target.watts:.0f}: give fewer --stacks, a lower --pin-rate or more --power"
        )
    return after / before


def _moving_watts(device: dict[str, Any], generation: str) -> float:
    """Of main memory and links at their full rates."""
    watts = _bytes_per_s(device["memory"][-1]["bandwidth"]) * memory(generation).joules_per_byte
    for one in device.get("links", []):
        per_s = _bytes_per_s(one["bandwidth"])
        watts += per_s * (link_energy(one["kind"], per_s) or 0.0)
    return watts


def _scale_node(made: dict[str, Any], base: str, target: Target, power: float) -> str:
    old, new = target.base_node, target.node
    first = made["engines"][0]
    found = node_factors(target, int(_number(first["processors"])), power)
    budget = f"area x {target.area:g}, power x {target.power:g}"
    how = (
        f"scaled from {base}, node {old} to {new} at {budget}: processors x {found.count:.4g}, clock "
        f"x {found.clock:.4g} (bound by {found.limit}); node {old}: {node(str(old)).source}; node "
        f"{new}: {node(str(new)).source}"
    )
    for engine in made["engines"]:
        processors = int(_number(engine["processors"]) * found.count)
        _put(engine, "processors", max(processors, 1) / _number(engine["processors"]), how)
        for label in engine["peak"]:
            _put(engine["peak"], label, found.count * found.clock, how)
        for key in _CLOCKED:
            _put(engine, key, 1 / found.clock, how)
            _put(engine.get("attention", {}), key, 1 / found.clock, how)
    for level in made["memory"][:-1]:
        _put(level, "capacity", found.count, how)
        _put(level, "bandwidth", found.count * found.clock, how)
        _put(level, "per_processor_bandwidth", found.clock, how)
    return f"{old} to {new} ({budget})"


def _scale_memory(made: dict[str, Any], base: str, target: Target) -> str:
    generation = memory(str(target.memory))
    if target.stacks is None:
        raise HardwareError(
            f"how many stacks (or packages, or channels) of {generation.name} does the device have? "
            "give --stacks"
        )
    main = made["memory"][-1]
    rate = target.pin_bits_per_s or generation.pin_bits_per_s
    how = (
        f"scaled from {base}: {target.stacks} x {generation.width_bits} bits of {generation.name} at "
        f"{rate / 1e9:g} Gbit/s; {generation.source}"
    )
    bandwidth = generation.bandwidth_bytes_per_s(target.stacks, target.pin_bits_per_s)
    main["bandwidth"] = {"value": f"{bandwidth / 1e9:.6g} GB/s", "source": how}
    capacity = target.stacks * generation.capacity_bytes
    main["capacity"] = {"value": f"{capacity / 1e9:g} GB", "source": how}
    return f"{target.stacks} x {generation.name} at {rate / 1e9:g} Gbit/s"


def _scale_link(made: dict[str, Any], base: str, name: str) -> str:
    generation = link(name)
    links = made.get("links", [])
    same = [entry for entry in links if entry["kind"] == generation.kind]
    if not same:
        kinds = ", ".join(entry["kind"] for entry in links) or "none"
        raise HardwareError(f"{base} has no link of kind {generation.kind!r} (it has {kinds})")
    for entry in same:
        ratio = generation.bandwidth_bytes_per_s / _bytes_per_s(entry["bandwidth"])
        how = f"scaled from {base} to {name}: {generation.source}"
        bandwidth = f"{generation.bandwidth_bytes_per_s / 1e9:g} GB/s"
        entry["bandwidth"] = {"value": bandwidth, "source": how}
        _put(entry, "local_bandwidth", ratio, how)
    return name


def _energy(made: dict[str, Any], base: str, target: Target) -> dict[str, Any]:
    """The power of the scaled device: the base's times the budget, and its memory and links by generation."""
    how = f"{base}, power x {target.power:g}"
    generation = memory(str(target.memory or target.base_memory))
    logic = target.node or target.base_node
    joules_per_byte = memory_energy(generation.name, logic) if logic else generation.joules_per_byte
    entry: dict[str, Any] = {
        "power": {"value": f"{float(target.watts or 0) * target.power:g} W", "source": how},
        "idle": {"value": f"{float(target.idle_watts or 0) * target.power:g} W", "source": how},
        "memory": _per_bit(joules_per_byte, f"{generation.source}; and across the chip"),
    }
    links = {}
    for one in made.get("links", []):
        joules = link_energy(one["kind"], _bytes_per_s(one["bandwidth"]))
        if joules is not None:
            links[one["name"]] = _per_bit(joules, "the generation of its kind nearest in bandwidth")
    return {**entry, "links": links} if links else entry


def _per_bit(joules_per_byte: float, source: str) -> dict[str, Any]:
    return {"value": f"{joules_per_byte / 8e-12:.4g} pJ/bit", "source": source}


def _bytes_per_s(entry: dict[str, Any]) -> float:
    from costing.units import parse_quantity

    return parse_quantity(entry["value"], "bytes/s", "bandwidth")


def _number(entry: dict[str, Any]) -> float:
    found = _QUANTITY.match(str(entry["value"]))
    return float(found[1].replace("_", "")) if found else 0.0


def _put(section: dict[str, Any], key: str, factor: float, how: str) -> None:
    """Multiplies a figure of the file, where it is there, and says so in its source."""
    entry = section.get(key)
    if entry is None:
        return
    found = _QUANTITY.match(str(entry["value"]))
    if found is None:
        raise HardwareError(f"{key}: {entry['value']!r} is not a number with a unit")
    value = float(found[1].replace("_", "")) * factor
    number = f"{round(value)}" if key == "processors" else f"{value:.6g}"
    section[key] = {"value": f"{number} {found[2]}", "source": f"{entry['value']}; {how}"}
