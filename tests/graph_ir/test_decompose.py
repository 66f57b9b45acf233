"""What an operator is decomposed into computes the same."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from op_cases import CASES, Case  # noqa: E402

from graph_ir.decompose import decompose  # noqa: E402
from graph_ir.evaluate import run_graph  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.op_def import OpDef, all_ops  # noqa: E402


def _decomposes(definition: OpDef) -> bool:
    return (definition.decompose or definition.decompose_norm) is not None


DECOMPOSED = [c for c in CASES if _decomposes(c.node.definition)]


def test_every_decomposition_has_a_case() -> None:
    assert {c.node.op for c in DECOMPOSED} == {n for n, d in all_ops().items() if _decomposes(d)}


@pytest.mark.parametrize("case", DECOMPOSED, ids=str)
def test_decomposition_computes_the_same(case: Case) -> None:
    node = case.node
    graph = Graph((node,), tuple(dict.fromkeys(node.inputs)), node.outputs)
    simple = decompose(graph, lambda _: True, norms=True)
    assert node.op not in {n.op for n in simple.nodes}
    values = run_graph(simple, dict(zip(node.inputs, case.arrays, strict=True)))
    for value, expected in zip(simple.outputs, case.results, strict=True):
        np.testing.assert_allclose(values[value], expected, atol=1e-9)
