"""Tensor parallelism in two dims, the columns: every width is split, of weights and activations alike.

The ranks of a tensor-parallel group are a grid (`tp=ROWSxCOLUMNS`). A product C = A B is split along the
columns of C over the columns of the grid: A's width is gathered, B's columns are the rank's own. Over its
rows (`tensor_rows`) the samples of A and C are split, and B is gathered. Together they are SUMMA, with all
panels of a product in one message: C[i, j] = sum over k of A[i, k] B[k, j] (Xu et al. 2021, "Optimus", arXiv
2104.05343, section 3.1). The two products of the backward pass are SUMMA's as well: what was gathered is
gathered again, and the gradients of A and B are reduce-scattered.

Unlike the inner axes of tensor parallelism in one dim, the residual width is split too, so a norm exchanges
its statistics.
"""

from __future__ import annotations

from graph_ir.decompose import decompose
from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node, Value
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.mesh import Mesh, MeshAxis
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.stored_weights import Pins, derived_from, pin_weight, products
from partitioner.strategies.tensor import choose, inner_axes, require_coverage
from partitioner.strategy import Strategy

SMALL_SHARE = 0.01
"""Products with less than this share of the FLOPs may run whole on every column."""


class _Columns:
    """Which axis the products of a graph are split along, and with them their weights."""

    def __init__(
        self, graph: Graph, mesh_axis: MeshAxis, inner: frozenset[Axis], axes: LogicalAxes
    ):
        self.graph = graph
        self.axes = axes
        self.parts = mesh_axis.size
        self.inner = inner
        self.weights: dict[Value, Axis] = {}
        self.of: dict[Node, Axis] = {}
        self.whole: list[Node] = []
        """Products that no axis of their weight divides over the columns."""
        # Of two readers of one weight, the one with more work says where it lies.
        for node, place in sorted(products(graph), key=lambda p: -p[0].flops * p[0].count):
            weight = node.inputs[place]
            axis = self.weights.get(weight)
            if axis is None or axes.rule(node, axis) is None:
                axis = self._choice(node, place)
            if axis is None:
                self.whole.append(node)
            else:
                self.of[node] = axis
                self.weights.setdefault(weight, axis)

    def _choice(self, node: Node, place: int) -> Axis | None:
        """An axis of the weight: one of the result before a contracted one, an inner one before others."""
        found: list[tuple[int, Axis]] = []
        for axis in self.axes.all_of(node.inputs[place]):
            rule = self.axes.rule(node, axis)
            if rule is None or (axis.size % self.parts and axis not in self.inner):
                continue
            # An axis of weight, operand and result makes many products of one (experts, groups).
            several = all(rule.inputs)
            worse = 4 * (not all(rule.outputs)) + 2 * several + (axis not in self.inner)
            found.append((worse, axis))
        return min(found, key=lambda c: c[0])[1] if found else None

    def split(self) -> frozenset[Axis]:
        return self.inner | set(self.of.values())


def _require_split(columns: _Columns, graph: Graph, mesh: Mesh) -> None:
    """Raises if a product with much work has a weight that the columns do not divide."""
    rows, count = mesh.axis("tp_rows").size, mesh.axis("tp").size
    if not columns.of:
        raise MeshError(f"tp={rows}x{count}: {graph.name or 'this graph'} has no product to split")
    places = dict(products(graph))
    flops = {n: n.flops * n.count for n in places}
    heavy = [n for n in places if flops[n] > SMALL_SHARE * sum(flops.values())]
    large = [n for n in columns.whole if n in heavy]
    if large:
        sizes = {
            n: [a.size for a in columns.axes.all_of(n.inputs[places[n]]) if not a.blocked]
            for n in heavy
        }
        works = next(
            n for n in range(count, 0, -1) if all(any(s % n == 0 for s in sizes[h]) for h in heavy)
        )
        raise MeshError(
            f"tp={rows}x{count}: {count} columns divide no axis of the weight of {large[0].name} "
            f"({', '.join(map(str, sizes[large[0]])) or 'it has none'}); the nearest that works is "
            f"tp={rows}x{works}"
        )


def _moved(
    split: frozenset[Axis], graph: Graph, before: LogicalAxes, after: LogicalAxes
) -> frozenset[Axis]:
    """The same axes in other logical axes of the same inputs."""
    return frozenset(
        new
        for value in graph.inputs
        for old, new in zip(before.all_of(value), after.all_of(value), strict=True)
        if old in split
    )


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits all widths over the mesh axis `tp` if the group has rows."""
    mesh_axis, rows = strategy.mesh.axis("tp"), strategy.mesh.axis("tp_rows").size
    if mesh_axis.size == 1 or rows == 1:
        return graph
    axes = LogicalAxes(graph)
    candidates = inner_axes(graph, axes)
    chosen = choose(candidates, mesh_axis.size)
    require_coverage(candidates, chosen, mesh_axis, rows)
    inner = frozenset(c.axis for c in chosen)
    columns = _Columns(graph, mesh_axis, inner, axes)
    _require_split(columns, graph, strategy.mesh)
    split = columns.split()

    def needs_whole(node: Node) -> bool:
        own = {a for f in axes.of_node(node).values() for a in f} & split
        return bool(own) and all(axes.rule(node, a) is None for a in own)

    whole = decompose(graph, needs_whole, norms=True)
    if whole is not graph:
        old, axes = axes, LogicalAxes(whole)
        inner, split = (_moved(s, graph, old, axes) for s in (inner, split))
        columns = _Columns(whole, mesh_axis, inner, axes)
    pins = Pins()
    family = derived_from(whole, columns.of)
    for product, axis in columns.of.items():
        for node in family[product.name]:
            if node.definition.kind in ("contraction", "gather"):
                pins.pin(node, axes.rule(node, axis))
    for weight, axis in columns.weights.items():
        pin_weight(pins, whole, axes, weight, axis)
    return split_graph(whole, axes, pins.applied(whole, axes, Plan(mesh_axis, split)))


PASS = Pass("tensor_columns", 10, apply)
