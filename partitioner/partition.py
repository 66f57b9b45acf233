"""Partitions a graph: every strategy that is asked for, in order, then the pipeline."""

from __future__ import annotations

from collections.abc import Callable

from graph_ir.graph import Graph, Node
from graph_ir.partitioned import Chunk, PartitionedGraph, Stage
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
    per_stage = strategy.chunks_per_stage if axis.size > 1 else 1
    if axis.size > 1:
        chunks = Cutter(graph, node_time, axis).cut(axis.size * per_stage)
    else:
        chunks = [Chunk(graph, "the whole model")]
    finished: dict[int, Graph] = {}
    for chunk in chunks:
        if id(chunk.graph) in finished:
            continue
        local = chunk.graph
        for step in passes:
            if step.order > PIPELINE_ORDER:
                local = step.apply(local, strategy)
        finished[id(chunk.graph)] = local
    placed = [Chunk(finished[id(c.graph)], c.label) for c in chunks]
    stages = tuple(Stage(i, tuple(placed[i :: axis.size])) for i in range(axis.size))
    return PartitionedGraph(stages, strategy.mesh.devices, axis.stride)
