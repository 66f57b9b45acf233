"""Simulates a pipeline schedule: which stage works on which micro-batch when.

Each stage is given its order of forward and backward passes, as the schedule prescribes it; the
times then follow from three rules: a stage does one thing at a time, a forward pass waits for the
stage before it, a backward pass for the stage after it. No formula gives the bubbles: they are what
is left.

Source: GPipe (Huang et al. 2019, arXiv 1811.06965); 1F1B and interleaved 1F1B (Narayanan et al.
2021, arXiv 2104.04473, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from graph_ir.errors import MeshError

FORWARD = "forward"
BACKWARD = "backward"


class Work(NamedTuple):
    """One pass of one micro-batch through one chunk of layers."""

    chunk: int
    """Index of the chunk on its stage; 0 without interleaving."""
    microbatch: int
    forward: bool


class Event(NamedTuple):
    """A piece of work in time."""

    stage: int
    start_s: float
    end_s: float
    work: Work


@dataclass(frozen=True)
class PipelineTimeline:
    """What a schedule takes."""

    step_time_s: float
    """From the first forward pass to the end of the last pass of any stage."""
    busy_s: tuple[float, ...]
    """Time each stage works."""
    in_flight: tuple[tuple[int, ...], ...]
    """For each stage and each of its chunks, the micro-batches whose forward pass is done and whose
    backward pass is not, when they are most: as many sets of saved activations it holds."""
    events: tuple[Event, ...]

    @property
    def bubble_fraction(self) -> float:
        """Share of the step in which the busiest stage waits."""
        if self.step_time_s <= 0:
            return 0.0
        return 1.0 - max(self.busy_s) / self.step_time_s

    @property
    def bubble_over_ideal(self) -> float:
        """Waiting time of the busiest stage over its working time, as the papers count it."""
        busy = max(self.busy_s)
        return (self.step_time_s - busy) / busy if busy > 0 else 0.0


@dataclass(frozen=True)
class Schedule:
    """A schedule by name: 'gpipe', '1f1b', or 'interleaved:V' with V chunks per stage."""

    name: str
    chunks: int = 1

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Reads `--schedule`.

        Raises:
            MeshError: if it is not a known schedule.
        """
        name, _, chunks = text.partition(":")
        if name in ("gpipe", "1f1b") and not chunks:
            return cls(name)
        if name == "interleaved" and chunks.isdigit() and int(chunks) >= 1:
            return cls("interleaved", int(chunks))
        raise MeshError(f"unknown schedule {text!r}; known: gpipe, 1f1b, interleaved:V (V chunks)")

    def order(self, stage: int, stages: int, microbatches: int, training: bool) -> list[Work]:
        """What one stage does, in order.

        Raises:
            MeshError: if interleaving does not fit the number of micro-batches.
        """
        if not training:
            # Without a backward pass, a micro-batch simply visits the chunks in order.
            return self._forwards(stages, microbatches)
        if self.name == "gpipe":
            forwards = [Work(0, m, True) for m in range(microbatches)]
            return forwards + [Work(0, m, False) for m in range(microbatches)]
        if self.chunks == 1:
            warmup = min(stages - stage - 1, microbatches)
        else:
            if microbatches % stages:
                raise MeshError(
                    f"interleaved:{self.chunks} needs a multiple of {stages} micro-batches "
                    f"(pipeline stages), not {microbatches}: change --microbatch or --schedule"
                )
            # Narayanan et al., figure 4: the last stage too runs ahead by all but one chunk.
            warmup = (stages - stage - 1) * 2 + (self.chunks - 1) * stages
            warmup = min(warmup, microbatches * self.chunks)
        forwards = self._forwards(stages, microbatches)
        backwards = [
            Work(self.chunks - 1 - work.chunk, work.microbatch, False) for work in forwards
        ]
        order = forwards[:warmup]
        for forward, backward in zip(forwards[warmup:], backwards, strict=False):
            order += [forward, backward]
        return order + backwards[len(forwards) - warmup :]

    def _forwards(self, stages: int, microbatches: int) -> list[Work]:
        """Micro-batches in groups of `stages`; each group passes every chunk before the next."""
        if self.chunks == 1:
            return [Work(0, m, True) for m in range(microbatches)]
        return [
            Work(chunk, m, True)
            for first in range(0, microbatches, stages)
            for chunk in range(self.chunks)
            for m in range(first, min(first + stages, microbatches))
        ]


