"""When every piece runs, for a given placement, and placements made one piece at a time.

A device does one piece after the other; messages between devices take their time beside the computation and
do not hinder each other. Pieces are taken in order of the longest way that is left from them, the rule of
HEFT (Topcuoglu, Hariri, Wu 2002, doi 10.1109/71.993206, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from partitioner.placing.tasks import Dataflow

Edge = tuple[int, int, float]
"""(piece, piece that waits for it, seconds if they lie on different devices)."""


@dataclass(frozen=True)
class Work:
    """One pass over the pieces."""

    seconds: tuple[float, ...]
    edges: tuple[Edge, ...]

    @cached_property
    def before(self) -> tuple[tuple[tuple[int, float], ...], ...]:
        """For each piece, what it waits for, and how long the message takes."""
        found: list[list[tuple[int, float]]] = [[] for _ in self.seconds]
        for a, b, s in self.edges:
            found[b].append((a, s))
        return tuple(map(tuple, found))

    @cached_property
    def left_s(self) -> tuple[float, ...]:
        """For each piece, the longest way from its start to the end, messages included."""
        found = list(self.seconds)
        for i in reversed(self.order):
            for j, s in self.before[i]:
                found[j] = max(found[j], self.seconds[j] + s + found[i])
        return tuple(found)

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """For each piece, what waits for it."""
        found: list[list[int]] = [[] for _ in self.seconds]
        for a, b, _ in self.edges:
            found[a].append(b)
        return tuple(map(tuple, found))

    @cached_property
    def order(self) -> tuple[int, ...]:
        """A topological order."""
        forward = all(a < b for a, b, _ in self.edges)
        return (
            tuple(range(len(self.seconds)))
            if forward
            else tuple(reversed(range(len(self.seconds))))
        )

    def starts(self, device: Sequence[int]) -> list[float]:
        """When each piece starts if devices never wait without need.

        Among those that could start first, the one with the longest way to go does.
        """
        waiting = [len(b) for b in self.before]
        free: dict[int, float] = {}
        start = [0.0] * len(self.seconds)
        ready_at = [0.0] * len(self.seconds)
        ready = [i for i, n in enumerate(waiting) if n == 0]
        while ready:
            begin, _, i = min(
                (max(ready_at[j], free.get(device[j], 0.0)), -self.left_s[j], j) for j in ready
            )
            ready.remove(i)
            start[i] = begin
            free[device[i]] = begin + self.seconds[i]
            for j in self.after[i]:
                waiting[j] -= 1
                if not waiting[j]:
                    ready_at[j] = self._ready_s(j, start, device)
                    ready.append(j)
        return start

    def starts_in_order(self, device: Sequence[int], wished: Sequence[float]) -> list[float]:
        """When each piece starts if each device keeps to the order of the times that are wished."""
        place = {i: n for n, i in enumerate(self.order)}
        start = [0.0] * len(self.seconds)
        free: dict[int, float] = {}
        for i in sorted(self.order, key=lambda i: (round(wished[i], 9), place[i])):
            start[i] = max(self._ready_s(i, start, device), free.get(device[i], 0.0))
            free[device[i]] = start[i] + self.seconds[i]
        return start

    def _ready_s(self, i: int, start: Sequence[float], device: Sequence[int]) -> float:
        return max(
            (
                start[k] + self.seconds[k] + (s if device[k] != device[i] else 0.0)
                for k, s in self.before[i]
            ),
            default=0.0,
        )

    def end(self, start: Sequence[float]) -> float:
        """When the last piece is done."""
        return max((a + t for a, t in zip(start, self.seconds, strict=True)), default=0.0)


@dataclass(frozen=True)
class Schedule:
    """A placement with its times."""

    device: tuple[int, ...]
    starts: tuple[tuple[float, ...], ...]
    """Of each pass, from its own beginning."""
    length_s: float
    """Of all passes, one after the other."""


@dataclass(frozen=True)
class Segment:
    """Pieces between two that everything passes through, the last of them included.

    The first one is there as the place where the segment's data come from: it lies on device 0 and takes
    no time, unless it is the model's own beginning.
    """

    passes: tuple[Work, ...]
    """Forward, and in training backward."""
    pinned: bool
    """Whether piece 0 is fixed on device 0; else by choice of names."""

    @property
    def size(self) -> int:
        """Number of pieces."""
        return len(self.passes[0].seconds)

    @property
    def work_s(self) -> float:
        """Seconds on one device."""
        return sum(sum(work.seconds) for work in self.passes)

    def run(
        self, device: Sequence[int], wished: Sequence[Sequence[float]] | None = None
    ) -> Schedule:
        """The schedule of a placement; `wished` gives the order on each device by times."""
        if wished is None:
            starts = [work.starts(device) for work in self.passes]
        else:
            starts = [
                w.starts_in_order(device, t) for w, t in zip(self.passes, wished, strict=True)
            ]
        ends = [work.end(start) for work, start in zip(self.passes, starts, strict=True)]
        return Schedule(tuple(device), tuple(map(tuple, starts)), sum(ends))


def segment_of(whole: Dataflow, first: int, last: int, entered: bool) -> Segment:
    """The pieces from `first` to `last`; `entered` says that `first` belongs to the segment before it."""
    inside = range(first, last + 1)
    forward = [whole.pieces[i].forward_s for i in inside]
    backward = [whole.pieces[i].backward_s for i in inside]
    if entered:
        forward[0] = backward[0] = 0.0
    edges = [
        (a - first, b - first, f)
        for (a, b), f in sorted(whole.flows.items())
        if first <= a and b <= last
    ]
    passes = [Work(tuple(forward), tuple((a, b, f.forward_s) for a, b, f in edges))]
    if any(p.backward_s for p in whole.pieces):
        passes.append(Work(tuple(backward), tuple((b, a, f.backward_s) for a, b, f in edges)))
    return Segment(tuple(passes), entered)


def greedy(segment: Segment, devices: int) -> Schedule:
    """A device for each piece: HEFT, or all on one device if that is faster.

    A piece goes where its forward pass ends first, in the order of the longest way left.
    """
    work = segment.passes[0]
    # What a piece occupies counts with both passes; what it waits for is the forward pass.
    total = [sum(p.seconds[i] for p in segment.passes) for i in range(segment.size)]
    costs = {
        (a, b): sum(s for p in segment.passes for x, y, s in p.edges if {x, y} == {a, b})
        for a, b, _ in work.edges
    }
    joint = Work(tuple(total), tuple((a, b, s) for (a, b), s in costs.items()))
    device = [0] * segment.size
    end = [0.0] * segment.size
    free = [0.0] * devices
    for i in sorted(range(segment.size), key=lambda i: (-joint.left_s[i], i)):
        best: tuple[float, int] | None = None
        for d in range(1 if i == 0 and segment.pinned else devices):
            ready = max(
                (end[j] + (s if device[j] != d else 0.0) for j, s in joint.before[i]), default=0.0
            )
            ends = (max(ready, free[d]) + total[i], d)
            best = ends if best is None or ends < best else best
        if best is not None:
            end[i], device[i] = best
            free[best[1]] = best[0]
    spread, alone = segment.run(device), segment.run([0] * segment.size)
    return spread if spread.length_s < alone.length_s * (1 - 1e-12) else alone


def improved(segment: Segment, known: Schedule, devices: int) -> Schedule:
    """Moves single pieces, and neighbours together, as long as that shortens the schedule."""
    best = known
    moves: list[tuple[int, ...]] = [(i,) for i in range(segment.size)]
    moves += [(a, b) for a, b, _ in segment.passes[0].edges]
    while True:
        before_s = best.length_s
        for move in moves:
            if segment.pinned and 0 in move:
                continue
            for d in range(devices):
                device = list(best.device)
                for i in move:
                    device[i] = d
                if tuple(device) != best.device:
                    trial = segment.run(device)
                    best = trial if trial.length_s < best.length_s * (1 - 1e-12) else best
        if best.length_s >= before_s * (1 - 1e-9):
            return best
