"""What a strategy takes at least, found in a fraction of the time that pricing it takes.

No bound is a guess: a strategy whose bound exceeds what another one takes cannot be the fastest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graph_ir.errors import OpboundError
from opbound.analysis import Analysis
from opbound.bench import Bench
from opbound.candidates import Candidate
from opbound.options import Options

if TYPE_CHECKING:
    from graph_ir.graph import Graph, Node

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class _Alone:
    """One micro-batch of one replica in one stage."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    activations_bytes: float = 0.0
    """At the peak."""
    saved_bytes: float = 0.0
    """From the forward to the backward pass."""
    error: str = ""
    """Why it cannot be split so."""


class Bounds:
    """The bounds of one model's strategies.

    Args:
        bench: shares imports and prices.
        options: of the search.
    """

    def __init__(self, bench: Bench, options: Options) -> None:
        self.bench = bench
        self.options = options
        self.hardware = bench.whole.hardware
        self._operators: dict[int, tuple[Seconds, Seconds]] = {}
        self._alone: dict[tuple[object, ...], _Alone] = {}
        self._saved: dict[tuple[int, str], float] = {}
        self._cells: dict[int, float] = {}
        self._unrecomputed: dict[str, float] = {}

    def first_graph(self) -> Graph:
        """The folded forward graph of the whole batch; in generation mode, the prefill's."""
        return self.bench.imported(self.bench.whole.workload.traced, *self.first_key()).graph

    def first_key(self) -> tuple[str, int | None, None]:
        """Mode and tokens of `first_graph`."""
        if self.options.mode != "generation":
            return self.options.mode, self.options.sequence, None
        return "prefill", self.bench.whole.generated_tokens()[0], None

    # --- seconds ----------------------------------------------------------------------------------------

    def compute_s(self, candidate: Candidate) -> float:
        """Seconds of the work alone: no device is spared its part of every operator's FLOPs and bytes."""
        size = candidate.options.parallel.get
        ways = size("tp", 1) * size("cp", 1)
        samples = candidate.options.microbatch or candidate.share
        work_s, least_s = self._work(samples)
        return self._over_stages(candidate, float(np.maximum(work_s / ways, least_s).sum()))

    def split_s(self, candidate: Candidate) -> float:
        """Seconds of one replica in one stage, as priced: with what is communicated within a micro-batch.

        Replicas and stages add to it. What ZeRO sends takes its own time beside it.
        """
        alone = self._priced_alone(candidate)
        passes_s = max(alone.forward_s + alone.backward_s, self._gathering_s(candidate))
        return self._over_stages(candidate, passes_s)

    def evenly_cut_s(self, candidate: Candidate) -> float:
        """Seconds with stages that take equally long: no bound, but nearer the truth."""
        alone = self._priced_alone(candidate)
        passes_s = max(alone.forward_s + alone.backward_s, self._gathering_s(candidate))
        stages = candidate.options.parallel.get("pp", 1)
        return passes_s * (candidate.microbatches + stages - 1) / stages

    def reason_against(self, candidate: Candidate) -> str:
        """Why a micro-batch cannot be split so; empty if it can."""
        return self._priced_alone(candidate).error

    def unrecomputed_s(self, candidate: Candidate) -> float:
        """Seconds of the same strategy if no rank had to recompute, as priced."""
        options = candidate.options
        if options.recompute != "fit":
            return 0.0
        key = candidate.text()
        if key not in self._unrecomputed:
            plain = self.bench.measure(candidate.without_recomputation.options)
            self._unrecomputed[key] = plain.step_time_s
        return self._unrecomputed[key]

    def _over_stages(self, candidate: Candidate, one_s: float) -> float:
        """Least time of a step from the time of one micro-batch in all stages together.

        The first of m micro-batches goes through all stages, and then the last stage works on the others.
        Where stages are balanced by time, one falls short of its even share by a cell at most.

        However a pipeline is cut: stage k works on m micro-batches, and before the first one stages 1 to
        k - 1 have worked on it forward, and do so backward after the last one. All of these times are at
        most X if stage k takes X/m (1 - 1/m)^(k-1), which adds up to X (1 - (1 - 1/m)^p).
        """
        stages, runs = candidate.options.parallel.get("pp", 1), candidate.microbatches
        if not self._is_plain(candidate):
            return max(one_s * runs / stages, one_s)
        any_cut_s = one_s / (1 - (1 - 1 / runs) ** stages)
        if candidate.options.balance != "time" or candidate.options.stages or stages == 1:
            return any_cut_s
        short = self._largest_cell(candidate.options.microbatch or candidate.share)
        return max(any_cut_s, one_s * (1 + (runs - 1) * (1 / stages - short)))

    def _largest_cell(self, samples: int) -> float:
        """The part of a micro-batch's time that the largest piece between two places to cut takes."""
        if samples not in self._cells:
            from partitioner.cells import Cells

            def seconds(node: Node) -> float:
                return 0.0 if node.phase == "optimizer" else self.bench.pricer.cost(node).time_s

            each = Cells(self._step_graph(samples, "none")).per_cell(seconds)
            self._cells[samples] = max(each) / sum(each)
        return self._cells[samples]

    def _is_plain(self, candidate: Candidate) -> bool:
        """Whether every rank of the pipeline holds one stage."""
        return candidate.options.schedule in ("1f1b", "gpipe")

    def _priced_alone(self, candidate: Candidate) -> _Alone:
        key = candidate.inner
        if key not in self._alone:
            options, samples = candidate.options, candidate.options.microbatch or candidate.share
            mesh = {a: n for a, n in options.parallel.items() if a in ("tp", "cp", "ep")}
            alone = replace(
                options,
                parallel=mesh,
                batch=None if options.batch is None else samples * mesh.get("ep", 1),
                zero=0,
                shard_group=0,
                stages=(),
                balance="time",
                recompute="none" if options.recompute == "fit" else options.recompute,
            )
            try:
                self._alone[key] = self._price_alone(self.bench.analysis(alone))
            except OpboundError as error:
                self._alone[key] = _Alone(error=str(error))
        return self._alone[key]

    def _price_alone(self, analysis: Analysis) -> _Alone:
        options = analysis.options
        if options.mode == "generation":
            return _Alone(self.bench.measure(options).step_time_s)
        cost = analysis.price(analysis.imported(options.mode, options.sequence)).cost
        part = cost.stages[0][0]
        return _Alone(
            part.times.forward.time_s,
            part.times.backward.time_s,
            part.memory.by_kind_bytes["activations"],
            part.memory.saved_bytes,
        )

    def _gathering_s(self, candidate: Candidate) -> float:
        """Seconds in which a micro-batch's weights are gathered and its gradients scattered (ZeRO 3).

        Layers are gathered for either pass. Experts' weights, whose groups are smaller, are left out.
        """
        from graph_ir.graph import Node
        from partitioner.mesh import Mesh
        from partitioner.strategies.expert import expert_axes

        options = candidate.options
        if options.zero != 3 or options.mode != "training" or options.shard_group:
            return 0.0
        mesh = Mesh(dict(options.parallel), tuple(options.mesh_order))
        axes = sorted((mesh.axis(a) for a in ("cp", "ep", "dp")), key=lambda a: a.stride)
        axes = [a for a in axes if a.size > 1]
        size = prod(a.size for a in axes)
        if any(a.stride * a.size != b.stride for a, b in pairwise(axes)):
            return 0.0
        graph = self.first_graph()
        experts = expert_axes(graph, graph.axes)
        group = {"axis": "+".join(a.name for a in axes), "group_size": size}
        group |= {"group_stride": axes[0].stride, "during": "backward"}
        seconds = 0.0
        for value in graph.parameters:
            if experts.isdisjoint(graph.axes.all_of(value)):
                elements = value.type.elements * value.count // mesh.axis("tp").size
                whole = value.altered(type=value.type.with_shape((elements,)), count=1)
                part = whole.altered(type=whole.type.with_shape((-(-elements // size),)))
                gather = Node("", "all_gather", (part,), (whole,), group)
                scatter = Node("", "reduce_scatter", (whole,), (part,), group)
                times = 2 if value.count > 1 else 1
                seconds += times * self._message_s(gather) + self._message_s(scatter)
        return seconds

    def _message_s(self, node: Node) -> float:
        """Seconds of what is sent, without latency: many weights may be one message."""
        cost = self.bench.pricer.cost(node)
        sent = [s for bound, s in cost.terms.items() if bound.startswith("network")]
        return min(max(sent, default=0.0), cost.time_s)

    def _work(self, samples: int) -> tuple[Seconds, Seconds]:
        """Of every operator of one micro-batch on one device: its work, and the shortest kernel."""
        if samples not in self._operators:
            nodes = [n for n in self._step_graph(samples, "none").nodes if n.phase != "optimizer"]
            counts = np.array([float(n.count) for n in nodes])
            work = np.array([self._work_s(n) for n in nodes])
            issued = np.array([self.bench.pricer.cost(n).time_s > 0 for n in nodes])
            # A part of an operator is still a kernel to launch, unless it is fused with others.
            least_s = self.hardware.launch.least_s if self.options.execution == "eager" else 0.0
            self._operators[samples] = work * counts, issued * least_s * counts
        return self._operators[samples]

    def _work_s(self, node: Node) -> float:
        cost = self.bench.pricer.cost(node)
        if cost.time_s == 0:
            return 0.0
        compute_s = cost.terms.get("compute", 0.0)
        if self.options.execution != "eager":
            return compute_s
        rate = self.hardware.main_memory.sustained_bytes_per_s
        moved_s = (cost.bytes_read + cost.bytes_written) / rate
        return min(max(compute_s, moved_s), cost.time_s)

    def _step_graph(self, samples: int, policy: str) -> Graph:
        traced = samples if (self.options.batch or 1) > 1 else None
        imported = self.bench.imported(traced, *self.first_key())
        work = self.bench.whole.work
        folded = work.folded(imported.graph, self.options)
        return work.step_graph(folded, replace(self.options, recompute=policy))

    # --- bytes ------------------------------------------------------------------------------------------

    def least_bytes(self, candidate: Candidate) -> float:
        """Bytes that a device stores at least: its even share of the weights and what belongs to them."""
        options = candidate.options
        size = options.parallel.get
        ways = size("tp", 1) * size("pp", 1) * size("ep", 1) * size("auto", 1)
        # Weights are stored once in all ranks that see other data.
        replicas = size("dp", 1) * size("cp", 1) if options.zero else 1
        parameters = self.first_graph().parameters
        weights = sum(v.type.bytes * v.count for v in parameters)
        elements = sum(v.type.elements * v.count for v in parameters)
        if options.mode != "training":
            return weights / ways
        # AdamW keeps two moments in fp32; gradients have the weights' dtype.
        states = 0 if options.optimizer == "sgd" else 8 * elements
        kept = weights / (replicas if options.zero == 3 else 1)
        gradients = weights / (replicas if options.zero >= 2 else 1)
        stored = (kept + gradients + states / replicas) / ways
        return stored + self._saved_bytes(candidate)

    def saves(self, candidate: Candidate) -> bool:
        """Whether its recomputation keeps less for the backward pass than none would."""
        samples = candidate.options.microbatch or candidate.share
        none, own = (self._saved_whole(samples, p) for p in ("none", candidate.options.recompute))
        return own < none

    def _saved_whole(self, samples: int, policy: str) -> float:
        """Bytes that one micro-batch leaves on one device."""
        from costing.memory import memory_use

        key = (samples, policy)
        if key not in self._saved:
            self._saved[key] = memory_use(self._step_graph(samples, policy)).saved_bytes
        return self._saved[key]

    def _saved_bytes(self, candidate: Candidate) -> float:
        """Bytes that wait for their backward pass at least: no axis splits any of them better than evenly.

        Stage k of p keeps p - k + 1 micro-batches, or all there are. However the layers are shared out, some
        stage keeps at least the sum of what one micro-batch leaves over that of the stages' reciprocals.
        """
        options = candidate.options
        samples = options.microbatch or candidate.share
        policy = "full" if options.recompute == "fit" else options.recompute
        alone = self._alone.get(candidate.inner) if options.recompute == policy else None
        if alone is not None and options.parallel.get("pp", 1) == 1:
            return alone.activations_bytes
        size = options.parallel.get
        stages = range(1, size("pp", 1) + 1)
        kept = [min(candidate.microbatches, k) if self._is_plain(candidate) else 1 for k in stages]
        held = sum(1 / n for n in kept)
        if alone is not None:
            return alone.saved_bytes / held
        ways = size("tp", 1) * size("cp", 1) * size("auto", 1)
        return self._saved_whole(samples, policy) / held / ways
