"""One step of the whole system: stages, schedule, gradient reduction, update, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costing.collectives import collective_cost
from costing.hardware import Hardware
from costing.kernels import Group, inner_values, price_graph
from costing.memory import MemoryUse, memory_use
from costing.node_cost import NodePricer
from costing.op_cost import OpCost
from costing.schedule import PipelineTimeline, Schedule, simulate
from costing.timeline import StageTimes, stage_times
from graph_ir.graph import Graph, Node


@dataclass(frozen=True)
class Stage:
    """One rank's part of one pipeline stage."""

    graph: Graph
    """Of one micro-batch."""
    sent_bytes: int = 0
    """Activations that go to the next stage; as many come back as gradients."""
    groups: Sequence[Group] | None = None
    """Nodes that run as one kernel; None: eager."""


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
    costs: tuple[dict[Node, OpCost], ...]
    stages: tuple[StageTimes, ...]
    pipeline: PipelineTimeline
    memory: tuple[MemoryUse, ...]

    @property
    def fullest(self) -> int:
        """Index of the stage with the highest peak of memory."""
        peaks = [use.peak_bytes for use in self.memory]
        return peaks.index(max(peaks))


def step_cost(
    stages: Sequence[Stage],
    hardware: Hardware,
    schedule: Schedule,
    microbatches: int = 1,
    stage_stride: int = 1,
    pricer: NodePricer | None = None,
) -> StepCost:
    """Prices one step.

    Args:
        stages: in pipeline order; equal graphs may be the same object and are priced once.
        hardware: the device.
        schedule: pipeline schedule.
        microbatches: per step and data-parallel replica.
        stage_stride: distance between a rank and its peer on the next stage.
        pricer: keeps prices between calls.

    Raises:
        HardwareError: if the device cannot run a node or the mesh does not fit its links.
        MeshError: if the schedule does not fit the micro-batches.
    """
    pricer = pricer or NodePricer(hardware)
    costs: list[dict[Node, OpCost]] = []
    times: list[StageTimes] = []
    known: dict[int, int] = {}
    for stage in stages:
        same = known.setdefault(id(stage.graph), len(costs))
        if same < len(costs):
            costs.append(costs[same])
            times.append(times[same])
            continue
        costs.append(price_graph(stage.graph, hardware, stage.groups, pricer))
        times.append(stage_times(stage.graph, costs[-1]))
    pipeline = simulate(
        schedule,
        [t.forward.time_s for t in times],
        [t.backward.time_s for t in times],
        microbatches,
        _transfer_s(stages, hardware, stage_stride),
    )
    ends = [0.0] * len(stages)
    for event in pipeline.events:
        ends[event.stage] = max(ends[event.stage], event.end_s)
    tails = [t.tail_s + t.optimizer.time_s for t in times]
    step_s = max(end + tail for end, tail in zip(ends, tails, strict=True))
    work = [b + tail for b, tail in zip(pipeline.busy_s, tails, strict=True)]
    busiest = work.index(max(work))
    own = times[busiest]
    exposed = microbatches * (own.forward.exposed_s + own.backward.exposed_s)
    exposed += own.tail_s + own.optimizer.exposed_s
    bubble = max(step_s - work[busiest], 0.0)
    memory = [
        memory_use(
            stage.graph,
            in_flight / schedule.chunks,
            () if stage.groups is None else inner_values(stage.graph, stage.groups),
        )
        for stage, in_flight in zip(stages, pipeline.in_flight, strict=True)
    ]
    return StepCost(
        step_time_s=step_s,
        compute_s=work[busiest] - exposed,
        exposed_communication_s=exposed,
        bubble_fraction=bubble / step_s if step_s > 0 else 0.0,
        busiest=busiest,
        costs=tuple(costs),
        stages=tuple(times),
        pipeline=pipeline,
        memory=tuple(memory),
    )


def _transfer_s(stages: Sequence[Stage], hardware: Hardware, stride: int) -> float:
    """Time to hand one micro-batch on to the next stage."""
    largest = max(stage.sent_bytes for stage in stages)
    if len(stages) == 1 or largest == 0:
        return 0.0
    return float(collective_cost(hardware, "send", largest, 2, stride).time_s[0])
