"""Finds the blocks a model repeats and keeps each once.

A run of nodes is a repeated block if it is followed by copies of itself: the same operators on the same
types, wired alike, where each copy has weights of its own and reads either what all copies share or what
the copy before it produced. No name is looked at, so the layers of an ONNX file fold as those of a module.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

from graph_ir.graph import Block, Carry, Graph, Node, Value
from graph_ir.repeats import Run, Wiring, repeated_runs

_NUMBER = re.compile(r"(\d+)")


def name_pattern(names: Sequence[str]) -> str:
    """One name for many: `layers.0.fc`, `layers.1.fc` -> `layers.[0-1].fc`."""
    common = os.path.commonprefix(list(names)).rstrip("0123456789")  # noqa: RUF071  (no paths)
    # Numbers stand at the odd places.
    parts = [_NUMBER.split(name[len(common) :]) for name in names]
    if len({len(p) for p in parts}) != 1:
        return names[0]
    joined = [common]
    for place, column in enumerate(zip(*parts, strict=True)):
        if len(set(column)) == 1:
            joined.append(column[0])
        elif place % 2:
            joined.append(f"[{column[0]}-{column[-1]}]")
        else:
            return names[0]
    return "".join(joined)


def fold(graph: Graph) -> Graph:
    """Keeps one copy of every repeated block.

    Args:
        graph: unfolded.

    Returns:
        A graph with the same meaning; its `blocks` list what was folded. Equal to `graph` if nothing
        repeats.
    """
    runs = repeated_runs(graph)
    if not runs:
        return graph
    rename: dict[Value, Value] = {}
    dropped: set[Value] = set()
    nodes: list[Node] = []
    blocks: list[Block] = []
    position = 0
    for run, wiring in runs:
        nodes += [_rewired(n, rename) for n in graph.nodes[position : run.start]]
        position = run.stop
        start = len(nodes)
        _stack_inputs(graph, run, wiring, rename, dropped)
        arguments = {
            key: Value(f"{key[1].name}.carried", key[1].type, "carried", run.count)
            for key in wiring.carries
        }
        for offset in range(run.period):
            copies = [graph.nodes[run.start + k * run.period + offset] for k in range(run.count)]
            node = copies[0]
            outputs = tuple(
                replace(v, name=name_pattern([c.outputs[i].name for c in copies]), count=run.count)
                for i, v in enumerate(node.outputs)
            )
            operands = tuple(
                arguments[wiring.slots[offset, slot]]
                if (offset, slot) in wiring.slots
                else rename.get(v, v)
                for slot, v in enumerate(node.inputs)
            )
            for copy in (copies[0], copies[-1]):
                rename.update(zip(copy.outputs, outputs, strict=True))
            for copy in copies:
                dropped.update(copy.outputs)
            nodes.append(
                replace(
                    node,
                    name=name_pattern([c.name for c in copies]),
                    module=name_pattern([c.module for c in copies]),
                    inputs=operands,
                    outputs=outputs,
                    count=run.count,
                    instances=tuple(c.name for c in copies),
                    instance_modules=tuple(c.module for c in copies),
                )
            )
        carries = tuple(
            Carry(arguments[key], rename.get(key[0], key[0]), rename[key[1]])
            for key in wiring.carries
        )
        collected = frozenset(rename[v] for v in wiring.collected)
        blocks.append(Block(start, len(nodes), run.count, carries, collected))
    nodes += [_rewired(n, rename) for n in graph.nodes[position:]]
    inputs = tuple(rename.get(v, v) for v in graph.inputs if v not in dropped)
    outputs = tuple(
        dict.fromkeys(rename.get(v, v) for v in graph.outputs if v in rename or v not in dropped)
    )
    return Graph(tuple(nodes), inputs, outputs, tuple(blocks), graph.name)


def _rewired(node: Node, rename: dict[Value, Value]) -> Node:
    if not any(v in rename for v in node.inputs):
        return node
    return replace(node, inputs=tuple(rename.get(v, v) for v in node.inputs))


def _stack_inputs(
    graph: Graph, run: Run, wiring: Wiring, rename: dict[Value, Value], dropped: set[Value]
) -> None:
    """Lets the first copy's weights stand for those of all copies."""
    for offset in range(run.period):
        copies = [graph.nodes[run.start + k * run.period + offset] for k in range(run.count)]
        for slot, value in enumerate(copies[0].inputs):
            if value not in wiring.stacked or value in rename:
                continue
            stack = [c.inputs[slot] for c in copies]
            rename[value] = replace(
                value, name=name_pattern([v.name for v in stack]), count=run.count
            )
            dropped.update(stack[1:])
