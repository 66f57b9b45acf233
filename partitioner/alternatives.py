"""How one operator was split over each mesh axis, and the graphs that other splits of it would give.

What a strategy decided is read off its result: the shards of the values at every node. Any of those
decisions can then be changed for one operator (with all that training derives from it), everything else
kept, and the rest of the strategy carried out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from graph_ir.decompose import decompose
from graph_ir.graph import Graph, Node, Value
from graph_ir.logical_axes import Axis, AxisRule
from graph_ir.partitioned import PartitionedGraph
from partitioner.mesh import MeshAxis
from partitioner.partition import PIPELINE_ORDER, partition
from partitioner.propagate import split_graph
from partitioner.search import Search
from partitioner.search_tables import PENDING
from partitioner.strategies import split_passes
from partitioner.strategy import Prices, Strategy


@dataclass(frozen=True)
class Decision:
    """One mesh axis, before and after its split."""

    mesh_axis: MeshAxis
    search: Search
    """Over the graph before the split."""
    choice: tuple[int, ...]
    """What was chosen for each unknown of the search."""
    done: frozenset[str]
    """Names of the passes that are done with it."""
    fixed: Mapping[Node, AxisRule]
    """Nodes that run by a rule which is none of an axis: sorts and lookups of each device's own tokens."""
    stored: Mapping[Value, Axis | None]
    """Along which axis each value from outside is kept."""

    def unknown(self, name: str) -> Node | None:
        """The forward node behind an operator's name; None if this graph has none."""
        for node, unknown in self.search.unknowns.of.items():
            if name in (node.name, *node.instances):
                return unknown
        return None

    def axis_of(self, unknown: Node) -> Axis | None:
        """The logical axis that the operator was split along."""
        i = self.search.unknowns.index[unknown]
        axis = self.search.unknowns.options[i][self.choice[i]]
        return None if axis is PENDING else axis

    def alternatives(self, unknown: Node) -> list[Axis | None]:
        """The other axes that the operator could be split along, None for whole."""
        options = self.search.unknowns.options[self.search.unknowns.index[unknown]]
        return [a for a in options if a is not PENDING and a is not self.axis_of(unknown)]

    def with_axis(
        self,
        unknown: Node,
        axis: Axis | None,
        strategy: Strategy,
        node_time: Callable[[Node], float],
    ) -> PartitionedGraph:
        """The whole strategy with one operator split along another axis.

        Raises:
            MeshError: if the rest of the strategy cannot be applied then.
        """
        i = self.search.unknowns.index[unknown]
        option = self.search.unknowns.options[i].index(axis)
        choice = (*self.choice[:i], option, *self.choice[i + 1 :])
        plan = self.search.plan(choice)
        changed = {v for n in self.search.unknowns.members[unknown] for v in n.inputs}
        kept = {v: a for v, a in self.stored.items() if v not in changed}
        fixed = self._fixed_but(unknown)
        own = frozenset(a for r in fixed.values() for a in (*r.inputs, *r.outputs) if a is not None)
        plan = replace(
            plan,
            chosen={**(plan.chosen or {}), **fixed},
            lies={**(plan.lies or {}), **kept},
            axes=plan.axes | own,
            batch=plan.batch | own,
        )
        local = split_graph(self.search.graph, self.search.axes, plan)
        return partition(local, strategy, node_time, self.done)

    def _fixed_but(self, unknown: Node) -> dict[Node, AxisRule]:
        of = self.search.unknowns.of
        return {n: r for n, r in self.fixed.items() if of[n] is not unknown}


