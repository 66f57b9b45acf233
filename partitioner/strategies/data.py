"""Data parallelism: the batch is split.

Nothing else needs to be said: a weight's gradient contracts the batch, so it comes out partial, and the
all-reduce of gradients follows.
"""

from __future__ import annotations

from graph_ir.errors import MeshError
from graph_ir.graph import Graph
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.mesh import MeshAxis
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategy import Strategy


def batch_axes(graph: Graph, axes: LogicalAxes) -> frozenset[Axis]:
    """The batch: the dims that the importer calls so, else the first dim of every data input."""
    weights = {a for v in graph.parameters for a in axes.all_of(v)}
    found: set[Axis] = set()
    data = [v for v in graph.inputs if v.kind == "input"]
    named = [v for v in data if "batch" in v.dim_names]
    for value in named or data:
        position = value.dim_names.index("batch") if named else 0
        if len(value.type.shape) > position:
            found.update(a for a in axes.of_value(value)[position][:1] if a not in weights)
    return frozenset(found)


def group_axes(graph: Graph, axes: LogicalAxes) -> frozenset[Axis]:
    """Axes that make a product of rows many independent ones: weight, operand and result have them."""
    found: set[Axis] = set()
    for node in graph.nodes:
        if node.phase != "forward" or node.op != "grouped_matmul":
            continue
        for axis in dict.fromkeys(a for dims in axes.of_node(node).values() for a in dims):
            rule = axes.rule(node, axis)
            if rule is not None and None not in (*rule.inputs, *rule.outputs):
                found.add(axis)
    return frozenset(found)


def reordered_axes(
    graph: Graph,
    axes: LogicalAxes,
    batch: frozenset[Axis],
    parts: int,
    experts: frozenset[Axis] | None = None,
) -> frozenset[Axis]:
    """Axes that hold the batch in another order: tokens sorted by expert.

    A sort of something that holds the batch results in an axis of its own; each device sorts its own
    tokens, so a factor of that axis is split with the batch: the minor one, tokens of one expert. Its other
    factors are `experts`, by default all that rows are grouped by.
    """
    found = set(batch)
    if experts is None:
        experts = group_axes(graph, axes)
    for node in graph.nodes:
        if node.op != "sort" or found.isdisjoint(axes.all_of(node.inputs[0])):
            continue
        position = node.attrs.get("axis", -1)
        for value in node.outputs:
            own = axes.of_value(value)[position]
            tokens = [a for a in own if a not in experts]
            even = [a for a in tokens if a.size % parts == 0]
            found.update((even or tokens)[-1:])
    return frozenset(found - batch)


def batch_plan(graph: Graph, axes: LogicalAxes, mesh_axis: MeshAxis, name: str) -> Plan:
    """The batch is split over a mesh axis.

    Args:
        graph: any graph.
        axes: of the graph.
        mesh_axis: what to split over.
        name: what users call the axis, with `{}` where its size is.

    Raises:
        MeshError: if there is none, or the axis does not divide it.
    """
    batch = batch_axes(graph, axes)
    parts = mesh_axis.size
    if not batch:
        raise MeshError(
            f"{name.format(parts)}: no input of {graph.name or 'the model'} has a batch dim larger than "
            f"1; use --batch with a multiple of {parts}"
        )
    for axis in batch:
        if axis.size % parts:
            works = max(n for n in range(1, parts) if axis.size % n == 0)
            raise MeshError(
                f"{name.format(parts)} does not divide the batch of {axis.size}; use --batch with a "
                f"multiple of {parts}, or {name.format(works)}"
            )
    split = batch | reordered_axes(graph, axes, batch, parts)
    return Plan(mesh_axis, split, batch=split)


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits the batch over the mesh axis `dp`."""
    mesh_axis = strategy.mesh.axis("dp")
    if mesh_axis.size == 1:
        return graph
    axes = graph.axes
    return split_graph(graph, axes, batch_plan(graph, axes, mesh_axis, "dp={}"))


PASS = Pass("data", 30, apply)
