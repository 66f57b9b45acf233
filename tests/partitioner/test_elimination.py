"""The least sum of tables, against every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner.elimination import Table, least


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[Table]]:
    count = draw(st.integers(1, 6))
    sizes = [draw(st.integers(1, 4)) for _ in range(count)]
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    tables = []
    for _ in range(draw(st.integers(0, 9))):
        over = tuple(sorted(draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))))
        cost = rng.integers(0, 30, size=[sizes[u] for u in over]).astype(float)
        tables.append(Table(over, cost))
    return sizes, tables


def cost_of(tables: list[Table], choice: tuple[int, ...]) -> float:
    return sum(float(t.cost[tuple(choice[u] for u in t.over)]) for t in tables)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_least_of_all_combinations(problem: tuple[list[int], list[Table]]) -> None:
    sizes, tables = problem
    best = min(cost_of(tables, c) for c in itertools.product(*map(range, sizes)))
    found = least(sizes, tables)
    assert found.cost == pytest.approx(best)
    assert found.bound == pytest.approx(best)
    assert cost_of(tables, found.choice) == pytest.approx(found.cost)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_small_tables_still_give_a_bound(problem: tuple[list[int], list[Table]]) -> None:
    sizes, tables = problem
    best = min(cost_of(tables, c) for c in itertools.product(*map(range, sizes)))
    found = least(sizes, tables, limit=4)
    assert found.bound - 1e-9 <= best <= found.cost + 1e-9


def test_what_is_forbidden_is_avoided() -> None:
    cost = np.array([[0.0, np.inf], [np.inf, np.inf]])
    found = least([2, 2], [Table((0, 1), cost), Table((0,), np.array([5.0, 0.0]))])
    assert found.choice == (0, 0)
    assert found.cost == 5
