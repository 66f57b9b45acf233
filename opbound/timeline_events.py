"""The simulated step as the report's timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports import TimelineEvent

if TYPE_CHECKING:
    from costing.step import PartCost, StepCost


def timeline_events(step: StepCost) -> list[TimelineEvent]:
    """The passes of every rank; of a step that is one pass on one rank, its operators."""
    if len(step.pipeline.events) <= 2 and len(step.stages) == 1:
        return _operators(step.stages[0][0])
    return [*_passes(step), *_updates(step)]


def _operators(part: PartCost) -> list[TimelineEvent]:
    """Nodes on their streams; of a repeated block the first repetition."""
    events = []
    start_s = 0.0
    for run in (part.times.forward, part.times.gradients, part.times.optimizer):
        for span in run.spans:
            events.append(
                TimelineEvent(
                    stage=0,
                    stream="communication" if span.communication else "compute",
                    name=span.node.name,
                    phase=span.node.phase,
                    microbatch=0,
                    start_s=start_s + span.start_s,
                    duration_s=span.end_s - span.start_s,
                )
            )
        start_s += run.time_s
    return events


def _passes(step: StepCost) -> list[TimelineEvent]:
    """Forward and backward passes of every micro-batch on every rank along the pipeline."""
    from costing.pipeline_work import FORWARD, WEIGHT

    places = [{stage: i for i, stage in enumerate(row)} for row in step.pipeline.layout]
    return [
        TimelineEvent(
            stage=event.rank,
            stream="compute",
            name=f"chunk {places[event.rank][work.stage]}"
            + (" gradients of weights" if work.kind == WEIGHT else ""),
            phase="forward" if work.kind == FORWARD else "backward",
            microbatch=work.microbatch,
            start_s=event.start_s,
            duration_s=event.end_s - event.start_s,
        )
        for event in step.pipeline.events
        for work in event.works
    ]


def _updates(step: StepCost) -> list[TimelineEvent]:
    """The optimizer on every rank, after the last gradients are reduced."""
    events = []
    for index, parts in enumerate(step.stages):
        update_s = sum(part.times.optimizer.time_s for part in parts)
        if update_s <= 0:
            continue
        events.append(
            TimelineEvent(
                stage=index,
                stream="compute",
                name="update",
                phase="optimizer",
                microbatch=None,
                start_s=step.pipeline.ends_s[index] + parts[0].times.tail_s,
                duration_s=update_s,
            )
        )
    return events
