"""Both forms of every pattern on numbers: results, and gradients of all weights."""

from __future__ import annotations

import numpy as np
import pytest
from pattern_cases import CASES, Case
from pattern_graph import Maker, feeds, gradients, operators, results

from graph_ir.canonicalize import PATTERNS, canonicalize
from graph_ir.graph import Graph
from graph_ir.patterns import quantized
from graph_ir.patterns.in_place import read_in_place
from graph_ir.patterns.rewrite import Rewriter


def written_out(case: Case) -> Graph:
    maker = Maker()
    return maker.build(case.build(maker))


def products(graph: Graph) -> int:
    heavy = ("contraction", "attention")
    return sum(n.flops for n in graph.nodes if n.definition.kind in heavy)


def traffic(graph: Graph) -> int:
    return sum(n.bytes_read + n.bytes_written for n in graph.nodes)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_becomes_the_canonical_operator(case: Case, training: bool) -> None:
    before = written_out(case)
    after = canonicalize(before, training=training)
    assert sorted(operators(after).elements()) == sorted(case.wanted.split())
    assert products(after) == products(before)
    assert traffic(after) < traffic(before)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_computes_the_same(case: Case) -> None:
    before = written_out(case)
    after = canonicalize(before)
    numbers = feeds(before)
    for ours, theirs in zip(results(after, numbers), results(before, numbers), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_has_the_same_gradients(case: Case) -> None:
    before = written_out(case)
    after = canonicalize(before, training=True)
    numbers = feeds(before)
    ours, theirs = gradients(after, numbers), gradients(before, numbers)
    assert set(ours) == set(theirs) == set(before.parameters)
    for weight, gradient in theirs.items():
        np.testing.assert_allclose(ours[weight], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_last_node_keeps_its_name(case: Case) -> None:
    before = written_out(case)
    after = canonicalize(before)
    (named,) = (n for n in after.nodes if n.name == before.nodes[-1].name)
    assert not named.definition.is_view(named) or before.nodes[-1].op in ("reshape", "copy")
    assert after.outputs == before.outputs


def test_every_pattern_is_proven() -> None:
    proven = set()
    for case in CASES:
        graph = read_in_place(written_out(case))
        for pattern in PATTERNS:
            without = [p for p in PATTERNS if p is not pattern]
            if operators(Rewriter(graph, without, None).run()) != operators(canonicalize(graph)):
                proven.add(pattern.name)
    elsewhere = {p.name for p in quantized.PATTERNS}
    assert proven == {p.name for p in PATTERNS} - elsewhere
