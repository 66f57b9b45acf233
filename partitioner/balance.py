"""Where a row of cells is cut into stages, so that the worst stage is as good as can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ROUNDS = 50
"""Halvings of the interval in which the worst stage's cost is sought: 1e-15 of it is left."""

_ROUNDING = 1 + 1e-12


@dataclass(frozen=True)
class Load:
    """What a stage's cells amount to, of one kind (seconds, bytes).

    A stage that holds the cells a to b - 1 bears `weights[stage]` for each unit of their `running`, their
    `standing` as it is, and what its end adds, `border[b]`.
    """

    running: Sequence[float]
    standing: Sequence[float] = ()
    border: Sequence[float] = ()
    weights: Sequence[float] = ()
    limit: float | None = None
    """Most that a stage can bear; None to make the worst stage's load as small as possible."""

    def worst(self, cuts: Sequence[int], stages: int) -> float:
        """What the stage that bears most bears."""
        edges = [0, *cuts, len(self.running)]
        lines = [self.line(stage) for stage in range(stages)]
        spans = zip(lines, pairwise(edges), strict=True)
        return max(float(ends[b] - before[a]) for (before, ends), (a, b) in spans)

    def line(self, stage: int) -> tuple[Array, Array]:
        """For every place: what lies before it, and the same with what a cut there adds."""
        weight = self.weights[stage] if self.weights else 1.0
        each = np.asarray(self.running, dtype=np.float64) * weight
        if self.standing:
            each = each + np.asarray(self.standing, dtype=np.float64)
        before = np.concatenate([[0.0], np.cumsum(each)])
        ends = before + np.asarray(self.border) if self.border else before
        return before, ends


def balanced_cuts(loads: Sequence[Load], stages: int) -> list[int] | None:
    """Cuts cells into consecutive stages, none of them empty.

    Args:
        loads: the first one is balanced, the others keep their limits.
        stages: number of stages.

    Returns:
        The first cell of each stage but the first, or None if there are too few cells or the limits
        cannot be kept.
    """
    count = len(loads[0].running)
    if count < stages:
        return None
    lines = [[load.line(stage) for load in loads] for stage in range(stages)]
    high = max(float(line[0][1].max()) for line in lines)
    best = _cut(lines, [high, *(load.limit or 0.0 for load in loads[1:])], count)
    if best is None:
        return None
    low = 0.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        found = _cut(lines, [middle, *(load.limit or 0.0 for load in loads[1:])], count)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _cut(
    lines: Sequence[Sequence[tuple[Array, Array]]], limits: Sequence[float], count: int
) -> list[int] | None:
    """Cuts at which no stage exceeds any limit, and of those some that share out evenly.

    A stage that begins later bears less, so of all places where the stage before can end, the last one
    before a place decides whether a stage can end there.
    """
    places = np.arange(count + 1)
    reached = [places == 0]
    for line in lines:
        # The last place, before each place, at which this stage can begin.
        begin = np.maximum.accumulate(np.where(reached[-1], places, -1))
        begin = np.concatenate([[-1], begin[:-1]])
        fits = begin >= 0
        for (before, ends), limit in zip(line, limits, strict=True):
            fits &= ends - before[begin] <= limit * _ROUNDING
        reached.append(fits)
    if not reached[-1][count]:
        return None
    cuts = [count]
    for stage in reversed(range(1, len(lines))):
        end = cuts[-1]
        begins = reached[stage][:end].copy()
        for (before, ends), limit in zip(lines[stage], limits, strict=True):
            begins &= ends[end] - before[:end] <= limit * _ROUNDING
        before, ends = lines[stage][0]
        share = before[end] * stage / (stage + 1)
        cuts.append(min(np.flatnonzero(begins).tolist(), key=lambda i: abs(before[i] - share)))
    return cuts[:0:-1]
