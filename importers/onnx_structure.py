"""What must hold of an ONNX graph before anything is computed from it: names and order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graph_ir.errors import ModelFileError
from importers.onnx_names import name_of

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

MAX_DEPTH = 40
"""How deep subgraphs and functions may nest."""


def node_label(node: NodeProto) -> str:
    """How errors call a node: its name, or else its first result."""
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"node {name_of(node)!r} ({kind})"


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs among a node's attributes."""
    found = [a.g for a in node.attribute if a.HasField("g")]
    for attribute in node.attribute:
        found.extend(attribute.graphs)
    return found


def reads(node: NodeProto, depth: int = 0) -> Iterator[str]:
    """Every name the node reads, with those its subgraphs capture from outside.

    Raises:
        ModelFileError: subgraphs nest deeper than `MAX_DEPTH`.
    """
    yield from (name for name in node.input if name)
    graphs = subgraphs(node) if node.attribute else []
    if graphs and depth > MAX_DEPTH:
        raise ModelFileError(f"{node_label(node)} nests subgraphs deeper than {MAX_DEPTH}")
    for graph in graphs:
        own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        own.update(name for inner in graph.node for name in inner.output)
        for inner in graph.node:
            yield from (name for name in reads(inner, depth + 1) if name not in own)
        yield from (o.name for o in graph.output if o.name not in own)


def in_order(
    nodes: Sequence[NodeProto], read: Sequence[Sequence[str]], available: set[str]
) -> list[NodeProto]:
    """The nodes in an order in which every name is produced before it is read.

    Args:
        nodes: in the file's order, which is kept where it is valid.
        read: for each node, what it `reads`.
        available: names that exist before the first node.

    Raises:
        ModelFileError: a name is produced twice or never, or the graph has a cycle.
    """
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            if not name:
                continue
            if name in producer or name in available:
                raise ModelFileError(
                    f"{node_label(node)} produces {name!r}, which exists already: make names unique"
                )
            producer[name] = index
    needs: list[list[str]] = []
    sorted_already = True
    for index, (node, all_names) in enumerate(zip(nodes, read, strict=True)):
        names = [n for n in dict.fromkeys(all_names) if n not in available]
        for name in names:
            if name not in producer:
                raise ModelFileError(f"{node_label(node)} reads {name!r}, which nothing produces")
            sorted_already &= producer[name] < index
        needs.append(names)
    if sorted_already:
        return list(nodes)
    return [nodes[i] for i in _topological(nodes, needs, producer)]


def _topological(
    nodes: Sequence[NodeProto], needs: list[list[str]], producer: dict[str, int]
) -> list[int]:
    import heapq

    waiting = [len({producer[n] for n in names}) for names in needs]
    followers: list[list[int]] = [[] for _ in nodes]
    for index, names in enumerate(needs):
        for before in {producer[n] for n in names}:
            followers[before].append(index)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for follower in followers[index]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                heapq.heappush(ready, follower)
    if len(order) < len(nodes):
        stuck = next(i for i, count in enumerate(waiting) if count > 0)
        raise ModelFileError(f"{node_label(nodes[stuck])} is part of a cycle: no order can run it")
    return order
