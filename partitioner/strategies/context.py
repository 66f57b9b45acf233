"""Context parallelism: the tokens are split everywhere, in attention too.

Where an operator needs all tokens at once (attention), its heads are split instead, so an all-to-all
stands before and after it: DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509). Where its heads do not
divide (few key-value heads, already split by tensor parallelism), fused attention splits its queries and
gathers keys and values, as Llama 3 was trained (Grattafiori et al. 2024, arXiv 2407.21783, section 3.3.2);
the volume is that of ring attention. Weights are whole on every device; their gradients contract the
tokens, so an all-reduce of gradients follows.
"""

from __future__ import annotations

from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.data import batch_axes
from partitioner.strategies.sequence import token_axes
from partitioner.strategy import Strategy


def _instead(
    node: Node, axes: LogicalAxes, avoid: frozenset[Axis], parts: int
) -> tuple[list[Axis], list[Axis]]:
    """Axes that every result of a node keeps: (those that split evenly, the others)."""
    even: list[Axis] = []
    uneven: list[Axis] = []
    for axis in dict.fromkeys(a for found in axes.of_node(node).values() for a in found):
        rule = axes.rule(node, axis)
        if axis not in avoid and rule is not None and None not in rule.outputs:
            (uneven if axis.size % parts else even).append(axis)
    return even, uneven


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits the tokens over the mesh axis `cp`."""
    mesh_axis = strategy.mesh.axis("cp")
    if mesh_axis.size == 1:
        return graph
    axes = LogicalAxes(graph)
    tokens = token_axes(graph, axes)
    if not tokens:
        raise MeshError(
            f"cp={mesh_axis.size}: {graph.name or 'this graph'} has no token axis to split; leave cp out"
        )
    for axis in tokens:
        if axis.size % mesh_axis.size:
            raise MeshError(
                f"cp={mesh_axis.size} does not divide the sequence of {axis.size}; "
                f"use --sequence with a multiple of {mesh_axis.size}"
            )
    avoid = tokens | batch_axes(graph, axes)
    heads: set[Axis] = set()
    for node in graph.nodes:
        own = {a for found in axes.of_node(node).values() for a in found}
        blocked = node.definition.kind in ("attention", "contraction") and all(
            axes.rule(node, a) is None for a in own & tokens
        )
        if not own & tokens or not blocked:
            continue
        even, uneven = _instead(node, axes, avoid, mesh_axis.size)
        queries = any(axes.query_rule(node, a) is not None for a in own & tokens)
        if not even and uneven and not queries:
            raise MeshError(
                f"cp={mesh_axis.size} does not divide the {uneven[0].size} heads of {node.name}, "
                "which needs all tokens at once; use a smaller cp"
            )
        heads.update(even[:1])
    return split_graph(
        graph, axes, Plan(mesh_axis, elsewhere=(tokens, frozenset(heads)), queries=True)
    )


PASS = Pass("context", 20, apply, axis="cp")
