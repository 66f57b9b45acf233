"""Cutting cells into stages against trying every cut."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner.balance import Load, balanced_cuts


@settings(deadline=None)
@given(st.data())
def test_no_cut_is_better(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 9))
    stages = data.draw(st.integers(1, 5))
    amounts = st.lists(st.integers(0, 9), min_size=count, max_size=count)
    time, standing, border = data.draw(amounts), data.draw(amounts), [*data.draw(amounts), 0]
    weights = [data.draw(st.integers(1, 5)) for _ in range(stages)]
    limit = data.draw(st.integers(0, 80))
    loads = [Load(time, border=border), Load(time, standing, weights=weights, limit=limit)]

    def slowest(cuts: tuple[int, ...]) -> float | None:
        spans = list(pairwise([0, *cuts, count]))
        for weight, (a, b) in zip(weights, spans, strict=True):
            if sum(weight * time[i] + standing[i] for i in range(a, b)) > limit:
                return None
        return max(sum(time[a:b]) + border[b] for a, b in spans)

    every = [slowest(cuts) for cuts in combinations(range(1, count), stages - 1)]
    best = min((s for s in every if s is not None), default=None)
    found = balanced_cuts(loads, stages)
    if found is None:
        assert best is None
    else:
        worst = slowest(tuple(found))
        assert worst is not None
        assert best is not None
        assert abs(worst - best) < 1e-6


def test_what_the_slowest_stage_leaves_open_is_shared_out() -> None:
    # 9 cells on 4 stages: one has 3, the others 2 each.
    cuts = balanced_cuts([Load([1.0] * 9)], 4)
    assert cuts is not None
    assert sorted(b - a for a, b in pairwise([0, *cuts, 9])) == [2, 2, 2, 3]


def test_more_stages_than_cells_are_impossible() -> None:
    assert balanced_cuts([Load([1.0] * 3)], 4) is None
