"""Eager execution computes what nothing reads, a compiler does not."""

import numpy as np

from graph_ir.evaluate import run_graph
from graph_ir.graph import GraphBuilder
from graph_ir.tensor_type import DType, TensorType
from graph_ir.unread import without_unread

SQUARE = TensorType((4, 4), DType.FLOAT32)


def test_drops_what_leads_to_no_output_and_computes_the_same() -> None:
    builder = GraphBuilder("test")
    x = builder.add_input("x", SQUARE)
    lost = builder.add_input("lost", SQUARE, "constant")
    (y,) = builder.emit("relu", [x], [SQUARE], name="y")
    (in_vain,) = builder.emit("matmul", [y, lost], [SQUARE], name="in_vain")
    builder.emit("exp", [in_vain], [SQUARE], name="after")
    graph = builder.build([y])
    after = without_unread(graph)
    assert [n.op for n in graph.nodes] == ["relu", "matmul", "exp"]
    assert [n.op for n in after.nodes] == ["relu"]
    assert [v.name for v in after.inputs] == ["x"]
    numbers = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    (found,) = (run_graph(after, {x: numbers})[v] for v in after.outputs)
    np.testing.assert_allclose(found, np.maximum(numbers, 0))
    assert without_unread(after) is after
