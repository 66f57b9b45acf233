"""One step of the whole system: stages, schedule, gradient reduction, update, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from costing.accumulation import with_accumulation
from costing.backward_split import deferred_bytes, weight_gradient_nodes
from costing.hardware import Hardware
from costing.host import issued_by_host
from costing.kernels import Group, eager_groups, inner_values, price_graph
from costing.memory import MemoryUse, memory_use, stage_memory
from costing.node_cost import NodePricer
from costing.op_cost import OpCost
from costing.pipeline_timeline import PassSeconds, PipelineTimeline, StageSeconds, simulate
from costing.pipeline_work import BACKWARD, FORWARD, INPUT, WEIGHT
from costing.runtime import overhead_bytes
from costing.schedule import Schedule
from costing.timeline import PassTime, StageTimes, late_sends, once_per_step, stage_times
from graph_ir.graph import Graph, Node


@dataclass(frozen=True)
class PartCost:
    """What the graph of one pipeline stage costs on one of its ranks."""

    graph: Graph
    costs: dict[Node, OpCost]
    times: StageTimes
    memory: MemoryUse
    """Of one micro-batch."""
    deferred_bytes: int = 0
    """What one micro-batch keeps for the gradients of weights, where a schedule puts them off."""
    runs: int = 1
    """Micro-batches that the rank takes through this stage in a step."""


@dataclass(frozen=True)
class StepCost:
    """What a step takes."""

    step_time_s: float
    compute_s: float
    """Time in which the busiest rank computes."""
    exposed_communication_s: float
    """What communication adds to the busiest rank's time: it waits, or works beside it and slower."""
    bubble_fraction: float
    """Share of the step in which the busiest rank waits for another stage."""
    busiest: int
    """Index of the pipeline rank that works longest."""
    stages: tuple[tuple[PartCost, ...], ...]
    """Of each rank along the pipeline, the stages that it holds."""
    pipeline: PipelineTimeline
    memory: tuple[MemoryUse, ...]
    """Of each rank along the pipeline."""

    @property
    def fullest(self) -> int:
        """Index of the rank with the highest peak of memory."""
        peaks = [use.peak_bytes for use in self.memory]
        return peaks.index(max(peaks))


def step_cost(
    stages: Sequence[Graph],
    hardware: Hardware,
    schedule: Schedule,
    microbatches: int = 1,
    groups: Callable[[Graph], Sequence[Group]] = eager_groups,
    pricer: NodePricer | None = None,
    overlap: bool = True,
) -> StepCost:
    """Prices one step.

    Args:
        stages: one rank's graph for one micro-batch of every pipeline stage, in model order; where the
            schedule gives a rank several stages, there are as many more. Equal ones may be the same
            object, priced once.
        hardware: the device.
        schedule: pipeline schedule.
        microbatches: per step and data-parallel replica.
        groups: says which nodes of a graph run as one kernel.
        pricer: keeps prices between calls.
        overlap: whether collectives run beside kernels and beside those of other links.

    Raises:
        HardwareError: if the device cannot run a node or the mesh does not fit its links.
        MeshError: if the schedule does not fit the stages or the micro-batches.
    """
    pricer = pricer or NodePricer(hardware)
    late = late_sends(stages)
    apart = schedule.parts_backward
    known = {
        graph: part_cost(graph, hardware, groups, pricer, late, apart, microbatches, overlap)
        for graph in dict.fromkeys(stages)
    }
    seconds = {graph: _stage_seconds(part) for graph, part in known.items()}
    pipeline = simulate(
        schedule, [seconds[g] for g in stages], len(stages) // schedule.chunks, microbatches
    )
    parts = tuple(
        tuple(
            replace(known[stages[stage]], runs=runs)
            for stage, runs in zip(row, pipeline.runs(rank), strict=True)
        )
        for rank, row in enumerate(pipeline.layout)
    )
    tails = [_tail_s(row) for row in parts]
    work = [b + tail for b, tail in zip(pipeline.busy_s, tails, strict=True)]
    step_s = max(end + tail for end, tail in zip(pipeline.ends_s, tails, strict=True))
    busiest = work.index(max(work))
    exposed = max(work[busiest] - _compute_s(parts[busiest]), 0.0)
    bubble_s = max(step_s - work[busiest], 0.0)
    return StepCost(
        step_time_s=step_s,
        compute_s=work[busiest] - exposed,
        exposed_communication_s=exposed,
        bubble_fraction=bubble_s / step_s if step_s > 0 else 0.0,
        busiest=busiest,
        stages=parts,
        pipeline=pipeline,
        memory=tuple(_memory(row, pipeline, rank, hardware) for rank, row in enumerate(parts)),
    )


