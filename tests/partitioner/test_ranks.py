"""All ranks of a mesh together compute what one device computes: every value, gradient and weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ranks import PartitionedRun, StageRun, numbers, one_device  # noqa: E402
from small_models import SeparateBlock, language_model, model  # noqa: E402

from graph_ir.evaluate import run_graph  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

SP = {"sequence_parallel": True}

_expected: dict[tuple[str, str], tuple[Graph, Any, StageRun]] = {}


def whole_run(name: str, recompute: str = "none") -> tuple[Graph, Any, StageRun]:
    """A model's training step, random numbers for it, and what one device makes of them."""
    if (name, recompute) not in _expected:
        graph = training_graph(model(name), recompute=recompute)
        given = numbers(graph)
        _expected[name, recompute] = (graph, given, one_device(graph, given))
    return _expected[name, recompute]


def check(name: str, mesh: dict[str, int], recompute: str = "none", **options: Any) -> None:
    graph, given, expected = whole_run(name, recompute)
    strategy = Strategy(Mesh(mesh), **options)
    parts = partition(graph, strategy, lambda n: float(n.flops))
    assert PartitionedRun(graph, parts, given).check(expected) > len(graph.nodes)


def test_a_folded_graph_runs_as_the_unfolded_one() -> None:
    from small_models import LanguageModel

    from importers import load

    tokens = torch.zeros(8, 16, dtype=torch.long)
    module = LanguageModel(SeparateBlock, 3, tied=True)
    unfolded = training_graph(load(module, example_inputs=(tokens, tokens), mode="training").graph)
    folded = training_graph(language_model(SeparateBlock, tied=True))
    given = numbers(folded)
    by_name = {}
    for value, layers in given.items():
        for i, array in enumerate(layers):
            by_name[value.name.replace("[0-2]", str(i))] = array
    plain = run_graph(unfolded, {v: by_name[v.name] for v in unfolded.inputs})
    run = one_device(folded, given)
    compared = 0
    expected = {v.name: a for v, a in plain.items()}
    for value, arrays in run.values.items():
        if value not in folded.outputs:
            continue
        for i, array in enumerate(arrays[0]):
            assert array is not None
            right = expected[value.name.replace("[0-2]", str(i))]
            assert np.allclose(array, right, rtol=1e-9, atol=1e-9), value
            compared += 1
    assert compared > 40


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ({"dp": 2}, {}),
        ({"dp": 2}, {"zero": 2}),
        ({"dp": 4}, {"zero": 3, "shard_group": 2}),
        ({"tp": 2}, {}),
        ({"tp": 2}, SP),
        ({"cp": 2}, {}),
        ({"pp": 3}, {}),
        ({"dp": 2, "tp": 2, "cp": 2}, {"zero": 3, **SP}),
        ({"dp": 2, "tp": 2, "cp": 2, "pp": 3}, {"zero": 1, **SP}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "name",
    ["gpt", "tied", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama", "fused"))],
)
def test_transformers(name: str, mesh: dict[str, int], options: dict[str, Any]) -> None:
    check(name, mesh, **options)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation(recompute: str) -> None:
    check("gpt", {"dp": 2, "tp": 2, "cp": 2}, recompute, zero=3, **SP)
    check("separate", {"tp": 2, "pp": 3}, recompute, **SP)


@pytest.mark.parametrize("way", ["allgather", "ring", "ulysses", "ulysses:2+ring"])
def test_context_parallelism(way: str) -> None:
    cp = 2 if way == "ulysses" else 4
    check("separate", {"cp": cp}, context_parallel=way)
    check("separate", {"cp": cp, "tp": 2, "dp": 2}, context_parallel=way, zero=2, **SP)


@pytest.mark.parametrize(
    ("mesh", "options"),
    [({"dp": 4}, {"zero": 3}), ({"tp": 2}, {}), ({"dp": 2, "tp": 2, "pp": 2}, {"zero": 1})],
    ids=str,
)
def test_a_convolutional_network(mesh: dict[str, int], options: dict[str, Any]) -> None:
    check("resnet", mesh, **options)


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ({"ep": 2}, {}),
        ({"ep": 4, "dp": 2}, {"zero": 3}),
        ({"ep": 2, "tp": 2}, SP),
        ({"dp": 2, "tp": 2, "cp": 2, "ep": 2, "pp": 2}, {"zero": 1, **SP}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["mixture", "shared expert"])
def test_mixtures_of_experts(name: str, mesh: dict[str, int], options: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    check(name, mesh, **options)


def test_an_encoder_with_a_decoder() -> None:
    pytest.importorskip("transformers")
    check("encoder-decoder", {"dp": 2, "tp": 2, "pp": 2}, zero=1, **SP)
    check("encoder-decoder", {"cp": 2, "tp": 2}, **SP)
