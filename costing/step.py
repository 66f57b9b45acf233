"""One step of the whole system: stages, schedule, gradient reduction, update, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costing.hardware import Hardware
from costing.kernels import Group, eager_groups, inner_values, price_graph
from costing.memory import MemoryUse, memory_use, pass_of, waiting_memory
from costing.node_cost import NodePricer
from costing.op_cost import OpCost
from costing.schedule import PipelineTimeline, Schedule, simulate
from costing.timeline import StageTimes, stage_times
from graph_ir.graph import Graph, Node
from graph_ir.partitioned import PartitionedGraph


@dataclass(frozen=True)
class StageCost:
    """What one pipeline stage costs on each of its ranks."""

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
    stages: tuple[StageCost, ...]
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
        partitioned: one rank's graphs; equal stages share a graph, priced once.
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
    known: dict[Graph, StageCost] = {}
    for stage in partitioned.stages:
        if stage.graph not in known:
            known[stage.graph] = stage_cost(stage.graph, hardware, groups, pricer)
    stages = tuple(known[stage.graph] for stage in partitioned.stages)
    pipeline = simulate(
        schedule,
        [stage.times.forward.time_s for stage in stages],
        [stage.times.backward.time_s for stage in stages],
        microbatches,
        max(_transfer_s(stage) for stage in known.values()),
    )
    tails = [s.times.tail_s + s.times.optimizer.time_s for s in stages]
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
            waiting_memory(stage.memory, sum(held) / schedule.chunks)
            for stage, held in zip(stages, pipeline.in_flight, strict=True)
        ),
    )


def stage_cost(
    graph: Graph,
    hardware: Hardware,
    groups: Callable[[Graph], Sequence[Group]] = eager_groups,
    pricer: NodePricer | None = None,
) -> StageCost:
    """Prices one rank's graph on its own: every node, the streams, the memory."""
    kernels = groups(graph)
    costs = price_graph(graph, hardware, kernels, pricer)
    memory = memory_use(graph, inner_values(graph, kernels))
    return StageCost(graph, costs, stage_times(graph, costs), memory)


def _exposed_s(stage: StageCost, microbatches: int) -> float:
    times = stage.times
    per_microbatch = times.forward.exposed_s + times.backward.exposed_s
    return microbatches * per_microbatch + times.tail_s + times.optimizer.exposed_s


def _transfer_s(stage: StageCost) -> float:
    """Time to hand one micro-batch on: activations forward or gradients back, the slower of both."""
    by_pass = {"forward": 0.0, "backward": 0.0}
    for node, cost in stage.costs.items():
        if node.op == "send":
            direction = "forward" if pass_of(node) == "forward" else "backward"
            by_pass[direction] += cost.time_s * node.count
    return max(by_pass.values())
