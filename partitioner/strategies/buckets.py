"""Joins the gradient collectives of a block into one message, as every framework's buckets do."""

from __future__ import annotations

from dataclasses import replace

from graph_ir.graph import Graph, Node
from partitioner.strategies import Pass
from partitioner.strategy import Strategy


def coalesce(graph: Graph, mesh_axis: str) -> Graph:
    """Merges all-reduces over `mesh_axis` whose results only the optimizer (or its next reduction) reads.

    Those of one repeated block become one node at the block's end, the others one node where the last of
    them stood. Latency is then paid per bucket, and the bytes stay the same.
    """
    starts = {b.start: b for b in graph.blocks}
    groups: dict[int, list[int]] = {}
    block_index = -1
    stop = -1
    for index, node in enumerate(graph.nodes):
        if index in starts:
            block_index, stop = starts[index].start, starts[index].stop
        elif index >= stop:
            block_index = -1
        if _is_gradient(graph, node, mesh_axis):
            groups.setdefault(block_index, []).append(index)
    last = {members[-1]: members for members in groups.values() if len(members) > 1}
    dropped = {i for members in last.values() for i in members[:-1]}
    if not dropped:
        return graph
    position: dict[int, int] = {}
    nodes: list[Node] = []
    for index, node in enumerate(graph.nodes):
        position[index] = len(nodes)
        if index in dropped:
            continue
        members = [graph.nodes[i] for i in last.get(index, ())]
        if members:
            node = replace(
                node,
                name=f"gradients.{node.op}.{mesh_axis}.{position[index]}",
                module="",
                inputs=tuple(v for n in members for v in n.inputs),
                outputs=tuple(v for n in members for v in n.outputs),
                instances=tuple(f"{name}.bucket" for name in node.instances),
                instance_modules=("",) * len(node.instance_modules),
            )
        nodes.append(node)
    position[len(graph.nodes)] = len(nodes)
    blocks = tuple(replace(b, start=position[b.start], stop=position[b.stop]) for b in graph.blocks)
    return Graph(tuple(nodes), graph.inputs, graph.outputs, blocks, graph.name)


def _is_gradient(graph: Graph, node: Node, mesh_axis: str) -> bool:
    if node.op != "all_reduce" or node.attrs.get("axis") != mesh_axis:
        return False
    readers = [reader for v in node.outputs for reader in graph.users.get(v, ())]
    return bool(readers) and all(
        r.phase == "optimizer" or _is_gradient(graph, r, r.attrs.get("axis", "")) for r in readers
    )


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Joins gradient all-reduces over each mesh axis that replicates weights."""
    for name in ("dp", "ep", "cp", "tp", "pp"):
        if strategy.mesh.axis(name).size > 1:
            graph = coalesce(graph, name)
    return graph


PASS = Pass("buckets", 60, apply)
