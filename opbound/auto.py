"""`--parallel auto`: the fastest strategy that fits, of all meshes of a number of devices.

Every candidate has a lower bound: what one device needs for its share, with the pipeline's bubble. The
candidates are priced by the whole program in the order of their bounds, those of one mesh from the plainest
to the one that stores least, until no bound is below the tenth fastest time or the time is up. At last, the
best meshes are tried with their tensor-parallel axis searched (`partitioner.search`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import log2, prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graph_ir.errors import MeshError, OpboundError
from opbound.analysis import Progress
from opbound.bench import Bench, Measured
from opbound.candidates import Candidate, factorizations, splits
from opbound.options import Options
from opbound.searched_axes import searched_axes
from reports.search_info import LeftOut, SearchInfo, StrategyRow

if TYPE_CHECKING:
    from costing.hardware import Hardware
    from graph_ir.graph import Graph
    from reports import Report

SHOWN = 10
SEARCH_S = 12.0
"""Seconds after which no further strategy is priced."""

SEARCHED = 3
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
        self.log = _Log()
        self._factors: dict[tuple[object, ...], float] = {}
        """Measured times over their bounds, by what splits the operators."""
        self._saved: dict[tuple[int, str], float] = {}
        self._serial: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def run(self) -> Report:
        """The report of the fastest strategy that fits, with what else was looked at.

        Raises:
            OpboundError: if the model cannot be analysed, or no strategy can be applied.
        """
        self._first_graph()
        began = time.monotonic()
        candidates = list(self._candidates())
        self._price_all(candidates, began + SEARCH_S)
        self._price_searched(began + 1.3 * SEARCH_S)
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

    def _rank(self, found: tuple[Candidate, Measured]) -> tuple[bool, float]:
        measured = found[1]
        fits = measured.peak_bytes <= self.capacity_bytes
        return (not fits, measured.step_time_s if fits else float(measured.peak_bytes))

    def _row(self, candidate: Candidate, measured: Measured) -> StrategyRow:
        return StrategyRow(
            strategy=candidate.text(),
            step_time_s=measured.step_time_s,
            peak_bytes=measured.peak_bytes,
            fits=measured.peak_bytes <= self.capacity_bytes,
        )

    # --- candidates -------------------------------------------------------------------------------------

    def _first_graph(self) -> Graph:
        """The graph that tells what can be split; in generation mode, the prefill's."""
        whole = self.bench.whole
        if self.options.mode != "generation":
            return whole_graph(self.bench, self.options.mode, self.options.sequence, None)
        prompt, _, _ = whole.generated_tokens()
        return whole_graph(self.bench, "prefill", prompt, None)

    def _candidates(self) -> Iterator[Candidate]:
        from partitioner.strategies.expert import expert_axes
        from partitioner.strategies.sequence import token_axes

        graph = self._first_graph()
        axes = graph.axes
        experts = min((a.size for a in expert_axes(graph, axes)), default=1)
        tokens = min((a.size for a in token_axes(graph, axes)), default=1)
        layers = sum(b.count for b in graph.blocks) or len(graph.nodes)
        training = self.options.mode == "training"
        batch = self.bench.whole.options.batch or self._own_batch()
        for tp, cp, ep, dp, pp in factorizations(self.devices, 5):
            sizes = {"tp": tp, "cp": cp, "ep": ep, "dp": dp, "pp": pp}
            mesh = {axis: n for axis, n in sizes.items() if n > 1}
            text = ",".join(f"{a}={n}" for a, n in mesh.items())
            if ep > 1 and experts % ep:
                if experts > 1:
                    self.log.leave_out(f"ep does not divide the {experts} experts", text)
                continue
            if cp > 1 and (tokens % cp or tokens // cp < MIN_TOKENS):
                if tokens > 1:
                    self.log.leave_out(f"cp leaves less than {MIN_TOKENS} tokens", text)
                continue
            if pp > layers:
                self.log.leave_out(f"pp needs more than the {layers} layers", text)
                continue
            if batch % (dp * ep):
                self.log.leave_out(f"replicas do not divide the batch of {batch}", text)
                continue
            share = batch // (dp * ep)
            for microbatch in self._microbatches(share, pp):
                for sequence in (False, True)[: 2 if tp > 1 and tokens > 1 and training else 1]:
                    options = replace(
                        self.options,
                        parallel=mesh,
                        microbatch=microbatch,
                        sequence_parallel=sequence or (self.options.sequence_parallel and tp > 1),
                        batch=batch if self.options.batch or dp * ep > 1 else None,
                    )
                    yield Candidate(options, self._bound_s(options, share))

    def _own_batch(self) -> int:
        return self.bench.imported(None, *self._first_key()).batch or 1

    def _first_key(self) -> tuple[str, int | None, None]:
        if self.options.mode != "generation":
            return self.options.mode, self.options.sequence, None
        return "prefill", self.bench.whole.generated_tokens()[0], None

    def _microbatches(self, share: int, stages: int) -> list[int | None]:
        if self.options.microbatch is not None:
            return [self.options.microbatch] if share % self.options.microbatch == 0 else []
        if self.options.mode != "training":
            return [None]
        sizes = {1, 2, 4, 8} if stages > 1 else {1, 2, 4, share}
        return [n for n in sorted(sizes) if share % n == 0]

    def _bound_s(self, options: Options, share: int) -> float:
        """Seconds that no device of the mesh can do without: its part of the work, and the bubble."""
        microbatch = options.microbatch or share
        stages = options.parallel.get("pp", 1)
        ways = options.parallel.get("tp", 1) * options.parallel.get("cp", 1)
        seconds, counts = self._nodes(microbatch)
        # A part of an operator is still a kernel to launch, unless it is fused with others.
        eager = self.options.execution == "eager"
        least_s = np.minimum(seconds, self.hardware.launch.least_s if eager else 0.0)
        serial_s = float((np.maximum(seconds / ways, least_s) * counts).sum())
        return serial_s / stages * (share // microbatch + stages - 1)

    def _nodes(self, samples: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(seconds, count) of every node of one micro-batch on one device, without the update."""
        from opbound.pricing import step_graph

        if samples not in self._serial:
            traced = samples if (self.options.batch or 1) > 1 else None
            imported = self.bench.imported(traced, *self._first_key())
            graph = step_graph(imported.graph, self.options, self.progress)
            nodes = [n for n in graph.nodes if n.phase != "optimizer"]
            cost = self.bench.pricer.cost
            self._serial[samples] = (
                np.array([cost(n).time_s for n in nodes]),
                np.array([float(n.count) for n in nodes]),
            )
        return self._serial[samples]

    # --- pricing ----------------------------------------------------------------------------------------

    def _levels(self, options: Options) -> list[tuple[int, str]]:
        """(ZeRO stage, recomputation), from the plainest to what stores least."""
        if options.mode != "training":
            return [(0, "none")]
        stages = (0, 1, 3) if options.parallel.get("dp", 1) > 1 else (0,)
        if options.zero and options.parallel.get("dp", 1) > 1:
            stages = (options.zero,)
        policies: tuple[str, ...] = (options.recompute,)
        if options.recompute == "none":
            # Only the ranks of a pipeline differ in what fits them.
            pipelined = options.parallel.get("pp", 1) > 1
            policies = ("none", "fit") if pipelined else ("none", "selective", "full")
        pairs = [(z, r) for r in policies for z in stages]
        # Recomputation with everything replicated is never what fits best.
        return [(z, r) for z, r in pairs if z or r == policies[0] or len(stages) == 1]

    def _price_all(self, candidates: list[Candidate], deadline: float) -> None:
        """Prices candidates, those that promise most first, until the time is up."""
        queue = list(candidates)
        fitting: set[tuple[object, str]] = set()
        while queue:
            candidate = min(queue, key=self._guess_s)
            queue.remove(candidate)
            times = sorted(
                m.step_time_s for c, m in self.log.priced if m.peak_bytes <= self.capacity_bytes
            )
            if len(times) >= SHOWN and candidate.bound_s >= times[SHOWN - 1]:
                reason = "their work alone takes longer than the tenth fastest"
                self.log.leave_out(reason, candidate.text())
                continue
            if time.monotonic() > deadline and times:
                self.log.leave_out(f"not priced within {SEARCH_S:.0f} s", candidate.text())
                continue
            levels = self._levels(candidate.options)
            zero, recompute = levels[candidate.level]
            tried = replace(
                candidate, options=replace(candidate.options, zero=zero, recompute=recompute)
            )
            fits = self._price(tried)
            if fits:
                fitting.add((candidate.key, recompute))
            if fits is None or candidate.level + 1 == len(levels):
                continue
            # A share of the update may be faster too; to compute again only saves memory.
            if (
                levels[candidate.level + 1][1] == recompute
                or (candidate.key, recompute) not in fitting
            ):
                queue.append(replace(candidate, level=candidate.level + 1))

    def _guess_s(self, candidate: Candidate) -> float:
        """What a candidate may take: only the order of pricing depends on it.

        The bound, times how far off it was where as much was communicated, or before that is known, times a
        factor that has what splits operators tried later than what splits samples and layers.
        """
        size = candidate.options.parallel.get
        tp, cp, dp = size("tp", 1), size("cp", 1) * size("ep", 1), size("dp", 1)
        far = 2.0 if tp > node_devices(self.hardware) else 1.0
        prior = far * (1 + 0.3 * log2(tp) + 0.3 * log2(cp) + 0.02 * log2(dp))
        factor = self._factors.get(splits(candidate.options), prior)
        return candidate.bound_s * factor * (1 + 0.02 * candidate.level)

    def _price(self, candidate: Candidate) -> bool | None:
        """Prices a candidate; whether it fits, None if it cannot be applied."""
        least = self._least_bytes(candidate.options)
        if least > self.capacity_bytes:
            reason = "what must be stored exceeds the memory"
            self.log.leave_out(reason, f"{candidate.text()}: {least / 1e9:.0f} GB")
            return False
        self.progress(f"pricing {candidate.text()} ({len(self.log.priced)} priced)")
        try:
            measured = self.bench.measure(candidate.options)
        except OpboundError as error:
            self.log.leave_out("cannot be applied", f"{candidate.text()}: {error}")
            return None
        self.log.priced.append((candidate, measured))
        if candidate.bound_s > 0:
            key, factor = splits(candidate.options), measured.step_time_s / candidate.bound_s
            self._factors[key] = min(factor, self._factors.get(key, factor))
        return measured.peak_bytes <= self.capacity_bytes

    def _least_bytes(self, options: Options) -> float:
        """Bytes that a device stores at least: its even share of the weights and what belongs to them."""
        size = options.parallel.get
        ways = size("tp", 1) * size("pp", 1) * size("ep", 1) * size("auto", 1)
        replicas = size("dp", 1) if options.zero else 1
        weights = sum(v.type.bytes * v.count for v in self._first_graph().parameters)
        elements = sum(v.type.elements * v.count for v in self._first_graph().parameters)
        if options.mode != "training":
            return weights / ways
        # AdamW keeps two moments in fp32; gradients have the weights' dtype.
        states = 0 if options.optimizer == "sgd" else 8 * elements
        kept = weights / (replicas if options.zero == 3 else 1)
        gradients = weights / (replicas if options.zero >= 2 else 1)
        return (kept + gradients + states / replicas) / ways + self._saved_bytes(options)

    def _saved_bytes(self, options: Options) -> float:
        """Bytes that wait for their backward pass at least: no axis splits any of them better than evenly.

        The first rank of a pipeline holds as many micro-batches as there are stages.
        """
        from costing.memory import memory_use
        from opbound.pricing import step_graph

        if options.microbatch is None:
            return 0.0
        policy = "full" if options.recompute == "fit" else options.recompute
        key = (options.microbatch, policy)
        if key not in self._saved:
            imported = self.bench.imported(options.microbatch, *self._first_key())
            graph = step_graph(imported.graph, replace(options, recompute=policy), self.progress)
            self._saved[key] = memory_use(graph).saved_bytes
        size = options.parallel.get
        stages = size("pp", 1)
        share = (options.batch or 1) // (size("dp", 1) * size("ep", 1))
        waiting = min(share // options.microbatch, stages) / stages
        return self._saved[key] * waiting / (size("tp", 1) * size("cp", 1) * size("auto", 1))

    def _price_searched(self, deadline: float) -> None:
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
                    meshes.setdefault(tuple(sizes.items()), Candidate(options, 0.0))
        for candidate in list(meshes.values())[:SEARCHED]:
            if time.monotonic() > deadline:
                return
            self._price(candidate)


MIN_TOKENS = 128
"""Tokens below which a device's part of a sequence is not worth splitting off."""


def whole_graph(bench: Bench, mode: str, sequence: int | None, past: int | None) -> Graph:
    """The folded forward graph of the whole batch."""
    return bench.imported(bench.whole.workload.traced, mode, sequence, past).graph
