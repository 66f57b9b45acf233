"""Operator placement: a dataflow graph on several devices, no operator split.

`place` gives every operator a device so that the last one ends as early as can be.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graph_ir.errors import OpboundError, did_you_mean
from graph_ir.graph import Graph, Node, Value
from partitioner.placing import exact
from partitioner.placing.schedule import Schedule, Segment, Work, greedy, improved, segment_of
from partitioner.placing.tasks import Dataflow, contract_chains, dataflow, narrows

METHODS = ("exact", "greedy")

WHOLE_PIECES = 10
"""Up to this many pieces a segment is searched operator by operator; beyond, chains are joined first."""

SEARCHED_PIECES = 60
"""Beyond this many pieces the integer program does not come to an end, and only its bound would be used."""


@dataclass(frozen=True)
class PlacedOperator:
    """One operator's place."""

    node: Node
    device: int
    start_s: float
    """In the forward pass."""
    time_s: float
    """Of the forward pass."""


@dataclass(frozen=True)
class Transfer:
    """A value that crosses devices."""

    value: Value
    source: int
    target: int
    time_s: float
    """There; in training its gradient comes back as well."""


@dataclass(frozen=True)
class Placement:
    """What `place` found."""

    devices: int
    method: str
    operators: tuple[PlacedOperator, ...]
    transfers: tuple[Transfer, ...]
    makespan_s: float
    work_s: float
    """Time on one device."""
    critical_path_s: float
    bound_s: float
    """No placement is faster."""
    greedy_s: float
    pieces: int
    """What was placed as a whole: operators, or chains of them."""
    segments: int
    """Parts that were searched on their own."""
    notes: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        """Over one device."""
        return self.work_s / self.makespan_s if self.makespan_s > 0 else 1.0

    @property
    def gap(self) -> float:
        """How much faster another placement could be at most, as a fraction of this one's time."""
        return 1 - self.bound_s / self.makespan_s if self.makespan_s > 0 else 0.0


def place(
    graph: Graph,
    kernels: Sequence[Sequence[Node]],
    node_time: Callable[[Node], float],
    transfer_time: Callable[[int], float],
    devices: int,
    method: str = "exact",
    limit_s: float = 60.0,
) -> Placement:
    """Puts every operator on a device.

    Args:
        graph: not folded; in training with its backward pass.
        kernels: nodes that run together.
        node_time: seconds of one node.
        transfer_time: seconds that a number of bytes takes between devices.
        devices: how many.
        method: `exact` or `greedy`.
        limit_s: seconds that the exact search may take over all.

    Raises:
        OpboundError: on an unknown method or fewer than one device.
    """
    if method not in METHODS:
        raise OpboundError(
            f"placement method {method!r} does not exist; {did_you_mean(method, METHODS)}"
        )
    if devices < 1:
        raise OpboundError(f"a placement needs at least one device, not {devices}")
    whole = dataflow(graph, kernels, node_time, transfer_time)
    return _Placer(whole, node_time, transfer_time, devices, method, limit_s).run()


