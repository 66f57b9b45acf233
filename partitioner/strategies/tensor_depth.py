"""Tensor parallelism in two and a half dims: copies of the grid, each with samples of its own.

`tp=ROWSxCOLUMNSxDEPTH`: weights are the same in every layer of the depth, so their gradients are reduced over
it, and a product's messages are as much smaller as there are layers (Wang et al. 2021, "Tesseract", arXiv
2105.14500, section 3.1). What this does to the tensors is data parallelism; the layers share one micro-batch.
"""

from __future__ import annotations

from graph_ir.graph import Graph
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.data import batch_plan
from partitioner.strategy import Strategy


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits the samples over the mesh axis `tp_depth`."""
    mesh_axis = strategy.mesh.axis("tp_depth")
    if mesh_axis.size == 1:
        return graph
    axes = graph.axes
    rows, columns = strategy.mesh.axis("tp_rows").size, strategy.mesh.axis("tp").size
    return split_graph(graph, axes, batch_plan(graph, axes, mesh_axis, f"tp={rows}x{columns}x{{}}"))


PASS = Pass("tensor_depth", 12, apply, axis="tp_depth")
