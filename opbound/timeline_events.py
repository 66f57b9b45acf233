"""The simulated step as the report's timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from reports import TimelineEvent

if TYPE_CHECKING:
    from costing.step import PartCost, StepCost
    from costing.timeline import Span
    from graph_ir.graph import Graph, Value


def timeline_events(step: StepCost) -> list[TimelineEvent]:
    """The passes of every rank; of a step that is one pass on one rank, its operators."""
    if len(step.pipeline.events) <= 2 and len(step.stages) == 1:
        return _operators(step.stages[0][0])
    return [*_passes(step), *_updates(step)]


def _operators(part: PartCost) -> list[TimelineEvent]:
    """Nodes on their streams; of a repeated block the first repetition, and the others as one event."""
    events: list[TimelineEvent] = []
    made: dict[Value, int] = {}
    start_s = 0.0
    for run in (part.times.forward, part.times.gradients, part.times.optimizer):
        spans = sorted(run.spans, key=lambda span: span.start_s)
        for place, span in enumerate(spans):
            stream = span.stream.replace(":", " ")
            known = {made[value] for value in span.node.inputs if value in made}
            events.append(
                TimelineEvent(
                    stage=0,
                    stream=stream,
                    name=span.node.name,
                    phase=span.node.phase,
                    microbatch=0,
                    start_s=start_s + span.start_s,
                    duration_s=span.end_s - span.start_s,
                    after=tuple(sorted(i for i in known if events[i].stream != stream)),
                )
            )
            made.update(dict.fromkeys(span.node.outputs, len(events) - 1))
            rest = _repetitions(part.graph, spans, place, run.time_s)
            if rest is not None:
                events.append(replace(rest, start_s=start_s + rest.start_s))
        start_s += run.time_s
    return events


def _repetitions(
    graph: Graph, spans: Sequence[Span], place: int, end_s: float
) -> TimelineEvent | None:
    """What a block's other repetitions take, after the last span of its first one."""
    block = graph.block_of.get(spans[place].node)
    following = spans[place + 1] if place + 1 < len(spans) else None
    if block is None or (following and graph.block_of.get(following.node) is block):
        return None
    first_s = max(s.end_s for s in spans[: place + 1] if graph.block_of.get(s.node) is block)
    last_s = following.start_s if following else end_s
    if block.count < 2 or last_s <= first_s:
        return None
    return TimelineEvent(
        stage=0,
        stream="compute",
        name=f"{block.count - 1} more repetitions",
        phase=spans[place].node.during,
        microbatch=0,
        start_s=first_s,
        duration_s=last_s - first_s,
    )


def _passes(step: StepCost) -> list[TimelineEvent]:
    """Forward and backward passes of every micro-batch on every rank along the pipeline."""
    from costing.pipeline_work import FORWARD, WEIGHT

    places = [{stage: i for i, stage in enumerate(row)} for row in step.pipeline.layout]
    works = [(event, work) for event in step.pipeline.events for work in event.works]
    index = {
        (work.microbatch, work.stage, work.kind == FORWARD): i
        for i, (_, work) in enumerate(works)
        if work.kind != WEIGHT
    }
    events = []
    for event, work in works:
        forward = work.kind == FORWARD
        before = index.get((work.microbatch, work.stage + (-1 if forward else 1), forward))
        sent = before is not None and works[before][0].rank != event.rank and work.kind != WEIGHT
        events.append(
            TimelineEvent(
                stage=event.rank,
                stream="compute",
                name=f"chunk {places[event.rank][work.stage]}"
                + (" gradients of weights" if work.kind == WEIGHT else ""),
                phase="forward" if forward else "backward",
                microbatch=work.microbatch,
                start_s=event.start_s,
                duration_s=event.end_s - event.start_s,
                after=(before,) if sent and before is not None else (),
            )
        )
    return events


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
