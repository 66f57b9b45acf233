"""Stages that two ranks hold, each for one way through the pipeline: they sum up their gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graph_ir.graph import Block, Graph, Node, Value


def mirrored(graph: Graph, group: dict[str, Any]) -> Graph:
    """Adds an all-reduce of every weight's gradient, before the collectives over other mesh axes.

    Args:
        graph: of one stage, with its update.
        group: mesh axis, size and stride of the ranks that hold the stage.
    """
    # What all repetitions of a block add to is summed up behind the block.
    carried = {c.result: b.stop for b in graph.blocks for c in b.carries}
    totals: dict[Value, Value] = {}
    for update in graph.nodes:
        if update.phase != "optimizer" or len(update.inputs) < 2:
            continue
        total = update.inputs[1]
        while (node := graph.producers.get(total)) and node.phase == "communication":
            total = node.inputs[node.outputs.index(total)]
        name = f"{total.name}.all_reduce.{group['axis']}"
        count = 1 if total in carried else total.count
        totals[total] = replace(total, name=name, kind="intermediate", count=count)
    waiting: dict[int, list[tuple[Value, Node]]] = {}
    for i, node in enumerate(graph.nodes):
        for value in totals.keys() & set(node.outputs):
            waiting.setdefault(carried.get(value, i + 1), []).append((value, node))
    place: list[int] = []
    nodes: list[Node] = []
    for i, node in enumerate(graph.nodes):
        place.append(len(nodes))
        nodes += [
            _all_reduce(v, totals[v], n, group) for v, n in waiting.get(i, ()) if v in carried
        ]
        reads = node.phase in ("optimizer", "communication") and node.op != "send"
        own = tuple(totals.get(v, v) for v in node.inputs) if reads else node.inputs
        nodes.append(replace(node, inputs=own) if own != node.inputs else node)
        nodes += [
            _all_reduce(v, totals[v], n, group)
            for v, n in waiting.get(i + 1, ())
            if v not in carried
        ]
    place.append(len(nodes))
    blocks = tuple(
        Block(place[b.start], place[b.stop], b.count, b.carries, b.collected) for b in graph.blocks
    )
    return Graph(tuple(nodes), graph.inputs, graph.outputs, blocks, graph.name)


def _all_reduce(value: Value, reduced: Value, near: Node, group: dict[str, Any]) -> Node:
    repeated = reduced.count > 1
    return replace(
        near,
        name=reduced.name,
        op="all_reduce",
        inputs=(value,),
        outputs=(reduced,),
        attrs={**group, "during": "backward"},
        phase="communication",
        count=reduced.count,
        instances=tuple(f"{n}.all_reduce" for n in near.instances) if repeated else (),
        instance_modules=near.instance_modules if repeated else (),
        origin=near.origin or near.name,
    )
