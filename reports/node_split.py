"""Why an operator is split as it is: its axes, the collectives beside it, and what else was possible."""

from __future__ import annotations

from dataclasses import dataclass

from reports.layout import Cells
from reports.pages import Page
from reports.quantities import bytes_text, percent_text, plain_text, ratio, time_text
from reports.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRow(Record):
    """One name of the operator's equation."""

    name: str
    size: int
    axes: tuple[int, ...]
    """Sizes of the logical axes that it holds, major first."""
    split: str
    """The mesh axes that split it, as tp=8; empty if it is whole."""
    local_size: int
    """On one rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRow(Record):
    """A collective at the operator, or at what training derives from it."""

    beside: str
    """Name of the node."""
    where: str
    """before or after it."""
    op: str
    axis: str
    group_size: int
    bytes: int
    """Of this operator's tensors in the message."""
    count: int
    time_s: float
    """Of one message, of all tensors in it."""
    shared_with: int
    """Other tensors in the same message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlternativeRow(Record):
    """The operator split in another way, everything else kept."""

    mesh_axis: str
    split: str
    """Name and size of the logical axis; whole."""
    chosen: bool
    step_time_s: float | None
    """None where the rest of the strategy cannot be applied."""
    communicated_bytes: int | None
    """Sent by a rank in a step."""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSplit(Record):
    """Why an operator is split as it is."""

    opbound_version: str
    model: str
    hardware: str
    strategy: str
    node: str
    op: str
    phase: str
    count: int
    equation: str
    shapes: tuple[tuple[int, ...], ...]
    """Of operands and results, before the split."""
    local_shapes: tuple[tuple[int, ...], ...]
    reasons: tuple[str, ...]
    """One sentence per mesh axis."""
    step_time_s: float
    names: tuple[NameRow, ...]
    collectives: tuple[CollectiveRow, ...]
    alternatives: tuple[AlternativeRow, ...]


def node_page(found: NodeSplit) -> Page:
    """The explanation for people."""
    summary = [
        ("model", plain_text(found.model)),
        ("hardware", plain_text(found.hardware)),
        ("strategy", plain_text(found.strategy)),
        ("operator", f"{plain_text(found.node)}: {plain_text(found.op)}, {found.phase}"),
        ("equation", plain_text(found.equation, 400)),
        ("whole", _shapes(found.shapes)),
        ("on one rank", _shapes(found.local_shapes)),
        *[("why", plain_text(reason, 400)) for reason in found.reasons],
        ("step", time_text(found.step_time_s)),
    ]
    tables = [("Axes", _names(found))]
    if found.collectives:
        tables.append(("Collectives beside it", _collectives(found)))
    if found.alternatives:
        tables.append(("What else was possible, the whole step priced again", _others(found)))
    title = f"opbound: why {plain_text(found.node)} is split so"
    return Page(title, summary, tables, (), found, found.alternatives)


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return "  ".join("x".join(map(str, s)) or "scalar" for s in shapes)


def _names(found: NodeSplit) -> Cells:
    rows = [
        [n.name, str(n.size), " x ".join(map(str, n.axes)), n.split or "whole", str(n.local_size)]
        for n in found.names
    ]
    headers = ["name", "size", "logical axes", "split over", "on one rank"]
    return Cells(headers, [False, True, False, False, True], rows)


def _collectives(found: NodeSplit) -> Cells:
    rows = [
        [
            f"{c.where} {plain_text(c.beside)}",
            c.op,
            f"{c.axis} of {c.group_size}",
            str(c.count),
            bytes_text(c.bytes),
            time_text(c.time_s),
            f"with {c.shared_with} others" if c.shared_with else "",
        ]
        for c in found.collectives
    ]
    headers = ["where", "collective", "group", "count", "bytes", "time", "message"]
    return Cells(headers, [False, False, False, True, True, True, False], rows)


def _others(found: NodeSplit) -> Cells:
    base = {a.mesh_axis: a.step_time_s for a in found.alternatives if a.chosen}
    rows = []
    for a in found.alternatives:
        now = base.get(a.mesh_axis)
        if a.step_time_s is None or a.communicated_bytes is None or now is None:
            rows.append([a.mesh_axis, a.split, "-", plain_text(a.problem), "-"])
            continue
        change = ratio(a.step_time_s, now) - 1
        sign = "as now" if a.chosen else f"{'+' if change >= 0 else '-'}{percent_text(abs(change))}"
        sent = bytes_text(a.communicated_bytes)
        rows.append([a.mesh_axis, a.split, time_text(a.step_time_s), sign, sent])
    headers = ["mesh axis", "split along", "step", "change", "sent by a rank"]
    return Cells(headers, [False, False, True, True, True], rows)
