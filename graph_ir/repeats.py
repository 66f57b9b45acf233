"""Finds runs of nodes that repeat: the same operators on the same types, wired alike.

Candidates are the maximal stretches in which every node has the signature of the node one period further;
a period is proposed by equal windows of 1, 2, 4, ... nodes, at the distance of each to its next occurrence.
The largest candidates are checked first, each at the cut between its copies that hands on the fewest bytes.
Both steps are bounded, so that the time grows with the number of nodes whatever the graph looks like.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graph_ir.graph import Graph, Value

MIN_NODES_SAVED = 2
_PERIODS = 512
"""Periods that are looked at, those of most votes; real models have a handful."""
_CUTS = 16
"""Cuts that are tried between the copies of one candidate."""
_READS_PER_NODE = 64
"""Operands that may be looked at, per node of the graph, before the search ends."""


@dataclass(frozen=True)
class Run:
    """`count` copies of `period` nodes from index `start` on."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        """Index after the last node."""
        return self.start + self.period * self.count


@dataclass
class Wiring:
    """How the copies of a run hang together."""

    carries: dict[tuple[Value, Value], None]
    """(what the first copy reads, what the first copy produces for the second), in order."""
    stacked: dict[Value, int]
    """Inputs of the first copy that stand for one per copy."""
    slots: dict[tuple[int, int], tuple[Value, Value]]
    """(node offset, operand index) -> its carry."""
    collected: set[Value]


def repeated_runs(graph: Graph) -> list[tuple[Run, Wiring]]:
    """Disjoint runs of copies, in the order of the nodes."""
    ids: dict[object, int] = {}
    signatures = np.fromiter(
        (ids.setdefault(node.signature, len(ids)) for node in graph.nodes),
        dtype=np.int64,
        count=len(graph.nodes),
    )
    wirer = _Wirer(graph)
    found: list[tuple[Run, Wiring]] = []
    taken: list[tuple[int, int]] = []
    waiting = [(-_saved(*c), *c) for c in _stretches(signatures) if _saved(*c) >= MIN_NODES_SAVED]
    heapq.heapify(waiting)
    while waiting and wirer.reads_left > 0:
        _, period, start, stop = heapq.heappop(waiting)
        free = list(_free(taken, start, stop))
        if free != [(start, stop)]:
            for low, high in free:
                saved = _saved(period, low, high)
                if saved >= MIN_NODES_SAVED:
                    heapq.heappush(waiting, (-saved, period, low, high))
            continue
        aligned = wirer.align(period, start, stop)
        if aligned is not None:
            found.append(aligned)
            insort(taken, (aligned[0].start, aligned[0].stop))
    return sorted(found, key=lambda item: item[0].start)


def _saved(period: int, start: int, stop: int) -> int:
    """Nodes that folding a stretch would leave out."""
    return ((stop - start) // period - 1) * period


def _free(taken: Sequence[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """What of start..stop is not covered by the sorted, disjoint intervals `taken`."""
    index = max(bisect_left(taken, (start, start)) - 1, 0)
    while start < stop:
        low, high = taken[index] if index < len(taken) else (stop, stop)
        if start < low:
            yield start, min(low, stop)
        start = max(start, high)
        index += 1


def _stretches(signatures: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Maximal stretches (period, start, stop) of at least two periods."""
    for period in _periods(signatures):
        equal = np.zeros(len(signatures) - period + 2, dtype=np.int8)
        equal[1:-1] = signatures[:-period] == signatures[period:]
        edges = np.flatnonzero(np.diff(equal))
        starts, stops = edges[::2], edges[1::2]
        long = stops - starts >= period
        for start, stop in zip(starts[long].tolist(), stops[long].tolist(), strict=True):
            yield period, start, stop + period


def _periods(signatures: NDArray[np.int64]) -> list[int]:
    """Distances at which windows of nodes occur again, the most frequent ones."""
    votes: defaultdict[int, int] = defaultdict(int)
    windows, width = signatures, 1
    while len(windows) > 1:
        order = np.argsort(windows, kind="stable")
        ranked = windows[order]
        again = ranked[1:] == ranked[:-1]
        if not again.any():
            break
        steps, counts = np.unique(np.diff(order)[again], return_counts=True)
        for step, count in zip(steps.tolist(), counts.tolist(), strict=True):
            votes[step] += count
        # A window of twice the width is told by the two that it is made of.
        number = np.empty_like(windows)
        number[order] = np.concatenate(([0], np.cumsum(~again)))
        windows = number[:-width] * len(windows) + number[width:]
        width *= 2
    return sorted(votes, key=lambda step: (-votes[step], step))[:_PERIODS]