def part_cost(
    graph: Graph,
    hardware: Hardware,
    groups: Callable[[Graph], Sequence[Group]] = eager_groups,
    pricer: NodePricer | None = None,
    late: frozenset[str] = frozenset(),
    apart: bool = False,
    microbatches: int = 1,
    overlap: bool = True,
) -> PartCost:
    """Prices one rank's graph on its own: every node, the streams, the memory.

    Args:
        graph: of one micro-batch on one rank.
        hardware: the device.
        groups: says which nodes of a graph run as one kernel.
        pricer: keeps prices between calls.
        late: names the `send` nodes that serve another stage's update (`timeline.late_sends`).
        apart: whether the gradients of weights may run apart from the rest of the backward pass.
        microbatches: whose gradients are summed up.
        overlap: see `step_cost`.
    """
    kernels = groups(graph)
    costs = price_graph(graph, hardware, kernels, pricer)
    costs = with_accumulation(graph, hardware, costs, microbatches)
    costs = issued_by_host(graph, hardware, costs, kernels)
    inner = inner_values(graph, kernels)
    memory = memory_use(graph, inner)
    if not apart:
        return PartCost(graph, costs, stage_times(graph, costs, late, overlap=overlap), memory)
    weights = weight_gradient_nodes(graph, once_per_step(graph, late))
    times = stage_times(graph, costs, late, weights, overlap)
    return PartCost(graph, costs, times, memory, deferred_bytes(graph, weights, inner))


def _stage_seconds(part: PartCost) -> StageSeconds:
    """The passes of one micro-batch through a stage; without training only the forward one."""
    times = part.times
    passes = {FORWARD: _seconds(part, times.forward, "forward")}
    if times.backward.time_s > 0:
        passes[BACKWARD] = _seconds(part, times.backward, "backward")
        inputs, weights = times.apart or (times.backward, PassTime(0.0, 0.0))
        passes[INPUT] = _seconds(part, inputs, "backward")
        passes[WEIGHT] = _seconds(part, weights, "")
    return passes


def _seconds(part: PartCost, run: PassTime, direction: str) -> PassSeconds:
    sent = 0.0
    for node, cost in part.costs.items():
        if node.op == "send" and node not in part.times.once:
            during = "forward" if node.during == "forward" else "backward"
            sent += cost.time_s * node.count if during == direction else 0.0
    return PassSeconds(run.time_s, run.compute_s, run.communication_s, sent)


def _tail_s(row: Sequence[PartCost]) -> float:
    """What follows a rank's last pass: the rest of its first stage's gradients, and the update."""
    return row[0].times.tail_s + sum(part.times.optimizer.time_s for part in row)


def _compute_s(row: Sequence[PartCost]) -> float:
    return sum(
        part.runs * (part.times.forward.compute_s + part.times.backward.compute_s)
        + part.times.optimizer.compute_s
        for part in row
    )


def _memory(
    row: Sequence[PartCost], pipeline: PipelineTimeline, rank: int, hardware: Hardware
) -> MemoryUse:
    uses = [part.memory for part in row]
    saved = [use.saved_bytes for use in uses]
    held = pipeline.held(rank, saved, [part.deferred_bytes for part in row])
    use = stage_memory(uses, held)
    overhead = overhead_bytes(hardware, [part.graph for part in row], use.rounding_bytes)
    return replace(use, overhead_bytes=overhead)
