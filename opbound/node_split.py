"""`opbound analyze --explain NODE`: why an operator is split as it is, and what else would cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graph_ir.errors import MeshError, OpboundError
from opbound._version import __version__
from opbound.analysis import Analysis, Progress
from opbound.options import Options
from opbound.pricing import executed_graph, step_graph, strategy_of
from reports.node_split import AlternativeRow, CollectiveRow, NameRow, NodeSplit

if TYPE_CHECKING:
    from costing.step import StepCost
    from graph_ir.graph import Graph, Node, Value
    from graph_ir.logical_axes import Axis
    from graph_ir.partitioned import PartitionedGraph
    from partitioner.alternatives import Decision

SUGGESTED = 5

MOST_APART = 0.03
"""Up to this the step, put together again operator by operator, is the strategy's own."""


def explain_node(
    model: object, options: Options, name: str, progress: Progress = lambda _: None
) -> NodeSplit:
    """Explains how one operator is split.

    Args:
        model: what `importers.load` takes.
        options: mode, sizes, mesh.
        name: of an operator, or of one of its repetitions.
        progress: is told what is being done.

    Raises:
        OpboundError: if there is no such operator, or the model or an option cannot be used.
    """
    if options.mode == "generation":
        raise OpboundError("--explain works on one step: use mode inference or training")
    return _Explainer(Analysis(model, options, progress=progress), name).run()


class _Explainer:
    def __init__(self, analysis: Analysis, name: str) -> None:
        from graph_ir.fold import fold

        self.analysis = analysis
        self.options = analysis.options
        self.pricer = analysis.pricer
        self.runs = analysis.workload.microbatches
        imported = analysis.imported(self.options.mode, self.options.sequence)
        self.model = imported.name
        forward = fold(executed_graph(imported.graph, self.options, analysis.progress))
        self.graph = step_graph(forward, self.options, analysis.progress)
        self.strategy = strategy_of(self.options, self.pricer, self.runs)
        self.node = _find(self.graph, name)

    def run(self) -> NodeSplit:
        """Splits the model as it is, and in all other ways for this operator."""
        from partitioner.partition import partition

        parts = partition(self.graph, self.strategy, self._node_s)
        cost = self._step(parts)
        self.step_s = cost.step_time_s
        local = self._local(parts)
        axes = self.graph.axes.of_node(self.node)
        rows, reasons = [], []
        if self.options.devices > 1:
            for row, reason in self._alternatives():
                rows += row
                reasons += reason
        names = tuple(
            NameRow(
                name=name,
                size=size,
                axes=tuple(a.size for a in axes.get(name, ())),
                split=self._split_of(name, local),
                # A dim of which a rank holds one element has no name there.
                local_size=local.equation.sizes.get(name, 1),
            )
            for name, size in self.node.equation.sizes.items()
        )
        return NodeSplit(
            opbound_version=__version__,
            model=self.model,
            hardware=self.analysis.hardware.name,
            strategy=str(self.strategy),
            node=self.node.name,
            op=self.node.op,
            phase=self.node.phase,
            count=self.node.count,
            equation=str(self.node.equation),
            shapes=_shapes(self.node),
            local_shapes=_shapes(local),
            reasons=tuple(reasons) or ("one device, or a pipeline alone: nothing is split",),
            step_time_s=cost.step_time_s,
            names=names,
            collectives=tuple(self._collectives(parts, cost)),
            alternatives=tuple(rows),
        )

    def _node_s(self, node: Node) -> float:
        return self.pricer.cost(node).time_s

    def _step(self, parts: PartitionedGraph) -> StepCost:
        from opbound.pricing import step_cost_of

        return step_cost_of(parts, self.options, self.runs, self.pricer)

    # --- the node ---------------------------------------------------------------------------------------

    def _names(self, node: Node) -> set[str]:
        return {node.name, *node.instances}

    def _local(self, parts: PartitionedGraph) -> Node:
        wanted = self._names(self.node)
        for stage in parts.stages:
            for node in stage.graph.nodes:
                if node.op == self.node.op and wanted & self._names(node):
                    return node
        raise OpboundError(
            f"{self.node.name} does not run as one operator here: this strategy takes it apart"
        )

    def _split_of(self, name: str, local: Node) -> str:
        found: dict[str, None] = {}
        pairs = (
            (self.node.equation.inputs, local.inputs),
            (self.node.equation.outputs, local.outputs),
        )
        for operands, values in pairs:
            for dims, value in zip(operands, values, strict=False):
                for shard in value.shards:
                    if shard.dim is not None and name in _names_at(dims, shard.dim):
                        found[f"{shard.axis}={shard.parts}"] = None
        return (
            ", ".join(found)
            if local.equation.sizes.get(name) != self.node.equation.sizes[name]
            else ""
        )

    def _collectives(self, parts: PartitionedGraph, cost: StepCost) -> Iterator[CollectiveRow]:
        """Collectives next to the operator and to what training derives from it."""
        wanted = self._names(self.node)
        origin = self.node.origin or self.node.name
        seen: set[str] = set()
        for stage in dict.fromkeys(s.graph for s in parts.stages):
            for node in stage.nodes:
                if node.phase == "communication" or node.name in seen:
                    continue
                if not (wanted & self._names(node) or node.origin == origin):
                    continue
                seen.add(node.name)
                for where, other, value in _communication(stage, node):
                    if other.name not in seen:
                        seen.add(other.name)
                        yield self._row(node, where, other, value)

    def _row(self, node: Node, where: str, other: Node, value: Value) -> CollectiveRow:
        from graph_ir.ops.collective import message_bytes

        tensors = max(len(other.inputs), len(other.outputs))
        return CollectiveRow(
            beside=node.name,
            where=where,
            op=other.op,
            axis=str(other.attrs["axis"]),
            group_size=int(other.attrs.get("group_size", 1)),
            bytes=message_bytes(other) if tensors == 1 else value.type.bytes,
            count=other.count,
            time_s=self._node_s(other),
            shared_with=tensors - 1,
        )

    # --- other ways -------------------------------------------------------------------------------------

    def _alternatives(self) -> Iterator[tuple[list[AlternativeRow], list[str]]]:
        from partitioner.alternatives import decisions
        from partitioner.strategy import Prices

        prices = Prices(self._node_s)
        for decision in decisions(self.graph, self.strategy, prices):
            unknown = decision.unknown(self.node.name)
            mesh = decision.mesh_axis
            if unknown is None:
                yield [], [f"{mesh.name}={mesh.size}: takes the operator apart"]
                continue
            now = decision.axis_of(unknown)
            ways = [now, *decision.alternatives(unknown)]
            base = self._priced(decision, unknown, now, True)
            again_s = base.step_time_s or 0.0
            if abs(again_s / self.step_s - 1) > MOST_APART:
                # What one operator's change costs is only told where all others stay as they are.
                yield (
                    [],
                    [
                        self._reason(decision, unknown, now),
                        f"{mesh.name}={mesh.size}: this strategy does not decide operator by operator, so "
                        "other ways cannot be priced",
                    ],
                )
                continue
            rows = [base, *(self._priced(decision, unknown, way, False) for way in ways[1:])]
            yield rows, [self._reason(decision, unknown, now)]

    def _reason(self, decision: Decision, unknown: Node, axis: Axis | None) -> str:
        mesh = decision.mesh_axis
        head = f"{mesh.name}={mesh.size}"
        if axis is None:
            return f"{head}: runs whole on every rank, since none of its axes is split by this mesh axis"
        rule = decision.search.unknowns.rule(unknown, axis)
        if rule is None:
            return f"{head}: runs whole"
        operands = [str(i + 1) for i, a in enumerate(rule.inputs) if a is not None]
        results = all(a is not None for a in rule.outputs)
        what = (
            f"operand{'s' if len(operands) > 1 else ''} {', '.join(operands)} split"
            if operands
            else ""
        )
        end = (
            "the result is split along it"
            if results
            else (
                "it is contracted, so each rank has a partial sum, which is reduced"
                if rule.partial
                else "each rank has statistics of its own part"
            )
        )
        return f"{head}: {rule.name or 'the data'} ({axis.size} parts) is split: {what}; {end}"

    def _priced(
        self, decision: Decision, unknown: Node, axis: Axis | None, chosen: bool
    ) -> AlternativeRow:
        way = "whole"
        if axis is not None:
            names = decision.search.axes.of_node(unknown)
            name = next((n for n, found in names.items() if axis in found), "")
            way = f"{name} ({axis.size})"
        mesh = decision.mesh_axis
        try:
            parts = decision.with_axis(unknown, axis, self.strategy, self._node_s)
            cost = self._step(parts)
        except MeshError as error:
            return AlternativeRow(
                mesh_axis=mesh.name,
                split=way,
                chosen=chosen,
                step_time_s=None,
                communicated_bytes=None,
                problem=str(error),
            )
        sent = 0
        for part in cost.stages[cost.busiest]:
            for node, price in part.costs.items():
                runs = 1 if node in part.times.once else part.runs
                sent += price.bytes_communicated * node.count * runs
        return AlternativeRow(
            mesh_axis=mesh.name,
            split=way,
            chosen=chosen,
            step_time_s=cost.step_time_s,
            communicated_bytes=sent,
        )


