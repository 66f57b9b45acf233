"""Replaces operators by simpler ones where their fused form needs a dim whole that shall be split.

A softmax over a split vocabulary is a maximum, a sum and elementwise work; the maximum and the sum are
reductions whose partial results are cheap to exchange. Records say how in `OpDef.decompose`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graph_ir.graph import Block, Carry, Graph, GraphBuilder, Node, Value
from graph_ir.op_def import DecomposeRule
from graph_ir.tensor_type import TensorType


class DecompositionBuilder:
    """Emits the nodes that replace one node."""

    def __init__(self, builder: GraphBuilder, node: Node) -> None:
        self._builder = builder
        self.node = node

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        result: TensorType,
        attrs: Mapping[str, Any] | None = None,
    ) -> Value:
        """Emits one node with one result in place of the original."""
        return self.emit_all(op, inputs, [result], attrs)[0]

    def emit_all(
        self,
        op: str,
        inputs: Sequence[Value],
        results: Sequence[TensorType],
        attrs: Mapping[str, Any] | None = None,
    ) -> list[Value]:
        """Emits one node in place of the original."""
        node = self.node
        made = self._builder.emit(
            op,
            inputs,
            results,
            attrs,
            name=f"{node.name}.{op}",
            module=node.module,
            phase=node.phase,
            count=node.count,
            instances=tuple(f"{name}.{op}" for name in node.instances),
            instance_modules=node.instance_modules,
            origin=node.origin or node.name,
        )
        return list(made)


def decompose(graph: Graph, wanted: Callable[[Node], bool], *, norms: bool = False) -> Graph:
    """Replaces the wanted nodes by what their records' `decompose` emits.

    A node derived from a decomposed one keeps its `origin`; the first replacement takes the old name.

    Args:
        graph: any graph.
        wanted: of the nodes with such a record, which to replace.
        norms: whether those with `decompose_norm` count as well.
    """

    def rule_of(node: Node) -> DecomposeRule | None:
        found = node.definition.decompose
        if found is None and norms:
            found = node.definition.decompose_norm
        return found if found is not None and wanted(node) else None

    if not any(map(rule_of, graph.nodes)):
        return graph
    builder = GraphBuilder(graph.name)
    builder.inputs = list(graph.inputs)
    rename: dict[Value, Value] = {}
    position: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        position[index] = len(builder.nodes)
        operands = tuple(rename.get(v, v) for v in node.inputs)
        rule = rule_of(node)
        if rule is not None:
            moved = replace(node, inputs=operands)
            results = rule(DecompositionBuilder(builder, moved), moved)
            rename.update(zip(node.outputs, results, strict=True))
        else:
            builder.nodes.append(
                node if operands == node.inputs else replace(node, inputs=operands)
            )
    position[len(graph.nodes)] = len(builder.nodes)
    blocks = [
        Block(
            position[b.start],
            position[b.stop],
            b.count,
            tuple(
                Carry(c.argument, rename.get(c.initial, c.initial), rename.get(c.result, c.result))
                for c in b.carries
            ),
            frozenset(rename.get(v, v) for v in b.collected),
        )
        for b in graph.blocks
    ]
    return builder.build([rename.get(v, v) for v in graph.outputs], blocks)