def decisions(graph: Graph, strategy: Strategy, prices: Prices) -> Iterator[Decision]:
    """What each mesh axis that splits tensors was used for, in the order of the passes.

    Args:
        graph: as `partition` takes it.
        strategy: what was asked for.
        prices: of nodes, to choose where values lie between them.
    """
    done: set[str] = set()
    for step in split_passes():
        if step.order >= PIPELINE_ORDER:
            return
        after = step.apply(graph, strategy)
        done.add(step.name)
        found = _shards_of(after) - _shards_of(graph)
        # A pass that splits over several mesh axes at once has no single decision per operator.
        if len(found) == 1:
            (mesh_axis,) = found
            whole = _taken_apart_as(graph, after)
            search = Search(whole, mesh_axis, prices)
            choice = _choice(search, after, mesh_axis.name)
            fixed = _fixed(search, after, mesh_axis.name)
            own = {v.name: v for v in after.inputs}
            stored = {
                v: _axis(search, v, own[v.name], mesh_axis.name)
                for v in whole.inputs
                if v.name in own
            }
            yield Decision(mesh_axis, search, choice, frozenset(done), fixed, stored)
        graph = after


def _shards_of(graph: Graph) -> set[MeshAxis]:
    values = [*graph.inputs, *(v for n in graph.nodes for v in n.outputs)]
    return {MeshAxis(s.axis, s.parts, s.stride) for v in values for s in v.shards}


def _taken_apart_as(graph: Graph, after: Graph) -> Graph:
    """The graph with the operators decomposed that a pass has decomposed."""
    ops = {n.name: n.op for n in after.nodes}
    return decompose(
        graph, lambda n: ops.get(n.name, n.op) != n.op or n.name not in ops, norms=True
    )


def _choice(search: Search, after: Graph, name: str) -> tuple[int, ...]:
    local = {n.name: n for n in after.nodes}
    carried = {c.argument.name: c.argument for b in after.blocks for c in b.carries}
    found = []
    for unknown, options in zip(search.unknowns.all, search.unknowns.options, strict=True):
        if isinstance(unknown, Node):
            node = local.get(unknown.name)
            pairs = [] if node is None else _pairs(unknown, node)
        else:
            own = carried.get(unknown.argument.name)
            pairs = [] if own is None else [(unknown.argument, own)]
        axes = [_axis(search, whole, part, name) for whole, part in pairs]
        axis = next((a for a in axes if a is not None and a in options), None)
        found.append(options.index(axis))
    return tuple(found)


def _fixed(search: Search, after: Graph, name: str) -> dict[Node, AxisRule]:
    """Rules of the nodes that are split, but along no axis that they could choose."""
    local = {n.name: n for n in after.nodes}
    found = {}
    for node in search.graph.nodes:
        part = local.get(node.name)
        if part is None or part.op != node.op or len(part.inputs) != len(node.inputs):
            continue
        inputs = tuple(
            _axis(search, *pair, name) for pair in zip(node.inputs, part.inputs, strict=True)
        )
        outputs = tuple(
            _axis(search, *pair, name) for pair in zip(node.outputs, part.outputs, strict=True)
        )
        used = {a for a in (*inputs, *outputs) if a is not None}
        rules = [search.unknowns.rule(node, a) for a in used]
        if not used or any(r and (r.inputs, r.outputs) == (inputs, outputs) for r in rules):
            continue
        sizes = part.equation.sizes
        names = (n for n, size in node.equation.sizes.items() if sizes.get(n, size) != size)
        own = node.definition.kind in ("gather", "routing")
        found[node] = AxisRule("" if own else next(names, ""), inputs, outputs, partial=not own)
    return found


def _pairs(whole: Node, local: Node) -> list[tuple[Value, Value]]:
    # Results first: a node may read more than it splits.
    outputs = list(zip(whole.outputs, local.outputs, strict=False))
    return [*outputs, *zip(whole.inputs, local.inputs, strict=False)]


def _axis(search: Search, whole: Value, part: Value, name: str) -> Axis | None:
    """The logical axis along which a part was cut out of a value over a mesh axis."""
    for shard in part.shards:
        if shard.axis != name or shard.dim is None or shard.dim >= len(whole.type.shape):
            continue
        major = 1
        for axis in search.axes.of_value(whole)[shard.dim]:
            if major == shard.major:
                return axis
            major *= axis.size
    return None
