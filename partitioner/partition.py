"""Partitions a graph: every strategy that is asked for, in order, then the pipeline."""

from __future__ import annotations

from collections.abc import Callable

from graph_ir.graph import Graph, Node
from graph_ir.partitioned import PartitionedGraph, Stage
from partitioner.pipeline import Cutter
from partitioner.strategies import split_passes
from partitioner.strategy import Strategy

PIPELINE_ORDER = 50
"""Strategies of lower order see the whole graph, those of higher order each stage's own."""


def partition(
    graph: Graph, strategy: Strategy, node_time: Callable[[Node], float]
) -> PartitionedGraph:
    """The graphs of all ranks.

    Args:
        graph: folded graph at the size of one micro-batch of all data-parallel replicas together.
        strategy: mesh and options.
        node_time: seconds of one application of a node, to balance pipeline stages by.

    Raises:
        MeshError: if an axis does not divide what it should split, or the graph cannot be cut.
    """
    passes = split_passes()
    for step in passes:
        if step.order < PIPELINE_ORDER:
            graph = step.apply(graph, strategy)
    axis = strategy.mesh.axis("pp")
    stages = [Stage(graph, "the whole model")]
    if axis.size > 1:
        cutter = Cutter(graph, node_time, axis, strategy.layout)
        stages = cutter.cut(cutter.bounds())
    finished: dict[Graph, Graph] = {}
    for stage in stages:
        if stage.graph in finished:
            continue
        local = stage.graph
        for step in passes:
            if step.order > PIPELINE_ORDER:
                local = step.apply(local, strategy)
        finished[stage.graph] = local
    placed = tuple(Stage(finished[s.graph], s.label) for s in stages)
    return PartitionedGraph(placed, strategy.mesh.devices, axis.stride)
