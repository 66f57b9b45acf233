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
    totals: dict[Value, Value] = {}
    for update in graph.nodes:
        if update.phase != "optimizer" or len(update.inputs) < 2:
            continue
        total = update.inputs[1]
        while (node := graph.producers.get(total)) and node.phase == "communication":
            total = node.inputs[node.outputs.index(total)]
        name = f"{total.name}.all_reduce.{group['axis']}"
        totals[total] = replace(total, name=name, kind="intermediate")
    place: list[int] = []
    nodes: list[Node] = []
    for node in graph.nodes:
        place.append(len(nodes))
        reads = node.phase in ("optimizer", "communication") and node.op != "send"
        own = tuple(totals.get(v, v) for v in node.inputs) if reads else node.inputs
        nodes.append(replace(node, inputs=own) if own != node.inputs else node)
        for value in node.outputs:
            if value in totals:
                reduced = totals[value]
                nodes.append(
                    replace(
                        node,
                        name=reduced.name,
                        op="all_reduce",
                        inputs=(value,),
                        outputs=(reduced,),
                        attrs={**group, "during": "backward"},
                        phase="communication",
                        instances=tuple(f"{n}.all_reduce" for n in node.instances),
                        origin=node.origin or node.name,
                    )
                )
    place.append(len(nodes))
    blocks = tuple(
        Block(place[b.start], place[b.stop], b.count, b.carries, b.collected) for b in graph.blocks
    )
    return Graph(tuple(nodes), graph.inputs, graph.outputs, blocks, graph.name)
