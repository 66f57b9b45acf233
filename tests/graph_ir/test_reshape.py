"""The equation of a reshape says which factor goes where; evaluating it must be numpy's reshape."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_ir.evaluate import product
from graph_ir.localize import join_arrays, ranges, shard_array
from graph_ir.reshape import reshape_equation


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes with the same number of elements: prime factors, grouped in two ways, ones strewn in."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 5]), max_size=6))

    def shape(factors: list[int]) -> tuple[int, ...]:
        dims: list[int] = []
        for factor in factors:
            if dims and draw(st.booleans()):
                dims[-1] *= factor
            else:
                dims.append(factor)
        for _ in range(draw(st.integers(0, 2))):
            dims.insert(draw(st.integers(0, len(dims))), 1)
        return tuple(dims)

    other = draw(st.permutations(primes)) if draw(st.booleans()) else primes
    return shape(primes), shape(list(other))


@settings(deadline=None, max_examples=60)
@given(reshapes())
def test_evaluates_to_numpy_reshape(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    old, new = shapes
    equation = reshape_equation(old, new)
    assert equation.shape_of(equation.inputs[0]) == old
    assert equation.shape_of(equation.outputs[0]) == new
    x = np.arange(prod(old)).reshape(old)
    if not equation.replicated:
        np.testing.assert_array_equal(product(equation, {}, new, x), x.reshape(new))
    for name in equation.names:
        if equation.rule(name) is None:
            continue
        parts = []
        for start, stop in ranges(equation.sizes[name], 2):
            local = shard_array(x, equation.inputs[0], equation.sizes, name, start, stop)
            sizes = {**equation.sizes, name: stop - start}
            target = [prod(sizes[n] for n in dim) for dim in equation.outputs[0]]
            parts.append(local.reshape(target))
        joined = join_arrays(parts, equation.outputs[0], equation.sizes, name, None)
        np.testing.assert_array_equal(joined, x.reshape(new))


@settings(deadline=None, max_examples=60)
@given(reshapes())
def test_turned_round(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    old, new = shapes
    there, back = reshape_equation(old, new), reshape_equation(new, old)
    assert sorted(there.sizes.values()) == sorted(back.sizes.values())
    assert len(there.replicated) == len(back.replicated)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ((8, 128), (2, 4, 128), "(a0 a1) a2 -> a0 a1 a2"),
        ((4, 6), (8, 3), "a0 (a1 a2) -> (a0 a1) a2"),
        ((2, 3), (3, 2), "a0 a1 -> a2 a3"),
        ((5, 2, 3), (5, 3, 2), "a0 a1 a2 -> a0 a3 a4"),
        ((1, 6), (6, 1, 1), "1 a0 -> a0 1 1"),
        ((), (1,), " -> 1"),
    ],
)
def test_factors(old: tuple[int, ...], new: tuple[int, ...], text: str) -> None:
    assert str(reshape_equation(old, new)) == text


def test_irregular_groups_need_replication() -> None:
    equation = reshape_equation((5, 2, 3), (5, 3, 2))
    assert equation.rule("a0") is not None
    assert all(equation.rule(name) is None for name in ("a1", "a2", "a3", "a4"))


def test_empty_tensors_have_no_names() -> None:
    equation = reshape_equation((0, 3), (3, 0))
    assert equation.names == ()


def test_other_number_of_elements() -> None:
    with pytest.raises(ValueError, match="cannot reshape"):
        reshape_equation((2, 3), (7,))
