"""Tensor parallelism in two dims with weights that stay where they are: for few tokens per step.

Over the columns of the grid the inner axes are split as in one dim (`tensor`); over its rows the other axis
of every product's weight, the residual width. So a product sums over one side of the grid or the other, and
only activations are sent: the layout "2D weight-stationary" of Pope et al. 2022, arXiv 2211.05102, section
3.2.2. Where a value has no residual width (heads, feed-forward), its samples are split over the rows if they
divide, and with them the KV cache: all-reduces become reduce-scatter and all-gather.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node, Value
from graph_ir.logical_axes import Axis, AxisRule, LogicalAxes
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.data import batch_axes
from partitioner.strategies.stored_weights import norms_apart, weight_axes
from partitioner.strategies.tensor import way_of_rows
from partitioner.strategy import Strategy


def _split_along(value: Value, axes: LogicalAxes, name: str) -> Axis | None:
    """The axis of which a rank holds a part over another mesh axis: what is left of it."""
    for shard in value.shards:
        if shard.axis == name and shard.dim is not None:
            major = 1
            for axis in axes.of_value(value)[shard.dim]:
                if major == shard.major:
                    return axis
                major *= axis.size
    return None


def _choice(axes: LogicalAxes, parts: int) -> Callable[[Node, int], Axis | None]:
    """The axis of a product's weight across the one that the columns split."""

    def choice(node: Node, place: int) -> Axis | None:
        weight = node.inputs[place]
        taken = _split_along(weight, axes, "tp")
        along = None if taken is None else axes.rule(node, taken)
        # Beside an axis of the result stands one that is summed over, and the other way round.
        summed = along is None or all(along.outputs)
        found: list[tuple[int, Axis]] = []
        for axis in axes.all_of(weight):
            rule = axes.rule(node, axis)
            if rule is not None and axis is not taken and axis.size % parts == 0:
                several = all((*rule.inputs, *rule.outputs))
                found.append((2 * several + (all(rule.outputs) == summed), axis))
        return min(found, key=lambda c: c[0])[1] if found else None

    return choice


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits the residual width, and elsewhere the samples, over the mesh axis `tp_rows`."""
    mesh_axis = strategy.mesh.axis("tp_rows")
    if way_of_rows(graph, strategy) != "stationary":
        return graph
    columns = strategy.mesh.axis("tp").size
    if columns == 1:
        raise MeshError(
            f"tp={mesh_axis.size}x1: weights that stay are split over columns first; write "
            f"tp={mesh_axis.size}, or add --tensor-grid summa"
        )
    axes = graph.axes
    rows = weight_axes(graph, axes, _choice(axes, mesh_axis.size))
    if not rows.of:
        raise MeshError(
            f"tp={mesh_axis.size}x{columns}: {mesh_axis.size} rows divide no axis of a weight of "
            f"{graph.name or 'this graph'} besides those that the columns split; use fewer rows"
        )
    graph, axes, new = norms_apart(graph, axes, rows.all)
    rows = rows.renamed(new)
    samples = frozenset(a for a in batch_axes(graph, axes) if a.size % mesh_axis.size == 0)
    pins = rows.pins(graph, axes)
    for value in graph.inputs:
        own = [a for a in axes.all_of(value) if a in samples]
        if value.role == "kv_cache" and own:
            pins.lies[value] = own[0]
    plan = pins.applied(graph, axes, Plan(mesh_axis, rows.all, (samples,)))
    return split_graph(graph, axes, _large_ones(plan, graph))


def _large_ones(plan: Plan, graph: Graph) -> Plan:
    """The plan without samples split where columns split nothing: statistics of a row are not worth it."""
    (samples,) = plan.elsewhere
    chosen, lies = dict(plan.chosen or {}), dict(plan.lies or {})
    for node in graph.nodes:
        rule = chosen[node]
        by_sample = isinstance(rule, AxisRule) and samples.intersection(
            (*rule.inputs, *rule.outputs)
        )
        if by_sample and not any(_over_columns(v) for v in (*node.inputs, *node.outputs)):
            chosen[node] = None
    for value, axis in lies.items():
        if axis in samples and not _over_columns(value) and value.role != "kv_cache":
            lies[value] = None
    return replace(plan, chosen=chosen, lies=lies)


def _over_columns(value: Value) -> bool:
    return any(shard.axis == "tp" for shard in value.shards)


# After the data's axes: they split the samples first.
PASS = Pass("tensor_stationary", 35, apply)
