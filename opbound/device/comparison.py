"""Predicted beside measured, operator by operator and in sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from opbound.device.torch_run import Measured
from reports.rows import layer_pattern

if TYPE_CHECKING:
    from costing.hardware import Hardware
    from graph_ir.graph import Graph, Node


@dataclass(frozen=True)
class ComparedRow:
    """One operator, or the same operator of repeated layers together."""

    name: str
    op: str
    phase: str
    count: int
    shapes: tuple[tuple[int, ...], ...]
    """Of the inputs, then of the outputs, of its largest predicted node."""
    bound: str
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float | None:
        """Predicted / measured - 1; None where nothing was measured."""
        return self.predicted_s / self.measured_s - 1 if self.measured_s > 0 else None


@dataclass(frozen=True)
class Comparison:
    """A run beside its prediction."""

    rows: tuple[ComparedRow, ...]
    """The slowest measured first."""
    whole_s: float
    """Measured at once, without a profiler."""
    unmatched_s: float
    """Measured in the profile and in no row: operators that the prediction folds away (constants),
    and sums of gradients."""
    phases: tuple[str, ...] = ("forward",)

    def sums(self, phase: str | None = None) -> tuple[float, float]:
        """Predicted and measured seconds of the rows of a phase, or of all."""
        rows = [row for row in self.rows if phase in (None, row.phase)]
        return sum(row.predicted_s for row in rows), sum(row.measured_s for row in rows)

    def error_by_time(self, phase: str | None = None) -> float:
        """Mean absolute error of the operators, weighted by their measured time."""
        rows = [row for row in self.rows if phase in (None, row.phase)]
        off = sum(abs(row.predicted_s - row.measured_s) for row in rows)
        total = sum(row.measured_s for row in rows)
        return off / total if total else 0.0

    def mean_error(self, phase: str | None = None) -> float:
        """Mean absolute error of the operators, each counted alike."""
        errors = [
            (abs(row.error), row.count)
            for row in self.rows
            if phase in (None, row.phase) and row.error is not None and row.predicted_s > 0
        ]
        count = sum(times for _, times in errors)
        return sum(error * times for error, times in errors) / count if count else 0.0


def compare(
    graph: Graph,
    made: Mapping[str, Sequence[str]],
    hardware: Hardware,
    measured: Measured,
    *,
    backward: bool,
) -> Comparison:
    """Prices a graph and puts it beside a run of the same operators.

    Args:
        graph: imported, not folded, so that each node has its own name.
        made: the names of the nodes that each measured operator became.
        hardware: the device's file.
        measured: the run.
        backward: whether it had a backward pass.

    Raises:
        OpboundError: if the device cannot run a node, or there is nothing to differentiate.
    """
    from costing.kernels import price_graph

    operator_of = {name: key for key, names in made.items() for name in names}
    rows = _rows(graph.nodes, price_graph(graph, hardware), operator_of, measured.forward_s)
    if backward:
        from graph_ir.training import training_graph

        # Which optimizer is no matter: its nodes are left out.
        trained = training_graph(graph, optimizer="sgd")
        costs = price_graph(trained, hardware)
        nodes = [n for n in trained.nodes if n.phase == "backward"]
        origin = {n.name: operator_of.get(n.origin, "") for n in nodes}
        rows += _rows(nodes, costs, origin, measured.backward_s, "backward")
    matched = sum(row.measured_s for row in rows)
    total = sum(measured.forward_s.values()) + sum(measured.backward_s.values())
    return Comparison(
        tuple(sorted(_merged(rows), key=lambda row: -max(row.measured_s, row.predicted_s))),
        measured.whole_s,
        max(total - matched, 0.0) + measured.unmatched_s,
        ("forward", "backward") if backward else ("forward",),
    )


def _rows(
    nodes: Iterable[Node],
    costs: Mapping[Node, Any],
    operator_of: Mapping[str, str],
    measured_s: Mapping[str, float],
    phase: str = "forward",
) -> list[ComparedRow]:
    """One row per operator of the model that became nodes."""
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        key = operator_of.get(node.name)
        if key:
            groups.setdefault(key, []).append(node)
    rows = []
    for key, group in groups.items():
        if key not in measured_s:
            continue
        main = max(group, key=lambda node: float(costs[node].time_s))
        rows.append(
            ComparedRow(
                name=main.name,
                op=main.op,
                phase=phase,
                count=1,
                shapes=tuple(v.type.shape for v in (*main.inputs, *main.outputs)),
                bound=costs[main].bound,
                predicted_s=sum(costs[node].time_s * node.count for node in group),
                measured_s=measured_s[key],
            )
        )
    return rows


def _merged(rows: Iterable[ComparedRow]) -> list[ComparedRow]:
    """Rows of repeated layers as one, with the layers' numbers as `*` where there are several."""
    groups: dict[tuple[Any, ...], list[ComparedRow]] = {}
    for row in rows:
        key = (layer_pattern(row.name), row.op, row.phase, row.shapes, row.bound)
        groups.setdefault(key, []).append(row)
    return [
        replace(
            group[0],
            name=group[0].name if len(group) == 1 else layer_pattern(group[0].name),
            count=len(group),
            predicted_s=sum(row.predicted_s for row in group),
            measured_s=sum(row.measured_s for row in group),
        )
        for group in groups.values()
    ]
