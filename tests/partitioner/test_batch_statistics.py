"""Data-parallel batch norm: every device takes statistics over its own part; only gradients are reduced."""

from __future__ import annotations

from graph_ir.graph import GraphBuilder
from graph_ir.logical_axes import LogicalAxes
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph
from partitioner.mesh import Mesh
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies.data import batch_axes


def fp32(*shape: int) -> TensorType:
    return TensorType(shape, DType.FLOAT32)


def test_statistics_are_not_reduced() -> None:
    b = GraphBuilder("net")
    x = b.add_input("x", fp32(4, 3, 8, 8), "input", dim_names=("batch", None, None, None))
    weight = b.add_input("weight", fp32(6, 3, 3, 3), "parameter")
    scale = b.add_input("scale", fp32(6), "parameter")
    shift = b.add_input("shift", fp32(6), "parameter")
    (y,) = b.emit("conv", [x, weight], [fp32(4, 6, 6, 6)])
    results = [fp32(4, 6, 6, 6), fp32(6), fp32(6)]
    y, _, _ = b.emit("batch_norm", [y, scale, shift], results, {"training": True})
    (loss,) = b.emit("reduce_mean", [y], [fp32()], {"axes": (0, 1, 2, 3)})
    graph = training_graph(b.build([loss]), optimizer="sgd")
    axes = LogicalAxes(graph)
    batch = batch_axes(graph, axes)
    plan = Plan(Mesh({"dp": 2}).axis("dp"), batch, batch=batch)
    sent = [n for n in split_graph(graph, axes, plan).nodes if n.phase == "communication"]
    assert {n.op for n in sent} == {"all_reduce"}
    parameters = sum(v.type.bytes for v in graph.parameters)
    assert sum(n.inputs[0].type.bytes for n in sent) == parameters
