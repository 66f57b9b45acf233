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
from costing.timeline import StageTimes, late_sends, stage_times
from graph_ir.graph import Graph, Node


@dataclass(frozen=True)
class PartCost:
    """What a rank's graph costs: a pipeline stage, or one of the chunks it holds."""

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
    stages: tuple[tuple[PartCost, ...], ...]
    """The parts of each stage."""
    pipeline: PipelineTimeline
    memory: tuple[MemoryUse, ...]
    """Of each stage."""

    @property
    def fullest(self) -> int:
        """Index of the stage with the highest peak of memory."""
        peaks = [use.peak_bytes for use in self.memory]
        return peaks.index(max(peaks))


def step_cost(
    stages: Sequence[Sequence[Graph]],
    hardware: Hardware,
    schedule: Schedule,
    microbatches: int = 1,
    groups: Callable[[Graph], Sequence[Group]] = eager_groups,
    pricer: NodePricer | None = None,
) -> StepCost:
    """Prices one step.

    Args:
        stages: of each pipeline stage, one rank's graph for one micro-batch: one for all its layers
            (which the schedule shares out evenly among its chunks) or one per chunk. Equal ones may
            be the same object, priced once.
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
    graphs = list(dict.fromkeys(graph for stage in stages for graph in stage))
    late = late_sends(graphs)
    known = {graph: part_cost(graph, hardware, groups, pricer, late) for graph in graphs}
    parts = tuple(tuple(known[graph] for graph in stage) for stage in stages)
    pipeline = simulate(
        schedule,
        [_chunk_times([p.times.forward.time_s for p in stage]) for stage in parts],
        [_chunk_times([p.times.backward.time_s for p in stage]) for stage in parts],
        microbatches,
        max(_transfer_s(part) for part in known.values()),
    )
    tails = [_tail_s(stage) for stage in parts]
    work = [b + tail for b, tail in zip(pipeline.busy_s, tails, strict=True)]
    ends = [0.0] * len(stages)
    for event in pipeline.events:
        ends[event.stage] = max(ends[event.stage], event.end_s)
    step_s = max(end + tail for end, tail in zip(ends, tails, strict=True))
    busiest = work.index(max(work))
    exposed = _exposed_s(parts[busiest], microbatches)
    bubble_s = max(step_s - work[busiest], 0.0)
    return StepCost(
        step_time_s=step_s,
        compute_s=work[busiest] - exposed,
        exposed_communication_s=exposed,
        bubble_fraction=bubble_s / step_s if step_s > 0 else 0.0,
        busiest=busiest,
        stages=parts,
        pipeline=pipeline,
        memory=tuple(
            _memory(stage, held, schedule.chunks)
            for stage, held in zip(parts, pipeline.in_flight, strict=True)
        ),
    )


def part_cost(
    graph: Graph,
    hardware: Hardware,
    groups: Callable[[Graph], Sequence[Group]] = eager_groups,
    pricer: NodePricer | None = None,
    late: frozenset[str] = frozenset(),
) -> PartCost:
    """Prices one rank's graph on its own: every node, the streams, the memory.

    `late` names the `send` nodes that serve another stage's update (`timeline.late_sends`).
    """
    kernels = groups(graph)
    costs = price_graph(graph, hardware, kernels, pricer)
    memory = memory_use(graph, inner_values(graph, kernels))
    return PartCost(graph, costs, stage_times(graph, costs, late), memory)


def _chunk_times(seconds: list[float]) -> float | list[float]:
    return seconds[0] if len(seconds) == 1 else seconds


def _tail_s(stage: Sequence[PartCost]) -> float:
    """What follows a stage's last pass: the rest of its first chunk's gradients, and the update."""
    return stage[0].times.tail_s + sum(part.times.optimizer.time_s for part in stage)


def _exposed_s(stage: Sequence[PartCost], microbatches: int) -> float:
    times = [part.times for part in stage]
    per_microbatch = sum(t.forward.exposed_s + t.backward.exposed_s for t in times)
    update = sum(t.optimizer.exposed_s for t in times)
    return microbatches * per_microbatch + times[0].tail_s + update


def _memory(stage: Sequence[PartCost], held: Sequence[int], chunks: int) -> MemoryUse:
    uses = [part.memory for part in stage]
    if len(uses) == 1:
        # One graph stands for all chunks: a micro-batch in one chunk saves its share of it.
        return stage_memory(uses, [sum(held) / chunks])
    return stage_memory(uses, held)


def _transfer_s(part: PartCost) -> float:
    """Time to hand one micro-batch on: activations forward or gradients back, the slower of both."""
    by_pass = {"forward": 0.0, "backward": 0.0}
    for node, cost in part.costs.items():
        if node.op == "send" and node not in part.times.once:
            direction = "forward" if node.during == "forward" else "backward"
            by_pass[direction] += cost.time_s * node.count
    return max(by_pass.values())
