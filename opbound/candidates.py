"""The strategies that a search looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from opbound.options import Options

if TYPE_CHECKING:
    from graph_ir.graph import Graph

MIN_TOKENS = 128
"""Tokens below which a device's part of a sequence is not worth splitting off."""

POLICIES = ("none", "selective", "full")
"""Recomputation, from the fastest to what stores least."""

ZERO_STAGES = (0, 1, 3)


@dataclass(frozen=True)
class Candidate:
    """A strategy."""

    options: Options
    share: int = 1
    """Samples of each replica."""

    @property
    def microbatches(self) -> int:
        """Of a step."""
        return self.share // (self.options.microbatch or self.share)

    @property
    def inner(self) -> tuple[object, ...]:
        """Equal for candidates that split a micro-batch alike: they differ in replicas, stages and ZeRO."""
        o = self.options
        size = o.parallel.get
        ways = size("tp", 1), size("cp", 1), size("ep", 1), o.sequence_parallel
        recompute = "none" if o.recompute == "fit" else o.recompute
        return (*ways, o.microbatch or self.share, recompute)

    @property
    def without_recomputation(self) -> Candidate:
        """The same strategy where the backward pass finds all activations saved."""
        return replace(self, options=replace(self.options, recompute="none"))

    def recomputes_more_than(self, other: Candidate) -> bool:
        """Whether this is the other one with more recomputation."""
        mine, its = self.options, other.options
        order = ("none", "fit", *POLICIES[1:])
        return mine == replace(its, recompute=mine.recompute) and (
            order.index(mine.recompute) > order.index(its.recompute)
        )

    def text(self) -> str:
        """As the command line takes it."""
        o = self.options
        parts = [",".join(f"{a}={n}" for a, n in o.parallel.items() if n > 1) or "dp=1"]
        parts += ["--sequence-parallel"] if o.sequence_parallel else []
        parts += [f"--zero {o.zero}"] if o.zero else []
        parts += [f"--microbatch {o.microbatch}"] if o.microbatch else []
        parts += [f"--recompute {o.recompute}"] if o.recompute != "none" else []
        return " ".join(parts)


@dataclass(frozen=True)
class Limits:
    """What of a model can be split, and into how many parts."""

    experts: int
    tokens: int
    layers: int
    batch: int

    @staticmethod
    def of(graph: Graph, batch: int) -> Limits:
        """The limits of a forward graph."""
        from partitioner.strategies.expert import expert_axes
        from partitioner.strategies.sequence import token_axes

        return Limits(
            experts=min((a.size for a in expert_axes(graph, graph.axes)), default=1),
            tokens=min((a.size for a in token_axes(graph, graph.axes)), default=1),
            layers=sum(b.count for b in graph.blocks) or len(graph.nodes),
            batch=batch,
        )

    def reason_against(self, tp: int, cp: int, ep: int, dp: int, pp: int) -> str | None:
        """Why a mesh is impossible or not worth trying; empty where that goes without saying."""
        if ep > 1 and self.experts % ep:
            return f"ep does not divide the {self.experts} experts" if self.experts > 1 else ""
        if cp > 1 and (self.tokens % cp or self.tokens // cp < MIN_TOKENS):
            return f"cp leaves less than {MIN_TOKENS} tokens" if self.tokens > 1 else ""
        if pp > self.layers:
            return f"pp needs more than the {self.layers} layers"
        if self.batch % (dp * ep):
            return f"replicas do not divide the batch of {self.batch}"
        return None


def candidates(
    options: Options, limits: Limits, devices: int, left_out: dict[str, list[str]]
) -> Iterator[Candidate]:
    """All strategies for a number of devices: meshes, micro-batches, and ways to save memory.

    Args:
        options: of the analysis; what differs from the defaults is kept as it is given.
        limits: of the model.
        devices: how many.
        left_out: gets the meshes that are not tried, by reason.
    """
    training = options.mode == "training"
    for tp, cp, ep, dp, pp in factorizations(devices, 5):
        sizes = {"tp": tp, "cp": cp, "ep": ep, "dp": dp, "pp": pp}
        mesh = {axis: n for axis, n in sizes.items() if n > 1}
        reason = limits.reason_against(tp, cp, ep, dp, pp)
        if reason is not None:
            if reason:
                left_out.setdefault(reason, []).append(
                    ",".join(f"{a}={n}" for a, n in mesh.items())
                )
            continue
        share = limits.batch // (dp * ep)
        tokens = tp > 1 and limits.tokens > 1 and training
        for microbatch in _microbatches(options, share, pp):
            for sequence in (False, True)[: 2 if tokens else 1]:
                for zero, recompute in _ways_to_save(options, mesh):
                    yield Candidate(
                        replace(
                            options,
                            parallel=mesh,
                            microbatch=microbatch,
                            sequence_parallel=sequence or (options.sequence_parallel and tp > 1),
                            batch=limits.batch if options.batch or dp * ep > 1 else None,
                            zero=zero,
                            recompute=recompute,
                        ),
                        share,
                    )


def _microbatches(options: Options, share: int, stages: int) -> list[int | None]:
    if options.microbatch is not None:
        return [options.microbatch] if share % options.microbatch == 0 else []
    if options.mode != "training":
        return [None]
    sizes = {1, 2, 4, 8} if stages > 1 else {1, 2, 4, share}
    return [n for n in sorted(sizes) if share % n == 0]


def _ways_to_save(options: Options, mesh: dict[str, int]) -> list[tuple[int, str]]:
    """(ZeRO stage, recomputation)."""
    if options.mode != "training":
        return [(0, "none")]
    replicas = not {"dp", "cp", "ep"}.isdisjoint(mesh)
    stages = ((options.zero,) if options.zero else ZERO_STAGES) if replicas else (0,)
    policies: tuple[str, ...] = POLICIES if options.recompute == "none" else (options.recompute,)
    if options.recompute == "none" and mesh.get("pp", 1) > 1:
        # Only the ranks of a pipeline differ in what fits them.
        policies = ("none", "fit")
    return [(zero, policy) for policy in policies for zero in stages]


def factorizations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as an ordered product of so many factors."""
    if parts == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in factorizations(number // first, parts - 1):
                yield (first, *rest)
