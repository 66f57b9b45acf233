"""Runs a pipeline schedule: when each rank works on which micro-batch.

The times follow from three rules: a rank does one thing at a time, a forward pass waits for the stage
before it, a backward pass for the stage after it. No formula gives the bubbles: they are what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from costing.pipeline_work import BACKWARD, FORWARD, INPUT, WEIGHT, Slot, Work
from costing.schedule import Layout, Schedule
from graph_ir.errors import MeshError


class PassSeconds(NamedTuple):
    """How long a pass of one micro-batch through one stage takes."""

    time_s: float
    compute_s: float
    communication_s: float
    """Time for which collectives run within the pass, hidden or not."""
    send_s: float = 0.0
    """From the pass's end until its result is where it is waited for, on another rank."""

    @classmethod
    def computing(cls, seconds: float, send_s: float = 0.0) -> PassSeconds:
        """A pass without collectives."""
        return cls(seconds, seconds, 0.0, send_s)

    def beside(self, other: PassSeconds) -> float:
        """Seconds for two passes at once: each one's collectives run while the other computes."""
        return max(
            self.time_s,
            other.time_s,
            self.compute_s + other.compute_s,
            self.communication_s + other.communication_s,
        )


StageSeconds = dict[str, PassSeconds]
"""The passes of one stage by kind; one that takes no time may be left out."""

_NOTHING = PassSeconds(0.0, 0.0, 0.0)


class Event(NamedTuple):
    """A slot of a rank in time."""

    rank: int
    start_s: float
    end_s: float
    works: Slot


@dataclass(frozen=True)
class PipelineTimeline:
    """What a schedule takes."""

    step_time_s: float
    """From the first forward pass to the end of the last pass of any rank."""
    busy_s: tuple[float, ...]
    """Time for which each rank works."""
    events: tuple[Event, ...]
    layout: Layout
    orders: tuple[tuple[Slot, ...], ...] = field(repr=False)

    @property
    def bubble_fraction(self) -> float:
        """Share of the step in which the busiest rank waits."""
        if self.step_time_s <= 0:
            return 0.0
        return 1.0 - max(self.busy_s) / self.step_time_s

    @property
    def bubble_over_ideal(self) -> float:
        """Waiting time of the busiest rank over its working time, as the papers count it."""
        busy = max(self.busy_s)
        return (self.step_time_s - busy) / busy if busy > 0 else 0.0

    @property
    def ends_s(self) -> tuple[float, ...]:
        """When each rank is done with its last pass."""
        ends = dict.fromkeys(range(len(self.layout)), 0.0)
        for event in self.events:
            ends[event.rank] = max(ends[event.rank], event.end_s)
        return tuple(ends.values())

    @property
    def rank_bubbles_s(self) -> tuple[float, ...]:
        """Time for which each rank waits between its own first and last pass.

        The zero-bubble papers count so: there a rank begins the next step without waiting for others.
        """
        starts = dict.fromkeys(range(len(self.layout)), float("inf"))
        for event in self.events:
            starts[event.rank] = min(starts[event.rank], event.start_s)
        spans = zip(self.ends_s, starts.values(), self.busy_s, strict=True)
        return tuple(end - start - busy for end, start, busy in spans)

    def runs(self, rank: int) -> tuple[int, ...]:
        """Micro-batches that a rank takes through each of its stages."""
        passed = Counter(w.stage for s in self.orders[rank] for w in s if w.kind == FORWARD)
        return tuple(passed[stage] for stage in self.layout[rank])

    @property
    def in_flight(self) -> tuple[tuple[int, ...], ...]:
        """Micro-batches of each rank and stage that are between their first and last pass, at the most.

        As many sets of saved activations the rank holds.
        """
        return tuple(_most(o, row) for o, row in zip(self.orders, self.layout, strict=True))

    def held(self, rank: int, saved: Sequence[float], deferred: Sequence[float]) -> float:
        """Most that a rank holds of what its passes leave for later ones.

        Args:
            rank: which one.
            saved: of each of its stages, what one micro-batch's forward pass leaves.
            deferred: what of it is left, or added, after the gradients of activations.
        """
        place = {stage: i for i, stage in enumerate(self.layout[rank])}
        now = most = 0.0
        for slot in self.orders[rank]:
            # The forward pass of a slot fills memory before the backward pass beside it frees any.
            for work in slot:
                i = place[work.stage]
                now += {
                    FORWARD: saved[i],
                    BACKWARD: -saved[i],
                    INPUT: deferred[i] - saved[i],
                    WEIGHT: -deferred[i],
                }[work.kind]
                most = max(most, now)
        return most