def simulate(
    schedule: Schedule,
    forward_s: Sequence[float | Sequence[float]],
    backward_s: Sequence[float | Sequence[float]],
    microbatches: int,
    transfer_s: float = 0.0,
) -> PipelineTimeline:
    """Runs a schedule.

    Args:
        schedule: which one.
        forward_s: time of one micro-batch's forward pass on each stage: of each of its chunks, or one
            number to share out among them.
        backward_s: the same for the backward pass; all zero for inference.
        microbatches: per step.
        transfer_s: from the end of a pass on one stage until its result is at the next stage.

    Raises:
        MeshError: if the schedule does not fit.
    """
    stages, chunks = len(forward_s), schedule.chunks
    durations = [
        {True: _per_chunk(f, chunks), False: _per_chunk(b, chunks)}
        for f, b in zip(forward_s, backward_s, strict=True)
    ]
    training = any(t > 0 for d in durations for t in d[False])
    orders = [schedule.order(s, stages, microbatches, training) for s in range(stages)]
    last = stages * chunks - 1
    done: list[dict[Work, float]] = [{} for _ in range(stages)]
    clock = [0.0] * stages
    position = [0] * stages
    events: list[Event] = []
    # A stage runs on until it waits for a pass that is not done; that pass's stage wakes it up.
    waiting: dict[tuple[int, Work], int] = {}
    ready = list(range(stages))
    while ready:
        stage = ready.pop()
        order = orders[stage]
        while position[stage] < len(order):
            work = order[position[stage]]
            start = clock[stage]
            needed = _needed(stage, work, stages, last)
            if needed is not None:
                source, before = needed
                end = done[source].get(before)
                if end is None:
                    waiting[needed] = stage
                    break
                start = max(start, end + (transfer_s if source != stage else 0.0))
            end = start + durations[stage][work.forward][work.chunk]
            clock[stage] = end
            done[stage][work] = end
            events.append(Event(stage, start, end, work))
            position[stage] += 1
            woken = waiting.pop((stage, work), None)
            if woken is not None and woken != stage:
                ready.append(woken)
    if any(position[s] < len(orders[s]) for s in range(stages)):
        raise MeshError(
            f"schedule {schedule.name!r} waits for itself: {microbatches} micro-batches"
        )
    busy = tuple(microbatches * (sum(d[True]) + sum(d[False])) for d in durations)
    in_flight = tuple(_in_flight(order, chunks) for order in orders)
    return PipelineTimeline(max(clock), busy, in_flight, tuple(events))


def _needed(stage: int, work: Work, stages: int, last: int) -> tuple[int, Work] | None:
    """The pass that must be done first: (its stage, the work); None for the very first."""
    place = work.chunk * stages + stage
    if work.forward:
        if place == 0:
            return None
        before = place - 1
        return before % stages, Work(before // stages, work.microbatch, True)
    if place == last:
        return stage, Work(work.chunk, work.microbatch, True)
    after = place + 1
    return after % stages, Work(after // stages, work.microbatch, False)


def _per_chunk(seconds: float | Sequence[float], chunks: int) -> list[float]:
    if isinstance(seconds, int | float):
        return [seconds / chunks] * chunks
    if len(seconds) != chunks:
        raise MeshError(f"a stage has {len(seconds)} chunks, but the schedule wants {chunks}")
    return list(seconds)


def _in_flight(order: Sequence[Work], chunks: int) -> tuple[int, ...]:
    held, most = [0] * chunks, [0] * chunks
    for work in order:
        held[work.chunk] += 1 if work.forward else -1
        if sum(held) > sum(most):
            most = list(held)
    return tuple(most)
