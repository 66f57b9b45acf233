"""Uneven routing: the rank whose experts get most tokens decides how long everyone waits.

Expert parallelism shares the tokens out evenly. With an imbalance f the busiest rank's experts get f times
the mean: in its graph the axis of the tokens behind each expert is longer by f. Time, memory and the
exchanged bytes of everything on that axis follow; the model's own FLOPs stay what they are.

On a device that holds all experts nothing changes: what the busiest expert gets more, the others get less.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node
from graph_ir.logical_axes import Axis, LogicalAxes
from graph_ir.resize import resized
from partitioner.strategies import Pass
from partitioner.strategy import Strategy


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Gives the experts of this rank the tokens of the busiest one."""
    ranks = strategy.mesh.axis("ep").size
    # One rank can get no more than all tokens.
    factor = min(strategy.expert_imbalance, float(ranks))
    if factor == 1:
        return graph
    axes = graph.axes
    products = [n for n in graph.nodes if n.op == "grouped_matmul" and n.phase == "forward"]
    tokens = _tokens_of_experts(products, axes)
    return resized(graph, axes, {axis: ceil(axis.size * factor) for axis in tokens}, products)


def _tokens_of_experts(products: Sequence[Node], axes: LogicalAxes) -> set[Axis]:
    """The axes of the rows that each expert multiplies."""
    found = set()
    for node in products:
        tokens = axes.of_node(node).get("t", ())
        if not tokens:
            raise MeshError(
                f"an expert imbalance needs several tokens per expert, {node.name} has one: "
                f"use a larger --batch or leave the imbalance out"
            )
        found.add(tokens[0])
    return found


PASS = Pass("imbalance", 45, apply)
