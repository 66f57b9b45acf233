"""Graphs in which nodes have been replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from graph_ir.graph import Graph, Node


def renumbered(graph: Graph, replaced: Mapping[Node, Sequence[Node]]) -> Graph:
    """The graph with nodes replaced by others; block borders follow."""
    start: dict[int, int] = {}
    nodes: list[Node] = []
    for index, node in enumerate(graph.nodes):
        start[index] = len(nodes)
        nodes += replaced.get(node, [node])
    start[len(graph.nodes)] = len(nodes)
    blocks = tuple(replace(b, start=start[b.start], stop=start[b.stop]) for b in graph.blocks)
    return Graph(tuple(nodes), graph.inputs, graph.outputs, blocks, graph.name)