class _Placer:
    def __init__(
        self,
        whole: Dataflow,
        node_time: Callable[[Node], float],
        transfer_time: Callable[[int], float],
        devices: int,
        method: str,
        limit_s: float,
    ) -> None:
        self.whole = whole
        self.node_time = node_time
        self.transfer_time = transfer_time
        self.devices = devices
        self.method = method
        self.deadline = time.monotonic() + limit_s
        self.notes: dict[str, None] = {}
        self.known: dict[Segment, tuple[Schedule, float, float]] = {}
        """Segment -> (schedule, lower bound, length of the greedy schedule)."""

    def run(self) -> Placement:
        bounds = self._bounds(self.whole)
        pieces = self.whole
        if max((b - a for a, b in bounds), default=0) > WHOLE_PIECES:
            pieces = contract_chains(self.whole)
            bounds = self._bounds(pieces)
        segments = [segment_of(pieces, a, b, entered=i > 0) for i, (a, b) in enumerate(bounds)]
        device = [0] * len(pieces.pieces)
        bound_s = greedy_s = makespan_s = forward_s = 0.0
        starts: list[float] = [0.0] * len(pieces.pieces)
        left = len(set(segments))
        for (first, _), segment in zip(bounds, segments, strict=True):
            if segment not in self.known:
                self.known[segment] = self._best(segment, left)
                left -= 1
            own, lower_s, heft_s = self.known[segment]
            # Devices are alike: the segment's first is the one where the last one's data lie.
            swap = {0: device[first], device[first]: 0} if segment.pinned else {}
            for i in range(int(segment.pinned), segment.size):
                device[first + i] = swap.get(own.device[i], own.device[i])
                starts[first + i] = forward_s + own.starts[0][i]
            forward_s += segment.passes[0].end(own.starts[0])
            makespan_s += own.length_s
            bound_s += lower_s
            greedy_s += heft_s
        return self._placement(pieces, device, starts, makespan_s, bound_s, greedy_s, len(segments))

    @staticmethod
    def _bounds(pieces: Dataflow) -> list[tuple[int, int]]:
        """(first, last) piece of each segment; neighbours share the piece between them."""
        last = len(pieces.pieces) - 1
        if last < 0:
            return []
        edges = sorted({0, *narrows(pieces), last})
        return list(itertools.pairwise(edges)) or [(0, 0)]

    def _best(self, segment: Segment, left: int) -> tuple[Schedule, float, float]:
        simple = greedy(segment, self.devices)
        lower_s = max(_longest_paths(segment), segment.work_s / self.devices)
        best = simple
        if self.method == "exact" and best.length_s > lower_s * (1 + 1e-9):
            best = improved(segment, simple, self.devices)
        if self.method == "exact" and best.length_s > lower_s * (1 + 1e-9):
            solved = self._solve(segment, best, left)
            lower_s = max(lower_s, solved.bound_s)
            if solved.schedule is not None and solved.schedule.length_s < best.length_s:
                best = solved.schedule
        return best, min(lower_s, best.length_s), simple.length_s

    def _solve(self, segment: Segment, known: Schedule, left: int) -> exact.Solved:
        if not exact.available():
            self.notes[
                "HiGHS is not installed (pip install 'opbound[place]'): the greedy placement was improved "
                "step by step, and may be further from the best by the gap"
            ] = None
            return exact.Solved(None, 0.0)
        if segment.size > SEARCHED_PIECES:
            self.notes[f"a part with {segment.size} pieces was improved step by step"] = None
            return exact.Solved(None, 0.0)
        budget_s = max((self.deadline - time.monotonic()) / max(left, 1), 0.2)
        return exact.solve(segment, self.devices, known.length_s, budget_s)

    def _placement(
        self,
        pieces: Dataflow,
        device: Sequence[int],
        starts: Sequence[float],
        makespan_s: float,
        bound_s: float,
        greedy_s: float,
        segments: int,
    ) -> Placement:
        operators = []
        for piece, d, begin in zip(pieces.pieces, device, starts, strict=True):
            for node in piece.nodes:
                seconds = self.node_time(node)
                operators.append(PlacedOperator(node, d, begin, seconds))
                begin += seconds
        sent: dict[tuple[Value, int, int], None] = {}
        for (a, b), flow in sorted(pieces.flows.items()):
            if device[a] != device[b]:
                sent.update(dict.fromkeys((v, device[a], device[b]) for v in flow.values))
        transfers = [Transfer(v, a, b, self.transfer_time(v.type.bytes)) for v, a, b in sent]
        lower_s = max(bound_s, self.whole.critical_path_s, self.whole.work_s / self.devices)
        return Placement(
            self.devices,
            self.method,
            tuple(operators),
            tuple(transfers),
            makespan_s,
            self.whole.work_s,
            self.whole.critical_path_s,
            min(lower_s, makespan_s),
            greedy_s,
            len(pieces.pieces),
            segments,
            tuple(self.notes),
        )


def _longest_paths(segment: Segment) -> float:
    """The critical paths of all passes, with free transfers."""

    def longest(work: Work) -> float:
        ends = [0.0] * len(work.seconds)
        for i in work.order:
            ends[i] = work.seconds[i] + max((ends[j] for j, _ in work.before[i]), default=0.0)
        return max(ends, default=0.0)

    return sum(map(longest, segment.passes))
