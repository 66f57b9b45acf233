"""Equations: reading, binding, GEMM shapes, and what a text that makes no sense says."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_ir.equation import Equation, GemmShape, Window, bind, names_of
from graph_ir.evaluate import product
from graph_ir.localize import join_arrays, ranges, shard_array

SIZES = st.integers(1, 4)


def test_linear_layer() -> None:
    equation = bind("b s k, n k -> b s n", [(2, 3, 4), (5, 4)], [(2, 3, 5)])
    assert equation.sizes == {"b": 2, "s": 3, "k": 4, "n": 5}
    assert equation.contracted == ("k",)
    assert equation.multiply_add_flops == 2 * 2 * 3 * 4 * 5
    assert equation.gemm == GemmShape(batch=1, m=6, n=5, k=4)
    assert equation.is_matrix_product
    assert str(equation) == "b s k, n k -> b s n"


def test_gradients_swap_an_operand_with_the_result() -> None:
    equation = bind("b s k, n k -> b s n", [(2, 3, 4), (5, 4)], [(2, 3, 5)])
    assert str(equation.gradient(0)) == "b s n, n k -> b s k"
    assert str(equation.gradient(1)) == "b s n, b s k -> n k"


def test_compound_dims_are_solved() -> None:
    equation = bind("b (h d) -> b h d", [(2, 12)], [(2, 3, 4)], reduction=None)
    assert equation.sizes == {"b": 2, "h": 3, "d": 4}
    given = bind("b (h d) -> b h", [(2, 12)], [(2, 3)])
    assert given.sizes["d"] == 4
    told = bind("(h d) -> (d h)", [(12,)], [(12,)], sizes={"h": 3})
    assert told.sizes["d"] == 4


def test_windows_cannot_be_split() -> None:
    equation = bind("n c (y+r), k c r -> n k y", [(2, 3, 9), (4, 3, 3)], [(2, 4, 7)])
    assert equation.inputs[0][2] == Window("y", "r")
    assert equation.rule("y") is None
    assert equation.rule("r") is None
    assert equation.rule("c") == ("c", (1, 1), (None,))


def test_broadcast_dims_have_no_name() -> None:
    equation = bind("..., ... -> ...", [(5, 1, 3), (4, 3)], [(5, 4, 3)], reduction=None)
    assert str(equation) == "i0 1 i2, i1 i2 -> i0 i1 i2"


def test_rules() -> None:
    equation = bind("b s k, n k -> b s n", [(2, 3, 4), (5, 4)], [(2, 3, 5)], replicated={"s"})
    assert equation.rule("b") == ("b", (0, None), (0,))
    assert equation.rule("s") is None
    assert equation.rule("k") == ("k", (2, 1), (None,))
    assert bind("i -> ", [(3,)], [()], reduction=None).rule("i") is None
    assert bind("i i -> i", [(3, 3)], [(3,)]).rule("i") is None


@pytest.mark.parametrize(
    ("text", "inputs", "outputs"),
    [
        ("a b, b c -> a c", [(2, 3), (4, 5)], [(2, 5)]),  # b is 3 and 4
        ("a b -> a", [(2, 3), (4, 5)], [(2,)]),  # one operand too many
        ("a b -> a", [(2, 3, 4)], [(2,)]),  # one dim too many
        ("(a b) -> a b", [(7,)], [(2, 3)]),  # 7 is not 6
        ("(a b) -> a", [(7,)], [(2,)]),  # 7 is not a multiple of 2
        ("(a b) c -> c", [(6, 2)], [(2,)]),  # neither a nor b is known
        ("a b", [(2, 3)], []),  # no result
        ("a $ -> a", [(2, 3)], [(2,)]),  # no name
        ("a (b -> a", [(2, 3)], [(2,)]),  # no closing parenthesis
        ("a b -> a c", [(2, 3)], [(2,)]),  # one result dim too many
    ],
)
def test_nonsense_is_refused(
    text: str, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]
) -> None:
    with pytest.raises(ValueError, match=r"equation|is 3 and 4|compound"):
        bind(text, inputs, outputs)


@st.composite
def einsums(draw: st.DrawFn) -> Equation:
    """Products of one to three operands with compound dims; every result name is in an operand."""
    names = list("abcdef"[: draw(st.integers(2, 6))])
    sizes = {name: draw(SIZES) for name in names}
    operands = [
        draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
        for _ in range(draw(st.integers(1, 3)))
    ]
    known = sorted({n for names in operands for n in names})
    result = draw(st.lists(st.sampled_from(known), max_size=4, unique=True))

    def grouped(found: list[str]) -> tuple[tuple[str, ...], ...]:
        dims: list[tuple[str, ...]] = []
        for name in found:
            if dims and draw(st.booleans()):
                dims[-1] = (*dims[-1], name)
            else:
                dims.append((name,))
        return tuple(dims)

    used = {n: sizes[n] for n in {*known}}
    return Equation(tuple(map(grouped, operands)), (grouped(result),), used)


@settings(deadline=None, max_examples=60)
@given(einsums())
def test_text_form_round_trip(equation: Equation) -> None:
    shapes = [equation.shape_of(dims) for dims in (*equation.inputs, *equation.outputs)]
    count = len(equation.inputs)
    again = bind(str(equation), shapes[:count], shapes[count:], sizes=equation.sizes)
    assert again == equation
    assert again.sizes == equation.sizes


@settings(deadline=None, max_examples=60)
@given(einsums())
def test_products_equal_einsum_and_their_shards(equation: Equation) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=equation.shape_of(dims)) for dims in equation.inputs]
    shape = equation.shape_of(equation.outputs[0])
    whole = product(equation, {}, shape, *arrays)
    letters = ["".join(names_of(dims)) for dims in (*equation.inputs, *equation.outputs)]
    split = [
        a.reshape([equation.sizes[n] for n in names_of(d)])
        for a, d in zip(arrays, equation.inputs, strict=True)
    ]
    expected = np.einsum(f"{','.join(letters[:-1])}->{letters[-1]}", *split).reshape(shape)
    np.testing.assert_allclose(whole, expected, atol=1e-9)
    for name in equation.names:
        if equation.rule(name) is None:
            continue
        parts = []
        for start, stop in ranges(equation.sizes[name], 2):
            local = [
                shard_array(a, d, equation.sizes, name, start, stop)
                for a, d in zip(arrays, equation.inputs, strict=True)
            ]
            part = Equation(
                equation.inputs, equation.outputs, {**equation.sizes, name: stop - start}
            )
            parts.append(product(part, {}, part.shape_of(part.outputs[0]), *local))
        joined = join_arrays(parts, equation.outputs[0], equation.sizes, name)
        np.testing.assert_allclose(joined, whole, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(einsums())
def test_gemm_has_all_flops(equation: Equation) -> None:
    gemm = equation.gemm
    if gemm is not None:
        assert 2 * prod(gemm) == equation.multiply_add_flops
        assert gemm.k > 1 or all(equation.sizes[n] == 1 for n in equation.contracted)


@settings(deadline=None, max_examples=60)
@given(einsums())
def test_flops_of_parts_sum_to_the_whole(equation: Equation) -> None:
    for name in equation.names:
        parts = [
            Equation(
                equation.inputs, equation.outputs, {**equation.sizes, name: stop - start}
            ).multiply_add_flops
            for start, stop in ranges(equation.sizes[name], 3)
        ]
        assert sum(parts) == equation.multiply_add_flops


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 100), st.integers(1, 12))
def test_ranges_cover_everything_once(size: int, parts: int) -> None:
    found = ranges(size, parts)
    assert [i for start, stop in found for i in range(start, stop)] == list(range(size))
    lengths = [stop - start for start, stop in found]
    assert len(found) == parts
    assert max(lengths) - min(lengths) <= 1
