"""Pipeline schedules: which rank holds which stages, and in what order it works on the micro-batches.

A schedule is only an order; when things happen, and so the bubbles, is found by running it
(`pipeline_timeline`).

Sources: GPipe (Huang et al. 2019, arXiv 1811.06965); 1F1B and interleaved 1F1B (Narayanan et al.
2021, arXiv 2104.04473, section 2.2); the others' in `zero_bubble` and `dualpipe`.
"""

from __future__ import annotations

from dataclasses import dataclass

from costing.dualpipe import dualpipe
from costing.pipeline_work import BACKWARD, FORWARD, Slot, Work
from costing.zero_bubble import zb_h1, zb_v
from graph_ir.errors import MeshError

KNOWN = "gpipe, 1f1b, interleaved:V (V stages per rank), zb-h1, zb-v, dualpipe"
_PLAIN = ("gpipe", "1f1b", "zb-h1", "zb-v", "dualpipe")

Layout = tuple[tuple[int, ...], ...]
"""Of each rank, the stages that it holds."""


@dataclass(frozen=True)
class Schedule:
    """A schedule by name."""

    name: str
    chunks: int = 1
    """Stages per rank, into which the model is cut: of an interleaved schedule V, of the V-shaped one 2."""

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Reads `--schedule`.

        Raises:
            MeshError: if it is not a known schedule.
        """
        name, _, chunks = text.partition(":")
        if name in _PLAIN and text == name:
            return cls(name, 2 if name == "zb-v" else 1)
        if name == "interleaved" and chunks.isdecimal() and int(chunks) >= 1:
            return cls("interleaved", int(chunks))
        raise MeshError(f"unknown schedule {text!r}; known: {KNOWN}")

    def layout(self, ranks: int) -> Layout:
        """Which stages each rank holds, in model order counted from 0."""
        if self.name == "zb-v":
            return tuple((r, 2 * ranks - 1 - r) for r in range(ranks))
        if self.name == "dualpipe" and ranks > 1:
            return tuple((r, ranks - 1 - r) for r in range(ranks))
        return tuple(tuple(range(r, ranks * self.chunks, ranks)) for r in range(ranks))

    @property
    def parts_backward(self) -> bool:
        """Whether the gradients of weights have passes of their own."""
        return self.name in ("zb-h1", "zb-v", "dualpipe")

    def check(self, ranks: int, microbatches: int) -> None:
        """Whether the schedule can be run.

        Raises:
            MeshError: if not; the message names the nearest numbers that work.
        """
        if self.name == "interleaved" and self.chunks > 1 and microbatches % ranks:
            near = max(round(microbatches / ranks), 1) * ranks
            raise MeshError(
                f"interleaved:{self.chunks} needs a multiple of {ranks} micro-batches (the pipeline's "
                f"ranks), not {microbatches}; the nearest that works is {near}: change --batch, "
                "--microbatch or --schedule"
            )
        if self.name != "dualpipe" or ranks == 1:
            return
        if ranks % 2:
            raise MeshError(
                f"dualpipe needs an even number of ranks, not pp={ranks}; "
                f"the nearest that works is pp={ranks + 1}"
            )
        if microbatches % 2 or microbatches < 2 * ranks:
            near = max(microbatches + microbatches % 2, 2 * ranks)
            raise MeshError(
                f"dualpipe needs an even number of micro-batches, {2 * ranks} or more for "
                f"pp={ranks}, not {microbatches}; the nearest that works is {near}: change --batch, "
                "--microbatch or --schedule"
            )

    def order(self, rank: int, ranks: int, microbatches: int, training: bool) -> list[Slot]:
        """What one rank does, in order.

        Raises:
            MeshError: if the number of micro-batches does not fit.
        """
        if not training:
            return self._forwards(rank, ranks, microbatches)
        self.check(ranks, microbatches)
        if self.name == "zb-h1":
            return zb_h1(rank, ranks, microbatches)
        if self.name == "zb-v":
            return zb_v(rank, ranks, microbatches)
        if self.name == "dualpipe" and ranks > 1:
            return dualpipe(rank, ranks, microbatches)
        return self._one_backward(rank, ranks, microbatches)

    def _one_backward(self, rank: int, ranks: int, microbatches: int) -> list[Slot]:
        """Some forward passes, then one forward and one backward in turn."""
        forwards = self._rounds(rank, ranks, microbatches, FORWARD)
        backwards = self._rounds(rank, ranks, microbatches, BACKWARD)
        if self.name == "gpipe":
            warmup = len(forwards)
        elif self.chunks == 1:
            warmup = ranks - rank - 1
        else:
            # Narayanan et al., figure 4: the last rank too runs ahead by all but one chunk.
            warmup = (ranks - rank - 1) * 2 + (self.chunks - 1) * ranks
        warmup = min(warmup, len(forwards))
        order = forwards[:warmup]
        for forward, backward in zip(forwards[warmup:], backwards, strict=False):
            order += [forward, backward]
        return order + backwards[len(forwards) - warmup :]

    def _rounds(self, rank: int, ranks: int, microbatches: int, kind: str) -> list[Slot]:
        """Micro-batches in groups of `ranks`; each group passes every stage before the next."""
        stages = self.layout(ranks)[rank]
        group = ranks if len(stages) > 1 else microbatches
        return [
            (Work(stage, m, kind),)
            for first in range(0, microbatches, group)
            for stage in (stages if kind == FORWARD else reversed(stages))
            for m in range(first, min(first + group, microbatches))
        ]

    def _forwards(self, rank: int, ranks: int, microbatches: int) -> list[Slot]:
        """Without a backward pass: every micro-batch as soon as the stage before is done with it."""
        stages = self.layout(ranks)[rank]
        if self.name not in ("zb-v", "dualpipe") or ranks == 1:
            return self._rounds(rank, ranks, microbatches, FORWARD)
        # One enters every second tick (of both ends at once, in DualPipe) and moves on with each
        # tick: a rank's two stages then work in turn, since their distance is odd.
        half = -(-microbatches // 2)
        due = []
        for index, stage in enumerate(stages):
            ways = range(microbatches)
            if self.name == "dualpipe":
                ways = range(half) if index == 0 else range(half, microbatches)
            due += [(2 * (m - ways.start) + stage, Work(stage, m, FORWARD)) for m in ways]
        return [(work,) for _, work in sorted(due)]
