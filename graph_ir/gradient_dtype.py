"""Gradients of weights in a wider dtype than the weights', as mixed-precision training keeps them.

A product adds up in fp32 whatever it multiplies; with its gradients kept in fp32 it writes what it has, and
sums over micro-batches and over ranks are of that dtype too (Megatron-LM with bf16, its
--accumulate-allreduce-grads-in-fp32; FSDP's reduce_dtype).
"""

from __future__ import annotations

from graph_ir.graph import Block, Carry, Graph, Node, Value
from graph_ir.tensor_type import DType, TensorType


def with_gradient_dtype(graph: Graph, dtype: DType) -> Graph:
    """The same training graph, with the gradients that the optimizer reads in a dtype.

    Args:
        graph: with optimizer nodes; folded or not.
        dtype: gradients of at least its width stay as they are.
    """
    retyped = {
        value: value.altered(type=TensorType(value.type.shape, dtype))
        for value in _gradients(graph, dtype)
    }

    def of(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(retyped.get(v, v) for v in values)

    def node_of(node: Node) -> Node:
        inputs, outputs = of(node.inputs), of(node.outputs)
        same = inputs == node.inputs and outputs == node.outputs
        return node if same else node.altered(inputs=inputs, outputs=outputs)

    def block_of(block: Block) -> Block:
        carries = tuple(Carry(*of((c.argument, c.initial, c.result))) for c in block.carries)
        collected = frozenset(of(tuple(block.collected)))
        return Block(block.start, block.stop, block.count, carries, collected)

    return Graph(
        tuple(node_of(n) for n in graph.nodes),
        graph.inputs,
        of(graph.outputs),
        tuple(block_of(b) for b in graph.blocks),
        graph.name,
    )


def _gradients(graph: Graph, dtype: DType) -> set[Value]:
    """What optimizers read as gradients, and what these are views of, as far as it is narrower."""
    carried = {c.result: c for b in graph.blocks for c in b.carries}
    waiting = [node.inputs[1] for node in graph.nodes if node.definition.kind == "optimizer"]
    found: set[Value] = set()
    while waiting:
        value = waiting.pop()
        maker = graph.producers.get(value)
        if value in found or value.type.dtype.bits >= dtype.bits or value in graph.inputs:
            continue
        found.add(value)
        if value in graph.carries:
            waiting.append(graph.carries[value].initial)
        if value in carried:
            waiting.append(carried[value].argument)
        if maker is not None and maker.definition.is_view(maker):
            waiting.append(maker.inputs[maker.definition.view_of or 0])
    return found
