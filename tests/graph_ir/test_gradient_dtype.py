"""Gradients in a wider dtype: the tensors change, the work and what else there is do not."""

import pytest

from graph_ir.fold import fold
from graph_ir.gradient_dtype import with_gradient_dtype
from graph_ir.graph import Graph, GraphBuilder
from graph_ir.ops.collective import message_bytes
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph
from partitioner.mesh import Mesh
from partitioner.partition import partition
from partitioner.strategy import Strategy


def model(layers: int, tied: bool = False) -> Graph:
    """Products with a bias; tied ones share one weight."""
    b = GraphBuilder("model")
    wide = TensorType((8, 8), DType.BFLOAT16)
    value = b.add_input("x", TensorType((4, 8), DType.BFLOAT16))
    shared = b.add_input("w", wide, "parameter") if tied else None
    for i in range(layers):
        weight = shared or b.add_input(f"layers.{i}.w", wide, "parameter")
        (value,) = b.emit("linear", [value, weight], [value.type], module=f"layers.{i}")
        (value,) = b.emit("relu", [value], [value.type], module=f"layers.{i}")
    return b.build([value])


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_what_the_optimizer_reads_is_wide_and_the_rest_as_before(folded: bool, tied: bool) -> None:
    forward = model(6, tied)
    plain = training_graph(fold(forward) if folded else forward)
    graph = with_gradient_dtype(plain, DType.FLOAT32)
    updates = [node for node in graph.nodes if node.phase == "optimizer"]
    assert updates
    for node in updates:
        assert node.inputs[0].type.dtype is DType.BFLOAT16
        assert node.inputs[1].type.dtype is DType.FLOAT32
    assert [n.flops for n in graph.nodes] == [n.flops for n in plain.nodes]
    changed = {
        new.op
        for new, old in zip(graph.nodes, plain.nodes, strict=True)
        if [v.type for v in new.outputs] != [v.type for v in old.outputs]
    }
    # Products write them, and sums (from zero) where a weight is used more than once.
    assert changed <= {"linear", "add", "fill"}
    known = {v for node in graph.nodes for v in node.outputs} | set(graph.inputs)
    known |= {c.argument for block in graph.blocks for c in block.carries}
    assert all(v in known for node in graph.nodes for v in node.inputs)


@pytest.mark.parametrize("zero", [0, 1])
def test_ranks_sum_them_in_their_dtype(zero: int) -> None:
    plain = training_graph(fold(model(6)))

    def sent(graph: Graph, phase: str) -> int:
        rank = (
            partition(graph, Strategy(Mesh({"dp": 2}), zero=zero), lambda node: 1.0).stages[0].graph
        )
        return sum(
            message_bytes(node) * node.count
            for node in rank.nodes
            if node.definition.kind == "collective"
            and (node.during == "backward") is (phase == "backward")
        )

    wide = with_gradient_dtype(plain, DType.FLOAT32)
    weights = 6 * 8 * 8
    assert sent(plain, "backward") == 2 * weights
    assert sent(wide, "backward") == 4 * weights
    # Updated weights are gathered as they are.
    assert sent(wide, "update") == sent(plain, "update") == (2 * weights if zero else 0)
