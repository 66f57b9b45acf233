"""Gives logical axes other sizes on one side of the collectives: every tensor and equation there follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from graph_ir.equation import Equation
from graph_ir.graph import Block, Carry, Graph, Node, Value
from graph_ir.localize import local_equation
from graph_ir.logical_axes import Axis, LogicalAxes


def resized(
    graph: Graph, axes: LogicalAxes, sizes: Mapping[Axis, int], start: Iterable[Node]
) -> Graph:
    """The same graph with logical axes of other sizes around some nodes.

    Args:
        graph: any graph, folded or split too.
        axes: its logical axes.
        sizes: the new size of each axis to change.
        start: nodes from which the change spreads along the axes; it ends at collectives, whose operand
            and result may then differ in size.
    """
    region = _region(graph, axes, frozenset(sizes), start)
    known: dict[Value, Value] = {}

    def size_of(size: int, own: Iterable[Axis]) -> int:
        for axis in own:
            if axis in sizes:
                size = size // axis.size * sizes[axis]
        return size

    def value_of(value: Value) -> Value:
        if value not in region:
            return value
        if value not in known:
            dims = zip(value.type.shape, axes.of_value(value), strict=True)
            shape = tuple(size_of(size, own) for size, own in dims)
            same = shape == value.type.shape
            known[value] = value if same else replace(value, type=value.type.with_shape(shape))
        return known[value]

    def attrs_of(node: Node) -> Mapping[str, Any]:
        attrs = dict(node.attrs)
        for name, own in axes.of_node(node).items():
            size = node.equation.sizes[name]
            length = size_of(size, own)
            if length == size:
                continue
            if node.definition.localize is not None:
                attrs.update(node.definition.localize(node, name, 0, length))
            if isinstance(attrs.get("equation"), Equation):
                attrs["equation"] = local_equation(attrs["equation"], name, length)
        return attrs

    def node_of(node: Node) -> Node:
        inputs = tuple(value_of(v) for v in node.inputs)
        outputs = tuple(value_of(v) for v in node.outputs)
        if inputs == node.inputs and outputs == node.outputs:
            return node
        attrs = attrs_of(node)
        if node.definition.kind == "collective":
            # Where a dim's factors lie is no longer known, once one of them has another size.
            attrs = {**attrs, "around": (1, 1)}
        return replace(node, inputs=inputs, outputs=outputs, attrs=attrs)

    def block_of(block: Block) -> Block:
        carries = tuple(
            Carry(value_of(c.argument), value_of(c.initial), value_of(c.result))
            for c in block.carries
        )
        collected = frozenset(value_of(v) for v in block.collected)
        return Block(block.start, block.stop, block.count, carries, collected)

    return Graph(
        tuple(node_of(n) for n in graph.nodes),
        tuple(value_of(v) for v in graph.inputs),
        tuple(value_of(v) for v in graph.outputs),
        tuple(block_of(b) for b in graph.blocks),
        graph.name,
    )


def _region(
    graph: Graph, axes: LogicalAxes, changed: frozenset[Axis], start: Iterable[Node]
) -> set[Value]:
    """Values with one of the axes that no collective separates from the nodes."""
    touching: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        if node.definition.kind != "collective":
            for value in (*node.inputs, *node.outputs):
                touching.setdefault(value, []).append(node)
    found: set[Value] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        for value in (*node.inputs, *node.outputs):
            if value not in found and not changed.isdisjoint(axes.all_of(value)):
                found.add(value)
                waiting += touching.get(value, [])
    return found
