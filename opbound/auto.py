"""`--parallel auto`: the fastest strategy that fits, of all meshes of a number of devices.

Strategies that cannot fit are left out first. Each of the others has a bound, what it takes at least: first
by its work alone, then by the price of one replica in one stage, which strategies that differ in replicas,
stages and ZeRO share. The one with the lowest bound is priced by the whole program, until no bound is below
the fastest time: then that is the fastest of them all. At last, the best meshes are tried with their
tensor-parallel axis searched (`partitioner.search`).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf, prod
from typing import TYPE_CHECKING

from graph_ir.errors import MeshError, OpboundError
from opbound.analysis import Progress
from opbound.bench import Bench, Measured
from opbound.candidates import Candidate, Limits, candidates
from opbound.options import Options
from opbound.search_bounds import Bounds
from opbound.searched_axes import searched_axes
from reports.search_info import LeftOut, SearchInfo, StrategyRow

if TYPE_CHECKING:
    from costing.hardware import Hardware
    from reports import Report

SHOWN = 10

TOO_LARGE = "what must be stored exceeds the memory"

MOST_PRICED = 40
"""Strategies that are priced at most, so that a search ends; a count, so that it always ends the same way."""

SEARCHED = 2
"""Meshes, the fastest first, that are tried with a searched axis in place of tensor parallelism."""


def node_devices(hardware: Hardware) -> int:
    """Devices on the innermost link: a node; 1 without links."""
    for link in hardware.links:
        if link.devices is not None:
            return link.devices
    return 1


@dataclass
class _Log:
    """What became of the candidates."""

    priced: list[tuple[Candidate, Measured]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, example: str) -> None:
        self.left_out.setdefault(reason, []).append(example)


@dataclass(frozen=True, order=True)
class _Open:
    """A candidate that is not priced yet; those that promise most come first."""

    guess_s: float
    bound_s: float
    order: int
    known: int
    """How many of its bounds are in `bound_s`."""
    candidate: Candidate = field(compare=False)


class AutoSearch:
    """The search for one model.

    Args:
        model: what `importers.load` takes.
        options: of the analysis; what differs from the defaults is kept as it is given.
        devices: how many; 0: as many as one node has.
        example_inputs: arguments to trace a live module with.
        progress: is told what is being done.
    """

    def __init__(
        self,
        model: object,
        options: Options,
        devices: int,
        example_inputs: object = None,
        progress: Progress = lambda _: None,
    ) -> None:
        if options.batch is None and options.mode == "training":
            # Strategies are compared on one batch: at least a sample for each device.
            options = replace(options, batch=devices or None)
        self.bench = Bench(model, options, example_inputs, progress)
        self.hardware = self.bench.whole.hardware
        self.devices = devices or node_devices(self.hardware)
        if options.batch is None and options.mode == "training":
            options = replace(options, batch=self.devices)
            self.bench = Bench(model, options, example_inputs, progress)
        self.options = options
        self.progress = progress
        self.capacity_bytes = self.hardware.main_memory.capacity_bytes
        self.bounds = Bounds(self.bench, options)
        self.log = _Log()
        self.too_large: list[Candidate] = []

    def run(self) -> Report:
        """The report of the fastest strategy that fits, with what else was looked at.

        Raises:
            OpboundError: if the model cannot be analysed, or no strategy can be applied.
        """
        graph = self.bounds.first_graph()
        began = time.monotonic()
        limits = Limits.of(graph, self.bench.whole.options.batch or self._own_batch())
        self._price_all(list(candidates(self.options, limits, self.devices, self.log.left_out)))
        self._price_searched()
        if not any(self._fits(m) for _, m in self.log.priced):
            self._price_nearest()
        found = sorted(self.log.priced, key=self._rank)
        if not found:
            reasons = "; ".join(f"{r}: {e[0]}" for r, e in self.log.left_out.items())
            raise MeshError(f"auto: no strategy for {self.devices} devices can be used ({reasons})")
        info = SearchInfo(
            devices=self.devices,
            candidates=len(self.log.priced) + sum(map(len, self.log.left_out.values())),
            priced=len(self.log.priced),
            seconds=time.monotonic() - began,
            rows=tuple(self._row(c, m) for c, m in found[:SHOWN]),
            left_out=tuple(
                LeftOut(reason=reason, count=len(examples), example=examples[0])
                for reason, examples in self.log.left_out.items()
            ),
        )
        best = found[0][0]
        self.progress(f"reporting {best.text()}")
        analysis = self.bench.analysis(best.options)
        return replace(analysis.report(), search=replace(info, axes=searched_axes(analysis)))

    def _own_batch(self) -> int:
        return self.bench.imported(None, *self.bounds.first_key()).batch or 1

    def _rank(self, found: tuple[Candidate, Measured]) -> tuple[bool, float]:
        measured = found[1]
        fits = self._fits(measured)
        return (not fits, measured.step_time_s if fits else float(measured.needed_bytes))

    def _fits(self, measured: Measured) -> bool:
        return measured.needed_bytes <= self.capacity_bytes

    def _row(self, candidate: Candidate, measured: Measured) -> StrategyRow:
        return StrategyRow(
            strategy=candidate.text(),
            step_time_s=measured.step_time_s,
            peak_bytes=measured.peak_bytes,
            fits=self._fits(measured),
        )

    # --- pricing ----------------------------------------------------------------------------------------

    def _price_all(self, found: list[Candidate]) -> None:
        """Prices candidates, those that promise most first, until no other can be faster."""
        bounds: list[Callable[[Candidate], float]] = [
            self.bounds.compute_s,
            lambda c: self.bounds.split_s(c.without_recomputation),
            self.bounds.split_s,
            self.bounds.unrecomputed_s,
        ]
        useful = (c for c in found if self._saves(c) and self._can_fit(c))
        fitting = ((i, c, bounds[0](c)) for i, c in enumerate(useful))
        queue = [_Open(bound_s, bound_s, i, 1, c) for i, c, bound_s in fitting]
        heapq.heapify(queue)
        fastest = inf
        unpriced: list[_Open] = []
        while queue:
            at = heapq.heappop(queue)
            candidate = at.candidate
            if at.bound_s >= fastest and len(self.log.priced) >= SHOWN:
                reason = "their work and its communication alone take longer than the fastest"
                self.log.leave_out(reason, candidate.text())
            elif any(
                candidate.recomputes_more_than(c) for c, m in self.log.priced if self._fits(m)
            ):
                self.log.leave_out("they fit with less recomputation", candidate.text())
            elif at.known > 1 and not self._can_apply(candidate):
                continue
            elif len(self.log.priced) >= MOST_PRICED and at.known > 2:
                unpriced.append(at)
            elif at.known < len(bounds):
                bound_s = max(at.bound_s, self._tried(bounds[at.known], candidate))
                guess_s = max(bound_s, self.bounds.evenly_cut_s(candidate))
                if at.known != 2 or self._can_fit(candidate):
                    heapq.heappush(
                        queue, _Open(guess_s, bound_s, at.order, at.known + 1, candidate)
                    )
            else:
                measured = self._price(candidate)
                if measured is not None and self._fits(measured):
                    fastest = min(fastest, measured.step_time_s)

        for at in sorted(unpriced, key=lambda at: (at.bound_s, at.order)):
            # The one that could gain most is the example.
            gain = f"at most {max(1 - at.bound_s / fastest, 0):.0%} less than the fastest"
            reason = f"not among the {MOST_PRICED} that promise most"
            self.log.leave_out(reason, f"{at.candidate.text()}: {gain}")

    def _saves(self, candidate: Candidate) -> bool:
        """Whether selective recomputation saves anything; a candidate where it does not is logged."""
        saves = candidate.options.recompute != "selective" or self.bounds.saves(candidate)
        if not saves:
            self.log.leave_out("nothing is recomputed selectively", candidate.text())
        return saves

    def _can_apply(self, candidate: Candidate) -> bool:
        """Whether a micro-batch can be split so; a candidate for which it cannot is logged."""
        error = self.bounds.reason_against(candidate.without_recomputation)
        if error:
            self.log.leave_out("cannot be applied", f"{candidate.text()}: {error}")
        return not error

    @staticmethod
    def _tried(bound: Callable[[Candidate], float], candidate: Candidate) -> float:
        """A bound; none of a strategy that cannot be applied, which pricing it tells."""
        try:
            return bound(candidate)
        except OpboundError:
            return 0.0

    def _price_nearest(self) -> None:
        """Where nothing fits, those strategies that come nearest."""
        missing = max(SHOWN - len(self.log.priced), 0)
        nearest = sorted(self.too_large, key=self.bounds.least_bytes)[:missing]
        if nearest:
            priced = {c.text() for c in nearest}
            others = [e for e in self.log.left_out.pop(TOO_LARGE) if e.split(": ")[0] not in priced]
            if others:
                self.log.left_out[TOO_LARGE] = others
        for candidate in nearest:
            self._price(candidate)

    def _can_fit(self, candidate: Candidate) -> bool:
        """Whether what must be stored leaves room; a candidate that does not is logged."""
        least = self.bounds.least_bytes(candidate)
        if least > self.capacity_bytes:
            self.too_large.append(candidate)
            self.log.leave_out(TOO_LARGE, f"{candidate.text()}: {least / 1e9:.0f} GB")
        return least <= self.capacity_bytes

    def _price(self, candidate: Candidate) -> Measured | None:
        """Prices a candidate; None if it cannot be applied."""
        self.progress(f"pricing {candidate.text()} ({len(self.log.priced)} priced)")
        try:
            measured = self.bench.measure(candidate.options)
        except OpboundError as error:
            self.log.leave_out("cannot be applied", f"{candidate.text()}: {error}")
            return None
        self.log.priced.append((candidate, measured))
        return measured

    def _price_searched(self) -> None:
        """The best meshes again, with a searched axis in place of the tensor-parallel one."""
        meshes: dict[tuple[object, ...], Candidate] = {}
        for candidate, _ in sorted(self.log.priced, key=self._rank):
            others = {a: n for a, n in candidate.options.parallel.items() if a in ("dp", "pp")}
            for mesh in ({"pp": others.get("pp", 1)}, others):
                inner = self.devices // prod(mesh.values())
                # Beyond a node, a searched axis would send what only a node's links can carry.
                if 1 < inner <= node_devices(self.hardware):
                    sizes = {"auto": inner, **{a: n for a, n in mesh.items() if n > 1}}
                    options = replace(candidate.options, parallel=sizes, sequence_parallel=False)
                    if "dp" not in sizes:
                        options = replace(options, zero=0)
                    share = candidate.share
                    meshes.setdefault(tuple(sizes.items()), Candidate(options, share))
        for candidate in list(meshes.values())[:SEARCHED]:
            if self._can_fit(candidate):
                self._price(candidate)
