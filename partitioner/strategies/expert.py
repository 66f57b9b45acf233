"""Expert parallelism: the experts are split, and so is the batch.

Outside the experts each device works on its own tokens; at the experts it holds some of them whole, for
the tokens of all devices. Tokens therefore change from split by batch to split by expert and back: the
all-to-alls of dispatch and combine (Lepikhin et al. 2021, arXiv 2006.16668, section 3.2).
"""

from __future__ import annotations

from graph_ir.errors import MeshError
from graph_ir.graph import Graph
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.data import batch_axes, reordered_axes
from partitioner.strategy import Strategy


def expert_axes(graph: Graph, axes: LogicalAxes) -> frozenset[Axis]:
    """Axes of weights that make a product many independent ones: weight, operand and result have them."""
    weights = {a for v in graph.parameters for a in axes.all_of(v)}
    found: set[Axis] = set()
    for node in graph.nodes:
        if node.phase != "forward" or node.op != "grouped_matmul":
            continue
        for axis in (a for dims in axes.of_node(node).values() for a in dims if a in weights):
            rule = axes.rule(node, axis)
            if rule is not None and None not in (*rule.inputs, *rule.outputs):
                found.add(axis)
    return frozenset(found)


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits experts and batch over the mesh axis `ep`."""
    mesh_axis = strategy.mesh.axis("ep")
    if mesh_axis.size == 1:
        return graph
    axes = graph.axes
    experts = expert_axes(graph, axes)
    if not experts:
        raise MeshError(
            f"ep={mesh_axis.size}: {graph.name or 'this graph'} has no experts to split; leave ep out"
        )
    batch = batch_axes(graph, axes)
    for axis, what in [*((a, "experts") for a in experts), *((a, "samples") for a in batch)]:
        if axis.size % mesh_axis.size:
            works = min(
                (n for n in range(1, axis.size + 1) if axis.size % n == 0),
                key=lambda n: abs(n - mesh_axis.size),
            )
            raise MeshError(
                f"ep={mesh_axis.size} does not divide the {axis.size} {what}; "
                f"the nearest that works is ep={works}"
            )
    tokens = batch | reordered_axes(graph, axes, batch, mesh_axis.size)
    return split_graph(graph, axes, Plan(mesh_axis, experts | tokens, batch=tokens))


PASS = Pass("expert", 25, apply, axis="ep")