def _most(order: Sequence[Slot], stages: Sequence[int]) -> tuple[int, ...]:
    now = most = (0,) * len(stages)
    place = {stage: i for i, stage in enumerate(stages)}
    for slot in order:
        for work in slot:
            change = {FORWARD: 1, INPUT: 0}.get(work.kind, -1)
            i = place[work.stage]
            now = (*now[:i], now[i] + change, *now[i + 1 :])
            most = max(most, now, key=sum)
    return most


def in_flight(schedule: Schedule, ranks: int, microbatches: int) -> tuple[int, ...]:
    """Micro-batches whose activations each stage keeps when its rank keeps most, in model order.

    Raises:
        MeshError: if the schedule does not fit the number of ranks or micro-batches.
    """
    found: dict[int, int] = {}
    for rank, row in enumerate(schedule.layout(ranks)):
        counts = _most(schedule.order(rank, ranks, microbatches, training=True), row)
        for stage, count in zip(row, counts, strict=True):
            found[stage] = max(found.get(stage, 0), count)
    return tuple(found[stage] for stage in sorted(found))


def simulate(
    schedule: Schedule, stages: Sequence[StageSeconds], ranks: int, microbatches: int
) -> PipelineTimeline:
    """Runs a schedule.

    Args:
        schedule: which one.
        stages: the passes of every stage, in model order; without backward passes for inference.
        ranks: of the pipeline.
        microbatches: per step.

    Raises:
        MeshError: if the schedule does not fit the number of stages, ranks or micro-batches.
    """
    layout = schedule.layout(ranks)
    if len({stage for row in layout for stage in row}) != len(stages):
        raise MeshError(
            f"{schedule.name} on {ranks} ranks wants the model in {ranks * schedule.chunks} "
            f"stages, not {len(stages)}"
        )
    training = any(BACKWARD in stage for stage in stages)
    orders = tuple(tuple(schedule.order(r, ranks, microbatches, training)) for r in range(ranks))
    run = _Run(stages, orders)
    run.all()
    busy = [0.0] * ranks
    for event in run.events:
        busy[event.rank] += event.end_s - event.start_s
    return PipelineTimeline(max(run.clock), tuple(busy), tuple(run.events), layout, orders)


class _Run:
    """The ranks' clocks, and what is done."""

    def __init__(self, stages: Sequence[StageSeconds], orders: Sequence[Sequence[Slot]]) -> None:
        self.stages = stages
        self.orders = orders
        self.clock = [0.0] * len(orders)
        self.events: list[Event] = []
        # (stage, micro-batch, forward) -> (rank, when it is done there, when it is on another rank)
        self.done: dict[tuple[int, int, bool], tuple[int, float, float]] = {}

    def all(self) -> None:
        """Runs all ranks; one that waits for a pass is woken by the rank that does it."""
        position = [0] * len(self.orders)
        waiting: dict[tuple[int, int, bool], int] = {}
        ready = list(range(len(self.orders)))
        while ready:
            rank = ready.pop()
            order = self.orders[rank]
            while position[rank] < len(order):
                slot = order[position[rank]]
                missing = self._start(rank, slot)
                if isinstance(missing, tuple):
                    waiting[missing] = rank
                    break
                position[rank] += 1
                self._execute(rank, slot, missing)
                for work in slot:
                    woken = waiting.pop((work.stage, work.microbatch, work.kind == FORWARD), None)
                    if woken is not None and work.kind != WEIGHT:
                        ready.append(woken)
        if any(at < len(order) for at, order in zip(position, self.orders, strict=True)):
            raise MeshError("the schedule waits for itself")

    def _start(self, rank: int, slot: Slot) -> float | tuple[int, int, bool]:
        """When a slot can start, or the pass that must be done first."""
        start = self.clock[rank]
        for work in slot:
            needed = self._needed(work)
            if needed is None:
                continue
            found = self.done.get(needed)
            if found is None:
                return needed
            source, here, there = found
            start = max(start, here if source == rank else there)
        return start

    def _needed(self, work: Work) -> tuple[int, int, bool] | None:
        stage, microbatch, kind = work
        if kind == FORWARD:
            return (stage - 1, microbatch, True) if stage else None
        if kind == WEIGHT:
            return stage, microbatch, False
        if stage == len(self.stages) - 1:
            return stage, microbatch, True
        return stage + 1, microbatch, False

    def _execute(self, rank: int, slot: Slot, start: float) -> None:
        passes = [self.stages[work.stage].get(work.kind, _NOTHING) for work in slot]
        length = passes[0].time_s if len(passes) == 1 else passes[0].beside(passes[1])
        end = self.clock[rank] = start + length
        for work, seconds in zip(slot, passes, strict=True):
            if work.kind != WEIGHT:
                key = (work.stage, work.microbatch, work.kind == FORWARD)
                self.done[key] = (rank, end, end + seconds.send_s)
        self.events.append(Event(rank, start, end, slot))
