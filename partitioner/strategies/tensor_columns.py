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

from collections.abc import Callable

from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.mesh import Mesh
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.stored_weights import WeightAxes, norms_apart, products, weight_axes
from partitioner.strategies.tensor import choose, inner_axes, require_coverage, way_of_rows
from partitioner.strategy import Strategy

WHOLE_SHARE = 0.1
"""Products with this share of the FLOPs may run whole on every column, as no axis of their weight divides."""


def _choice(
    axes: LogicalAxes, inner: frozenset[Axis], parts: int
) -> Callable[[Node, int], Axis | None]:
    """Of a weight's axes, one of the result before a contracted one, an inner one before others."""

    def choice(node: Node, place: int) -> Axis | None:
        found: list[tuple[int, Axis]] = []
        for axis in axes.all_of(node.inputs[place]):
            rule = axes.rule(node, axis)
            if rule is None or (axis.size % parts and axis not in inner):
                continue
            # An axis of weight, operand and result makes many products of one (experts, groups).
            several = all((*rule.inputs, *rule.outputs))
            worse = 4 * (not all(rule.outputs)) + 2 * several + (axis not in inner)
            found.append((worse, axis))
        return min(found, key=lambda c: c[0])[1] if found else None

    return choice


def _require_split(columns: WeightAxes, graph: Graph, axes: LogicalAxes, mesh: Mesh) -> None:
    """Raises if the columns do not divide the weights that much of the work is done with."""
    rows, count = mesh.axis("tp_rows").size, mesh.axis("tp").size
    if not columns.of:
        raise MeshError(f"tp={rows}x{count}: {graph.name or 'this graph'} has no product to split")
    flops = {n: n.flops * n.count for n, _ in products(graph)}
    most = WHOLE_SHARE * sum(flops.values())
    if sum(flops[n] for n in columns.whole) <= most:
        return
    sizes = {
        n: [a.size for a in axes.all_of(n.inputs[i]) if axes.rule(n, a)] for n, i in products(graph)
    }

    def whole_flops(parts: int) -> int:
        return sum(flops[n] for n, own in sizes.items() if all(s % parts for s in own))

    works = next(n for n in range(count, 0, -1) if n == 1 or whole_flops(n) <= most)
    worst = max(columns.whole, key=lambda n: flops[n])
    raise MeshError(
        f"tp={rows}x{count}: {count} columns divide no axis of the weight of {worst.name} "
        f"({', '.join(map(str, sizes[worst])) or 'none can be split'}); the nearest that works is "
        f"tp={rows}x{works}"
    )


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits all widths over the mesh axis `tp` if the group has rows."""
    mesh_axis, rows = strategy.mesh.axis("tp"), strategy.mesh.axis("tp_rows").size
    if mesh_axis.size == 1 or way_of_rows(graph, strategy) != "summa":
        return graph
    axes = graph.axes
    candidates = inner_axes(graph, axes)
    chosen = choose(candidates, mesh_axis.size)
    require_coverage(candidates, chosen, mesh_axis, rows)
    inner = frozenset(c.axis for c in chosen)
    columns = weight_axes(graph, axes, _choice(axes, inner, mesh_axis.size))
    _require_split(columns, graph, axes, strategy.mesh)
    split = inner | columns.all
    graph, axes, new = norms_apart(graph, axes, split)
    columns, split = columns.renamed(new), frozenset(new[a] for a in split)
    plan = columns.pins(graph, axes).applied(graph, axes, Plan(mesh_axis, split))
    return split_graph(graph, axes, plan)


PASS = Pass("tensor_columns", 10, apply)
