"""Partitions a graph: every strategy that is asked for, in order, then the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from graph_ir.garbage import no_collection
from graph_ir.graph import Graph, Node
from graph_ir.partitioned import PartitionedGraph, Stage
from partitioner.cell_memory import zero_shares
from partitioner.pipeline import Cutter
from partitioner.shared_passes import SharedPasses
from partitioner.strategies import split_passes
from partitioner.strategy import Prices, Strategy

PIPELINE_ORDER = 50
"""Strategies of lower order see the whole graph, those of higher order each stage's own."""


@no_collection()
def partition(
    graph: Graph,
    strategy: Strategy,
    node_time: Callable[[Node], float],
    done: frozenset[str] = frozenset(),
    shared: SharedPasses | None = None,
) -> PartitionedGraph:
    """The graphs of all ranks.

    Args:
        graph: folded graph at the size of one micro-batch of all data-parallel replicas together.
        strategy: mesh and options.
        node_time: seconds of one application of a node, to balance pipeline stages by.
        done: names of passes that the graph has been through already.
        shared: what earlier strategies on the same graph have in common with this one.

    Raises:
        MeshError: if an axis does not divide what it should split, or the graph cannot be cut.
    """
    passes = [step for step in split_passes() if step.name not in done]
    shared = shared or SharedPasses()
    if strategy.prices is None:
        strategy = replace(strategy, prices=Prices(node_time))
    for step in passes:
        if step.order < PIPELINE_ORDER:
            graph = shared.apply(step, graph, strategy)
    axis = strategy.mesh.axis("pp")
    stages = [Stage(graph, "the whole model")]
    bounds: tuple[int, ...] = ()
    if axis.size > 1:
        replicas = prod(strategy.mesh.axis(name).size for name in ("dp", "cp", "ep", "tp_depth"))
        cutter = Cutter(graph, node_time, axis, strategy.pipeline.layout)
        shared_by = strategy.shard_group or replicas
        bounds = cutter.bounds(strategy.pipeline, zero_shares(strategy.zero, shared_by))
        stages = cutter.cut(bounds)
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
    return PartitionedGraph(placed, strategy.mesh.devices, axis.stride, bounds)
