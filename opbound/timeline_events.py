"""The simulated step as the report's timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports import TimelineEvent

if TYPE_CHECKING:
    from costing.step import PartCost, StepCost


def timeline_events(step: StepCost) -> list[TimelineEvent]:
    """The passes of every stage; of a step that is one pass on one stage, its operators."""
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
    """Forward and backward passes of every micro-batch on every stage."""
    return [
        TimelineEvent(
            stage=event.stage,
            stream="compute",
            name=f"chunk {event.work.chunk}",
            phase="forward" if event.work.forward else "backward",
            microbatch=event.work.microbatch,
            start_s=event.start_s,
            duration_s=event.end_s - event.start_s,
        )
        for event in step.pipeline.events
    ]


def _updates(step: StepCost) -> list[TimelineEvent]:
    """The optimizer on every stage, after the last gradients are reduced."""
    events = []
    for index, parts in enumerate(step.stages):
        update_s = sum(part.times.optimizer.time_s for part in parts)
        if update_s <= 0:
            continue
        end_s = max(event.end_s for event in step.pipeline.events if event.stage == index)
        events.append(
            TimelineEvent(
                stage=index,
                stream="compute",
                name="update",
                phase="optimizer",
                microbatch=None,
                start_s=end_s + parts[0].times.tail_s,
                duration_s=update_s,
            )
        )
    return events
