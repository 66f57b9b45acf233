"""Tensor parallelism in two dims, the rows: samples are split, and so is every weight.

Over the rows of the grid a rank works on its own samples with the weights of its column, of which it stores
a part: a product gathers its weight, in the backward pass anew, and the weight's gradient is reduce-scattered
after every micro-batch. These are the other half of SUMMA's panels (`tensor_columns` has the first). Biases
and the weights of norms stay whole on every row, and their gradients are reduced with those of the data.
"""

from __future__ import annotations

from dataclasses import replace

from graph_ir.graph import Graph, Node
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.mesh import MeshAxis
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.data import batch_plan
from partitioner.strategies.stored_weights import Pins, pin_weight, weight_axes
from partitioner.strategies.tensor import way_of_rows
from partitioner.strategy import Strategy


def _stored_along(graph: Graph, axes: LogicalAxes, mesh_axis: MeshAxis) -> Pins:
    """Lets every product's weight lie along an axis that it sums over, or else another one."""

    def choice(node: Node, place: int) -> Axis | None:
        own = axes.all_of(node.inputs[place])
        able = [a for a in own if a.size % mesh_axis.size == 0 and not a.blocked]
        summed = [a for a in able if (rule := axes.rule(node, a)) and not all(rule.outputs)]
        return next(iter((*summed, *able)), None)

    pins = Pins()
    for weight, axis in weight_axes(graph, axes, choice).weights.items():
        pin_weight(pins, graph, axes, weight, axis)
    return pins


def _scattered_at_once(graph: Graph, mesh_axis: MeshAxis) -> Graph:
    """Gradients are scattered as they come out of a product, before other ranks' terms are added."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op != "reduce_scatter" or node.attrs["axis"] != mesh_axis.name:
            nodes.append(node)
            continue
        (term,), (result,) = node.inputs, node.outputs
        later: list[Node] = []
        while nodes and nodes[-1].op == "all_reduce" and nodes[-1].outputs == (term,):
            if len(graph.users[term]) > 1 or term in graph.outputs:
                break
            later.insert(0, nodes.pop())
            (term,) = later[0].inputs
        attrs = {**node.attrs, "every_microbatch": True}
        chain = [replace(node, attrs=attrs), *later]
        for i, step in enumerate(chain):
            last = i == len(chain) - 1
            made = result if last else replace(result, name=f"{result.name}.term{i}")
            nodes.append(replace(step, inputs=(term,), outputs=(made,)))
            term = made
    return Graph(tuple(nodes), graph.inputs, graph.outputs, graph.blocks, graph.name)


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits samples and weights over the mesh axis `tp_rows`."""
    mesh_axis = strategy.mesh.axis("tp_rows")
    if way_of_rows(graph, strategy) != "summa":
        return graph
    axes = graph.axes
    plan = batch_plan(graph, axes, mesh_axis, f"tp={{}}x{strategy.mesh.axis('tp').size}")
    pins = _stored_along(graph, axes, mesh_axis)
    return _scattered_at_once(split_graph(graph, axes, pins.applied(graph, axes, plan)), mesh_axis)


PASS = Pass("tensor_rows", 11, apply, axis="tp_rows")
