"""DualPipe: micro-batches enter a pipeline at both of its ends, and passes of both ways overlap.

Every rank holds two stages, the rank-th from the front and the rank-th from the back, so every stage
exists twice. Source: DeepSeek-V3's report (arXiv 2412.19437, section 3.2.1, figure 5 and table 2).
"""

from __future__ import annotations

from costing.pipeline_work import BACKWARD, FORWARD, INPUT, WEIGHT, Slot, Work


def dualpipe(rank: int, ranks: int, microbatches: int) -> list[Slot]:
    """What one rank does, in order; the first half of the micro-batches enters at rank 0."""
    depth = min(rank, ranks - 1 - rank)
    inner = ranks // 2 - 1 - depth
    half = microbatches // 2
    order = _Rank(rank, ranks, half)
    near, far = order.near, order.far
    for _ in range(2 * inner):
        order.add((near, FORWARD))
    for _ in range(depth + 1):
        order.add((near, FORWARD))
        order.add((far, FORWARD))
    for _ in range(inner):
        order.add((far, INPUT))
        order.weights()
        order.add((far, FORWARD))
    for turn in range(half - 2 * inner - depth - 1):
        if turn == 0 and inner == 0:
            # The two ranks in the middle wait for each other: apart, the passes leave sooner.
            order.add((near, FORWARD))
            order.add((far, BACKWARD))
        else:
            order.add((near, FORWARD), (far, BACKWARD))
        order.add((far, FORWARD), (near, BACKWARD))
    for _ in range(inner):
        order.add((far, BACKWARD))
        order.add((far, FORWARD), (near, BACKWARD))
    # Of the last passes the second half puts off the gradients of weights.
    whole = depth + 1
    for turn in range(2 * (depth + 1)):
        way = far if turn % 2 == 0 else near
        order.add((way, BACKWARD if turn < whole else INPUT))
    for _ in range(inner):
        order.weights()
        order.add((near, INPUT))
    while order.waiting:
        order.weights()
    return order.slots


class _Rank:
    """Puts down a rank's slots; `near` is its stage for what enters at the nearer end."""

    def __init__(self, rank: int, ranks: int, half: int) -> None:
        down, up = rank, ranks - 1 - rank
        self.near, self.far = (down, up) if rank < ranks // 2 else (up, down)
        # Each way has micro-batches of its own.
        self.next = {
            (stage, forward): (0 if stage == down else half)
            for stage in (down, up)
            for forward in (True, False)
        }
        self.slots: list[Slot] = []
        self.waiting: list[Work] = []

    def add(self, *passes: tuple[int, str]) -> None:
        """One slot: the next micro-batch's pass of each stage and kind."""
        slot = []
        for stage, kind in passes:
            key = (stage, kind == FORWARD)
            work = Work(stage, self.next[key], kind)
            self.next[key] += 1
            slot.append(work)
            if kind == INPUT:
                self.waiting.append(work._replace(kind=WEIGHT))
        self.slots.append(tuple(slot))

    def weights(self) -> None:
        """The gradients of weights that have waited longest."""
        self.slots.append((self.waiting.pop(0),))
