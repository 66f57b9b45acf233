"""Zero-bubble schedules: the gradients of weights fill what would be bubbles.

Sources: ZB-H1 is of Qi et al. 2023 (arXiv 2401.10241, section 2.2 and figure 3), ZB-V of Qi et al.
2024 (arXiv 2405.15362, section 4, there V-ZB): two stages per rank, the second in reversed order, so
that the last stage lies on the first rank.
"""

from __future__ import annotations

from costing.pipeline_work import FORWARD, INPUT, WEIGHT, Slot, Work


class _Rank:
    """Puts down a rank's passes one after the other, each kind in the order of the micro-batches."""

    def __init__(self, microbatches: int) -> None:
        self.microbatches = microbatches
        self.slots: list[Slot] = []
        self.done: dict[tuple[int, str], int] = {}

    def add(self, stage: int, *kinds: str) -> None:
        """The next micro-batch's pass of each kind; nothing where all micro-batches had theirs."""
        for kind in kinds:
            microbatch = self.passed(stage, kind)
            self.done[stage, kind] = microbatch + 1
            if microbatch < self.microbatches:
                self.slots.append((Work(stage, microbatch, kind),))

    def passed(self, stage: int, kind: str) -> int:
        return self.done.get((stage, kind), 0)


def zb_h1(rank: int, ranks: int, microbatches: int) -> list[Slot]:
    """1F1B in which rank i puts off the gradients of weights by i micro-batches.

    Every rank then holds at most as many micro-batches as the first does in 1F1B.
    """
    order = _Rank(microbatches)
    warmup = min(ranks - rank - 1, microbatches)
    for _ in range(warmup):
        order.add(rank, FORWARD)
    for done in range(microbatches):
        order.add(rank, FORWARD, INPUT)
        if done >= rank:
            order.add(rank, WEIGHT)
    for _ in range(min(rank, microbatches)):
        order.add(rank, WEIGHT)
    return order.slots


def zb_v(rank: int, ranks: int, microbatches: int) -> list[Slot]:
    """The V: down through the first half of the model, and back up through the second.

    The order is made for 2 p - 1 micro-batches or more; with fewer, those that do not exist are left out.
    """
    order = _Rank(microbatches)
    enough = max(microbatches, 2 * ranks - 1)
    down, up = rank, 2 * ranks - 1 - rank
    for _ in range(2 * (ranks - rank) - 1):
        order.add(down, FORWARD)
    for _ in range(rank):
        order.add(up, FORWARD)
        order.add(down, FORWARD)
    for _ in range(ranks - rank):
        order.add(up, FORWARD, INPUT, WEIGHT)
    while order.passed(up, FORWARD) < order.passed(down, FORWARD) or (
        order.passed(down, FORWARD) < enough
    ):
        if order.passed(down, FORWARD) < enough:
            order.add(down, FORWARD)
        order.add(down, INPUT, WEIGHT)
        order.add(up, FORWARD, INPUT, WEIGHT)
    for _ in range(rank):
        order.add(down, INPUT)
        order.add(up, INPUT)
    for _ in range(ranks - rank):
        order.add(down, INPUT, WEIGHT)
    for stage in (up, down):
        for _ in range(order.passed(stage, INPUT) - order.passed(stage, WEIGHT)):
            order.add(stage, WEIGHT)
    return order.slots
