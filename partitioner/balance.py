"""Where a row of cells is cut into stages, so that the worst stage is as good as can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_PRECISION = 1e-9
"""How far the worst stage's load may be from the least possible, relative to it."""

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
        return _worst([self.line(stage) for stage in range(stages)], cuts)

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
    limits = [load.limit or 0.0 for load in loads[1:]]
    high = max(float(line[0][1].max()) for line in lines)
    best = _cut(lines, [high, *limits], count)
    if best is None:
        return None
    # No stage can do with less than an even share, nor with less than the largest cell.
    firsts = [line[0] for line in lines]
    low = min(max(before[-1] / stages, np.diff(before).max()) for before, _ in firsts)
    high = _worst(firsts, best)
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        found = _cut(lines, [middle, *limits], count)
        if found is None:
            low = middle
        else:
            best, high = found, _worst(firsts, found)
    return _cut(lines, [high, *limits], count) or best


def _worst(lines: Sequence[tuple[Array, Array]], cuts: Sequence[int]) -> float:
    """What the stage that bears most bears, each along its own line."""
    spans = zip(lines, pairwise([0, *cuts, len(lines[0][0]) - 1]), strict=True)
    return max(float(ends[b] - before[a]) for (before, ends), (a, b) in spans)


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
