"""One step of the whole system: stages, schedule, gradient reduction, update, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costing.hardware import Hardware
from costing.kernels import Group, eager_groups, inner_values, price_graph
from costing.memory import MemoryUse, memory_use, stage_memory
from costing.node_cost import NodePricer
from costing.op_cost import OpCost
from costing.schedule import PipelineTimeline, Schedule, simulate
from costing.timeline import StageTimes, stage_times
from graph_ir.graph import Graph, Node
from graph_ir.partitioned import PartitionedGraph


@dataclass(frozen=True)
class ChunkCost:
    """What a chunk of the model costs on its rank."""

    graph: Graph
    costs: dict[Node, OpCost]
    times: StageTimes
    memory: MemoryUse
    """Of one micro-batch."""


@dataclass(frozen=True)
class StepCost:
    """What a step takes."""

    step_time_s: float
    compute_s: float
    """Time in which the busiest stage computes."""
    exposed_communication_s: float
    """Time in which the busiest stage waits for a collective."""
    bubble_fraction: float
    """Share of the step in which the busiest stage waits for another stage."""
    busiest: int
    """Index of the stage that works longest."""
    stages: tuple[tuple[ChunkCost, ...], ...]
    pipeline: PipelineTimeline
    memory: tuple[MemoryUse, ...]
    """Of each stage."""

    @property
    def fullest(self) -> int:
        """Index of the stage with the highest peak of memory."""
        peaks = [use.peak_bytes for use in self.memory]
        return peaks.index(max(peaks))


def step_cost(
    partitioned: PartitionedGraph,
    hardware: Hardware,
    schedule: Schedule,
    microbatches: int = 1,
    groups: Callable[[Graph], Sequence[Group]] = eager_groups,
    pricer: NodePricer | None = None,
) -> StepCost:
    """Prices one step.

    Args:
        partitioned: one rank's graphs; equal chunks share a graph and are priced once.
        hardware: the device.
        schedule: pipeline schedule.
        microbatches: per step and data-parallel replica.
        groups: says which nodes of a graph run as one kernel.
        pricer: keeps prices between calls.

    Raises:
        HardwareError: if the device cannot run a node or the mesh does not fit its links.
        MeshError: if the schedule does not fit the micro-batches.
    """
    pricer = pricer or NodePricer(hardware)
    known: dict[int, ChunkCost] = {}
    for stage in partitioned.stages:
        for chunk in stage.chunks:
            if id(chunk.graph) not in known:
                known[id(chunk.graph)] = chunk_cost(chunk.graph, hardware, groups, pricer)
    stages = tuple(tuple(known[id(c.graph)] for c in s.chunks) for s in partitioned.stages)
    pipeline = simulate(
        schedule,
        [[c.times.forward.time_s for c in chunks] for chunks in stages],
        [[c.times.backward.time_s for c in chunks] for chunks in stages],
        microbatches,
        _transfer_s(stages),
    )
    tails = [_tail_s(chunks) for chunks in stages]
    work = [b + tail for b, tail in zip(pipeline.busy_s, tails, strict=True)]
    ends = [0.0] * len(stages)
    for event in pipeline.events:
        ends[event.stage] = max(ends[event.stage], event.end_s)
    step_s = max(end + tail for end, tail in zip(ends, tails, strict=True))
    busiest = work.index(max(work))
    exposed = _exposed_s(stages[busiest], microbatches)
    bubble_s = max(step_s - work[busiest], 0.0)
    return StepCost(
        step_time_s=step_s,
        compute_s=work[busiest] - exposed,
        exposed_communication_s=exposed,
        bubble_fraction=bubble_s / step_s if step_s > 0 else 0.0,
        busiest=busiest,
        stages=stages,
        pipeline=pipeline,
        memory=tuple(
            stage_memory([c.memory for c in chunks], held)
            for chunks, held in zip(stages, pipeline.in_flight, strict=True)
        ),
    )


def chunk_cost(
    graph: Graph,
    hardware: Hardware,
    groups: Callable[[Graph], Sequence[Group]] = eager_groups,
    pricer: NodePricer | None = None,
) -> ChunkCost:
    """Prices one rank's graph on its own: every node, the streams, the memory."""
    kernels = groups(graph)
    costs = price_graph(graph, hardware, kernels, pricer)
    memory = memory_use(graph, inner_values(graph, kernels))
    return ChunkCost(graph, costs, stage_times(graph, costs), memory)


def _tail_s(chunks: Sequence[ChunkCost]) -> float:
    """What follows a stage's last pass: the rest of its first chunk's gradients, and the update."""
    return chunks[0].times.tail_s + sum(c.times.optimizer.time_s for c in chunks)


def _exposed_s(chunks: Sequence[ChunkCost], microbatches: int) -> float:
    per_microbatch = sum(c.times.forward.exposed_s + c.times.backward.exposed_s for c in chunks)
    update = sum(c.times.optimizer.exposed_s for c in chunks)
    return microbatches * per_microbatch + chunks[0].times.tail_s + update


def _transfer_s(stages: Sequence[Sequence[ChunkCost]]) -> float:
    """Time to hand one micro-batch on to the next stage: the slowest hand-over of all chunks."""
    slowest = 0.0
    for chunks in stages:
        for chunk in chunks:
            sends = [
                (n.phase, c.time_s * n.count) for n, c in chunk.costs.items() if n.op == "send"
            ]
            forward = sum(seconds for phase, seconds in sends if phase != "backward")
            slowest = max(slowest, forward, sum(s for _, s in sends) - forward)
    return slowest
