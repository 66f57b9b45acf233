"""Takes out what is computed in vain: a compiler drops it, eager execution does not."""

from __future__ import annotations

from dataclasses import replace

from graph_ir.graph import Graph, Node, Value


def without_unread(graph: Graph) -> Graph:
    """The graph without nodes that lead to no output, and without the constants that only they read."""
    read: set[Value] = set(graph.outputs)
    for block in graph.blocks:
        read |= block.collected
        for carry in block.carries:
            read |= {carry.initial, carry.result}
    kept: set[Node] = set()
    for node in reversed(graph.nodes):
        if not read.isdisjoint(node.outputs):
            kept.add(node)
            read.update(node.inputs)
    if len(kept) == len(graph.nodes):
        return graph
    nodes: list[Node] = []
    index = [0]
    for node in graph.nodes:
        if node in kept:
            nodes.append(node)
        index.append(len(nodes))
    blocks = [replace(b, start=index[b.start], stop=index[b.stop]) for b in graph.blocks]
    inputs = [v for v in graph.inputs if v.kind != "constant" or v in read]
    return replace(graph, inputs=tuple(inputs), nodes=tuple(nodes), blocks=tuple(blocks))