class _Wirer:
    """Checks that the copies of a run are wired alike."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        self.place = {v: (i, k) for i, n in enumerate(graph.nodes) for k, v in enumerate(n.outputs)}
        self.reads: dict[Value, list[int]] = defaultdict(list)
        for i, node in enumerate(graph.nodes):
            for value in node.inputs:
                self.reads[value].append(i)
        self.returned = set(graph.outputs)
        self.reads_left = _READS_PER_NODE * len(graph.nodes)

    def align(self, period: int, start: int, stop: int) -> tuple[Run, Wiring] | None:
        """The copies in a stretch, as many as fit, cut where the fewest bytes are handed on."""
        self.reads_left -= 2 * period
        handed = self._handed_bytes(period, start)
        most = (stop - start) // period
        cuts = [(start + s, (stop - start - s) // period) for s in range(period)]
        cuts.sort(key=lambda cut: (-cut[1], handed[cut[0] - start], cut[0]))
        # The first or the last copy may differ from the others by what is around them.
        for first, count in (*cuts[:_CUTS], (start, most - 1), (start + period, most - 1)):
            run = Run(first, period, count)
            wiring = self._wiring(run) if count > 1 else None
            if wiring is not None:
                return run, wiring
        return None

    def _handed_bytes(self, period: int, start: int) -> list[int]:
        """What the first copy hands to the second, if the copies begin 0, 1, ... nodes after `start`."""
        steps = [0] * (period + 1)
        for i in range(start, start + 2 * period):
            for value in self.nodes[i].outputs:
                reads = self.reads.get(value)
                if not reads:
                    continue
                first = max(i + 1 - start - period, 0)
                last = min(reads[-1] - start - period, period - 1)
                if first <= last:
                    steps[first] += value.type.bytes
                    steps[last + 1] -= value.type.bytes
        return list(itertools.accumulate(steps[:period]))

    def _wiring(self, run: Run) -> Wiring | None:
        """How the copies are wired, or None if they are not wired alike."""
        wiring = Wiring({}, {}, {}, set())
        for offset in range(run.period):
            for slot in range(len(self.nodes[run.start + offset].inputs)):
                self.reads_left -= run.count
                if not self._slot(run, offset, slot, wiring):
                    return None
        if not self._outputs_stay(run, wiring):
            return None
        return wiring

    def _slot(self, run: Run, offset: int, slot: int, wiring: Wiring) -> bool:
        copies = self.nodes[run.start + offset : run.stop : run.period]
        values = [node.inputs[slot] for node in copies]
        first, second = values[0], values[1]
        if first is second:
            outside = first not in self.place or self.place[first][0] < run.start
            return outside and all(v is first for v in values)
        if first not in self.place and second not in self.place:
            return self._stack(run, values, wiring)
        if second not in self.place:
            return False
        index, output = self.place[second]
        copy = (index - run.start) // run.period
        producers = range(index, index + (run.count - 1) * run.period, run.period)
        if any(
            self.place.get(v) != (i, output) for v, i in zip(values[1:], producers, strict=True)
        ):
            return False
        if copy == 1 and run.start <= index < run.stop:
            return self.place.get(first) == (index - run.period, output)
        if copy != 0 or index < run.start:
            return False
        if first in self.place and self.place[first][0] >= run.start:
            return False
        key = (first, second)
        wiring.carries.setdefault(key)
        wiring.slots[offset, slot] = key
        return True

    def _stack(self, run: Run, values: list[Value], wiring: Wiring) -> bool:
        """Weights of each copy: distinct inputs that only their own copy reads."""
        if len(set(values)) != len(values) or len({v.kind for v in values}) != 1:
            return False
        for k, value in enumerate(values):
            low = run.start + k * run.period
            reads = self.reads[value]
            if reads[0] < low or reads[-1] >= low + run.period or value in self.returned:
                return False
        return wiring.stacked.setdefault(values[0], id(values[1])) == id(values[1])

    def _outputs_stay(self, run: Run, wiring: Wiring) -> bool:
        """What a copy produces is read by itself and the next copy; the last one's by anyone."""
        handed = {result for _, result in wiring.carries}
        for offset in range(run.period):
            copies = self.nodes[run.start + offset : run.stop : run.period]
            for output, value in enumerate(copies[0].outputs):
                results = [node.outputs[output] for node in copies]
                reach = run.start + run.period * (2 if value in handed else 1)
                for result in results[:-1]:
                    reads = self.reads.get(result)
                    if reads and reads[-1] >= reach:
                        return False
                    reach += run.period
                leaves = sum(result in self.returned for result in results)
                if leaves == run.count:
                    wiring.collected.add(value)
                elif leaves and not (leaves == 1 and results[-1] in self.returned):
                    return False
        return True
