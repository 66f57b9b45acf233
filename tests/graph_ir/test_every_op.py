"""Every record is proven on numbers: what it computes, and every way to split it over devices.

The oracle of values is torch. The oracle of sharding rules is the operator itself: cut the operands, run the
parts, put the results together, compare with the whole; and do that for the names without a rule too, so
that a record that is stricter than it need be is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from op_cases import CASES, Case, tensors_of, torch_results  # noqa: E402
from op_sample import Array, Sample  # noqa: E402
from op_samples import SAMPLES  # noqa: E402

from graph_ir.equation import Window, names_of  # noqa: E402
from graph_ir.evaluate import run_node  # noqa: E402
from graph_ir.graph import Node  # noqa: E402
from graph_ir.localize import join_arrays, local_node, ranges, shard_array  # noqa: E402
from graph_ir.op_def import all_ops  # noqa: E402

# What has no numbers, and why.
NOT_EVALUATED = {
    **dict.fromkeys(
        (
            *("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "send", "recv"),
            "collective_permute",
        ),
        "needs several devices",
    ),
    "unknown": "means nothing",
    "pointwise": "stands for any function",
    **dict.fromkeys(("own_part", "shard"), "needs a device's rank"),
    **dict.fromkeys(
        ("gather_nd", "gather_nd_backward", "scatter_nd"), "what the indices mean is the frontend's"
    ),
    "apply_scales": "which elements share a scale is the frontend's",
    "fft": "how complex numbers lie in memory is the frontend's",
    "deform_conv": "sampling positions are data",
}

# Names that could be split although the record says they cannot: (operator, names) and why not.
KEPT_WHOLE: dict[str, tuple[str, str]] = {
    # The scores' logarithms lack e and are the same on every device, which a rule cannot say: a result
    # without the name is a term of a sum.
    # Queries under a causal mask are split only on request (context parallelism), never in passing: their
    # parts do equal work only if each device takes both ends of the sequence.
    "attention": ("e s", "the second result would be whole; parts of unequal work"),
    "attention_merge": ("e", "the second result would be whole"),
    # With the sums over all keys saved, the backward pass could split the keys.
    "attention_backward": ("e t s", "the forward pass keeps them whole"),
}


def case_id(case: object) -> str:
    return str(case)


def test_every_record_has_a_sample() -> None:
    proven = {c.node.op for c in CASES}
    missing = sorted(set(all_ops()) - proven - set(NOT_EVALUATED))
    assert not missing, f"add samples to op_samples.py for: {', '.join(missing)}"


def test_what_is_not_evaluated_is_listed() -> None:
    assert {n for n, d in all_ops().items() if d.evaluate is None} == set(NOT_EVALUATED)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.torch], ids=case_id)
def test_values_equal_torch(sample: Sample) -> None:
    _, node = sample.node()
    with np.errstate(all="ignore"):
        ours = run_node(node, sample.arrays)
    for mine, value in zip(ours, node.outputs, strict=True):
        assert mine.shape == value.type.shape
    expected = torch_results(sample, tensors_of(sample))
    for mine, theirs in zip(ours, expected, strict=False):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_shapes_fit_the_equation(case: Case) -> None:
    equation = case.node.equation
    for values, operands in (
        (case.node.inputs, equation.inputs),
        (case.node.outputs, equation.outputs),
    ):
        for value, dims in zip(values, operands, strict=True):
            assert len(dims) == len(value.type.shape)
            for dim, size in zip(dims, value.type.shape, strict=True):
                if not isinstance(dim, Window):
                    assert np.prod([equation.sizes[n] for n in dim], dtype=int) == size


def run_split(case: Case, name: str, parts: int, reduction: str | None) -> tuple[Node, ...]:
    """Runs every part, compares the joined results with the whole; returns the local nodes."""
    node, equation = case.node, case.node.equation
    size = equation.sizes[name]
    locals_, pieces = [], []
    for start, stop in ranges(size, parts):
        local = local_node(node, name, start, stop)
        arrays = [
            shard_array(a, dims, equation.sizes, name, start, stop)
            for a, dims in zip(case.arrays, equation.inputs, strict=True)
        ]
        for array, value in zip(arrays, local.inputs, strict=True):
            assert array.shape == value.type.shape
        with np.errstate(all="ignore"):
            found = run_node(local, arrays)
        for array, value in zip(found, local.outputs, strict=True):
            assert array.shape == value.type.shape
        locals_.append(local)
        pieces.append(found)
    for whole, dims, terms in zip(
        case.results, equation.outputs, zip(*pieces, strict=True), strict=True
    ):
        joined = join_arrays(terms, dims, equation.sizes, name, reduction)
        np.testing.assert_allclose(joined, whole, rtol=1e-6, atol=1e-9)
    return tuple(locals_)


def splits(size: int) -> list[int]:
    """Into two and three parts, uneven ones among them."""
    return [n for n in (2, 3) if n <= size]


RULES = [
    (case, name)
    for case in CASES
    for name in case.node.equation.names
    if case.node.equation.rule(name) and name not in case.node.equation.statistics
]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_derived_rules_are_right(case: Case) -> None:
    node = case.node
    for name in node.equation.names:
        rule = node.equation.rule(name)
        if rule is None or name in node.equation.statistics:
            continue
        for parts in splits(node.equation.sizes[name]):
            locals_ = run_split(case, name, parts, node.equation.reduction)
            for i, split in enumerate(rule.inputs):
                counts = [n.inputs[i].type.elements for n in locals_]
                whole = node.inputs[i].type.elements
                assert sum(counts) == whole if split is not None else set(counts) == {whole}
            if node.definition.kind in ("contraction", "attention"):
                assert sum(n.flops for n in locals_) == node.flops
            else:
                # An operand that lacks the name may be the largest: then every part costs the same.
                # Logarithms (sort) are rounded.
                assert sum(n.flops for n in locals_) >= node.flops - parts


def test_statistics_are_over_the_batch_only() -> None:
    found = {(c.node.op, n) for c in CASES for n in c.node.equation.statistics}
    assert found <= {("batch_norm", "n"), ("batch_norm_backward", "n")}


def can_be_split(case: Case, name: str) -> bool:
    """Whether splitting the name gives the right result, whatever the record says of it."""
    node = case.node
    equation = replace(node.equation, replicated=frozenset())
    if equation.rule(name) is None and equation.reduction is not None:
        return False  # read through a window, or in two dims of a tensor
    for reduction in {equation.reduction or "sum", "sum", "max"}:
        try:
            for parts in splits(equation.sizes[name]):
                run_split(case, name, parts, reduction)
        except (AssertionError, ValueError, IndexError, KeyError, TypeError):
            continue
        return True
    return False


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_no_rule_is_missing(case: Case) -> None:
    equation = case.node.equation
    missing = [
        name
        for name in equation.names
        if equation.sizes[name] > 1 and equation.rule(name) is None and can_be_split(case, name)
    ]
    allowed = KEPT_WHOLE.get(case.node.op, ("", ""))[0].split()
    missing = [name for name in missing if name not in allowed]
    assert not missing, f"{equation} could also be split along {', '.join(missing)}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_partial_sums_pass_where_the_record_says_so(case: Case) -> None:
    node = case.node
    trait = node.definition.linear_of(node)
    floats = [i for i, a in enumerate(case.arrays) if a.dtype.kind == "f"]
    if trait is None or not floats:
        return
    groups = {"jointly": [floats], "each": [[i] for i in floats], "first": [[0]]}[trait]
    rng = np.random.default_rng(3)
    for group in groups:
        terms = {i: rng.normal(size=case.arrays[i].shape) for i in group}
        first = [terms.get(i, a) for i, a in enumerate(case.arrays)]
        second = [a - terms[i] if i in terms else a for i, a in enumerate(case.arrays)]
        for a, b, whole in zip(
            run_node(node, first), run_node(node, second), case.results, strict=True
        ):
            np.testing.assert_allclose(a + b, whole, rtol=1e-5, atol=1e-6)


def test_names_of_a_rule_are_where_it_says() -> None:
    assert len(RULES) > 500
    for case, name in RULES:
        equation = case.node.equation
        rule = equation.rule(name)
        assert rule is not None
        for operands, places in ((equation.inputs, rule.inputs), (equation.outputs, rule.outputs)):
            for dims, place in zip(operands, places, strict=True):
                assert (name in names_of(dims)) == (place is not None)


def evaluate_split(
    node: Node, arrays: Sequence[Array], names: Sequence[str], parts: int
) -> tuple[Array, ...]:
    """The node's results, computed in parts along the names in turn."""
    if not names:
        with np.errstate(all="ignore"):
            return run_node(node, arrays)
    name, equation = names[0], node.equation
    pieces = []
    for start, stop in ranges(equation.sizes[name], parts):
        local = [
            shard_array(a, dims, equation.sizes, name, start, stop)
            for a, dims in zip(arrays, equation.inputs, strict=True)
        ]
        pieces.append(evaluate_split(local_node(node, name, start, stop), local, names[1:], parts))
    return tuple(
        join_arrays(terms, dims, equation.sizes, name, equation.reduction)
        for dims, terms in zip(equation.outputs, zip(*pieces, strict=True), strict=True)
    )


@pytest.mark.parametrize("case", [c for c in CASES if "grad" not in str(c)], ids=case_id)
def test_splits_along_several_names(case: Case) -> None:
    """A mesh has several axes: a part can be split again, along another name."""
    equation = case.node.equation
    names = [n for n in equation.names if equation.rule(n) and n not in equation.statistics]
    for group in [*pairwise(names), tuple(names)]:
        found = evaluate_split(case.node, case.arrays, group, 2)
        for mine, whole in zip(found, case.results, strict=True):
            np.testing.assert_allclose(mine, whole, rtol=1e-6, atol=1e-9)
