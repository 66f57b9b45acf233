"""`opbound analyze --place`: whole operators on several devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError, did_you_mean
from opbound._version import __version__
from opbound.analysis import Analysis, Progress
from opbound.options import Options
from opbound.pricing import executed_graph, kernels_of, step_graph

if TYPE_CHECKING:
    from graph_ir.graph import Graph
    from partitioner.placing import Placement
    from reports.placement import PlacementReport

KEYS = ("devices", "method", "seconds")


@dataclass(frozen=True)
class Request:
    """What `--place` asks for."""

    devices: int
    method: str = "exact"
    seconds: float = 60.0
    """Time that the exact search may take."""


def parse_place(text: str) -> Request:
    """Reads 'devices=2', with 'method=greedy' and 'seconds=10' if wanted.

    Raises:
        OpboundError: if the text has another form.
    """
    found: dict[str, str] = {}
    for piece in filter(None, (p.strip() for p in text.split(","))):
        key, _, value = (p.strip() for p in piece.partition("="))
        if key not in KEYS:
            raise OpboundError(f"--place: there is no {key!r}; {did_you_mean(key, KEYS)}")
        if key in found:
            raise OpboundError(f"--place: {key} is given twice")
        found[key] = value
    devices, seconds = found.get("devices", ""), found.get("seconds", "60")
    if not devices.isdecimal() or int(devices) < 1:
        raise OpboundError(
            f"--place {text!r} names no number of devices: write it as --place devices=2"
        )
    if not seconds.isdecimal() or int(seconds) < 1:
        raise OpboundError(f"--place: seconds={seconds} is not a positive whole number")
    return Request(int(devices), found.get("method", "exact"), float(seconds))


def placed(
    model: object, options: Options, request: Request, progress: Progress = lambda _: None
) -> PlacementReport:
    """Places the operators of one step.

    Raises:
        OpboundError: if the model, the hardware or an option cannot be used.
    """
    from opbound.provenance import model_info
    from reports.placement import PlacedRow, PlacementReport, TransferRow

    if options.mode == "generation":
        raise OpboundError("--place works on one step: use mode inference or training")
    if options.devices > 1:
        raise OpboundError(
            "--place puts whole operators on devices, --parallel splits them: leave one of them out"
        )
    analysis = Analysis(model, options, progress=progress)
    imported = analysis.imported(options.mode, options.sequence)
    found = placement_of(analysis, imported.graph, request)
    info = model_info(imported, options)
    return PlacementReport(
        opbound_version=__version__,
        model=info.name,
        sha256=info.sha256,
        hardware=analysis.hardware.name,
        mode=options.mode,
        devices=found.devices,
        method=found.method,
        speedup=found.speedup,
        makespan_s=found.makespan_s,
        one_device_s=found.work_s,
        critical_path_s=found.critical_path_s,
        bound_s=found.bound_s,
        gap=found.gap,
        greedy_s=found.greedy_s,
        pieces=found.pieces,
        segments=found.segments,
        operators=tuple(
            PlacedRow(
                name=o.node.name, op=o.node.op, device=o.device, start_s=o.start_s, time_s=o.time_s
            )
            for o in sorted(found.operators, key=lambda o: o.start_s)
        ),
        transfers=tuple(
            TransferRow(
                value=t.value.name,
                source=t.source,
                target=t.target,
                bytes=t.value.type.bytes,
                time_s=t.time_s,
            )
            for t in found.transfers
        ),
        notes=(*info.notes, *found.notes),
    )


def placement_of(analysis: Analysis, forward: Graph, request: Request) -> Placement:
    """Prices a forward graph (in training with its backward pass) and places it."""
    from costing.collectives import collective_cost
    from costing.kernels import price_graph
    from partitioner.placing import place

    options, hardware = analysis.options, analysis.hardware
    graph = step_graph(
        executed_graph(forward, options, analysis.progress), options, analysis.progress
    )
    kernels = kernels_of(options.execution)(graph)
    costs = price_graph(graph, hardware, kernels, analysis.pricer)
    analysis.progress("placing the operators")

    def transfer_s(size_bytes: int) -> float:
        return float(collective_cost(hardware, "send", size_bytes, 2).time_s[0])

    return place(
        graph,
        kernels,
        lambda node: costs[node].time_s,
        transfer_s,
        request.devices,
        request.method,
        request.seconds,
    )