def _communication(graph: Graph, node: Node) -> Iterator[tuple[str, Node, Value]]:
    """Collectives right before and after a node, views between them passed over."""
    for value in node.inputs:
        source = graph.producers.get(value)
        while source is not None and source.definition.is_view(source) and source.inputs:
            value = source.inputs[0]
            source = graph.producers.get(value)
        if source is not None and source.phase == "communication":
            yield "before", source, value
    for result in node.outputs:
        pending = [result]
        while pending:
            value = pending.pop()
            for reader in graph.users.get(value, ()):
                if reader.phase == "communication":
                    yield "after", reader, value
                elif reader.definition.is_view(reader):
                    pending += reader.outputs


def _find(graph: Graph, name: str) -> Node:
    from difflib import get_close_matches

    by_name: dict[str, Node] = {}
    for node in graph.nodes:
        for one in (node.name, *node.instances):
            by_name.setdefault(one, node)
    if name in by_name:
        return by_name[name]
    known = list(dict.fromkeys(n.name for n in graph.nodes if n.phase == "forward"))
    # Users type the end of a name more often than all of it.
    ends = {n.rsplit(".", 1)[-1].rsplit("/", 1)[-1]: n for n in reversed(known)}
    by_end = [ends[e] for e in get_close_matches(name.rsplit(".", 1)[-1], ends, n=SUGGESTED)]
    inside = [n for n in known if name and name in n]
    close = [*inside, *by_end, *get_close_matches(name, known, n=SUGGESTED)]
    close = list(dict.fromkeys(close))[:SUGGESTED]
    hint = f"nearest: {', '.join(close)}" if close else "see `opbound graph` for the names"
    raise OpboundError(f"no operator is called {name!r}; {hint}")


def _names_at(dims: tuple[object, ...], place: int) -> tuple[str, ...]:
    from graph_ir.equation import factors

    return factors(dims[place]) if place < len(dims) else ()  # type: ignore[arg-type]


def _shapes(node: Node) -> tuple[tuple[int, ...], ...]:
    return tuple(v.type.shape for v in (*node.inputs, *node.outputs))
