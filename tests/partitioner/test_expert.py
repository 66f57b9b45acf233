"""Expert parallelism: what is exchanged, and what is split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from graph_ir.errors import MeshError
from graph_ir.fold import fold
from graph_ir.graph import Graph, Node
from graph_ir.training import training_graph
from importers import load
from partitioner.mesh import Mesh
from partitioner.partition import partition
from partitioner.strategy import Strategy

LAYERS, EXPERTS, TOP, WIDTH, INNER, TOKENS = 3, 8, 2, 64, 96, 4 * 32


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A small mixture of experts, with its training step."""
    path: Path = tmp_path_factory.mktemp("config") / "config.json"
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128}
    experts = {"num_local_experts": EXPERTS, "num_experts_per_tok": TOP}
    path.write_text(json.dumps({"model_type": "mixtral", **sizes, **heads, **experts}))
    model = load(f"hf:{path}", batch=4, sequence=32, mode="training", dtype="fp32")
    return training_graph(fold(model.graph))


def local_graph(graph: Graph, mesh: dict[str, int]) -> Graph:
    (stage,) = partition(graph, Strategy(Mesh(mesh)), lambda n: 1.0).stages
    return stage.graph


def rows_exchanged(graph: Graph, during: str) -> list[Node]:
    """All-to-alls of whole token rows; routing weights are one number per token and expert."""
    found = [n for n in graph.nodes if n.op == "all_to_all" and n.during == during]
    return [n for n in found if n.inputs[0].type.shape[1:] == (WIDTH,)]


@pytest.mark.parametrize("world", [2, 4, 8])
def test_two_exchanges_of_tokens_each_way(graph: Graph, world: int) -> None:
    if 4 % world:
        with pytest.raises(MeshError, match="does not divide the 4 samples"):
            local_graph(graph, {"ep": world})
        return
    local = local_graph(graph, {"ep": world})
    for during in ("forward", "backward"):
        tokens = rows_exchanged(local, during)
        assert len(tokens) == 2
        for node in tokens:
            # Each rank holds its own tokens, each twice: once per expert that a token goes to.
            assert node.inputs[0].type.elements == TOKENS * TOP * WIDTH // world
            assert node.count == LAYERS


def test_experts_are_split_and_nothing_else(graph: Graph) -> None:
    whole = {v.name: v.type.shape for v in graph.parameters}
    for value in local_graph(graph, {"ep": 4}).parameters:
        shape = whole[value.name]
        if "experts" in value.name:
            assert value.type.shape == (EXPERTS // 4, *shape[1:])
        else:
            assert value.type.shape == shape


def test_only_replicated_weights_reduce_their_gradients(graph: Graph) -> None:
    local = local_graph(graph, {"ep": 4})
    reduced = sum(
        v.type.bytes * n.count for n in local.nodes if n.op == "all_reduce" for v in n.inputs
    )
    shared = sum(v.type.bytes * v.count for v in graph.parameters if "experts" not in v.name)
    assert reduced == shared


def test_flops_of_the_experts_are_shared_out(graph: Graph) -> None:
    def flops(g: Graph) -> int:
        return sum(n.flops * n.count for n in g.nodes if n.op == "grouped_matmul")

    assert flops(local_graph(graph, {"ep": 4})) * 4 == flops(graph)
    assert flops(local_graph(graph, {"ep": 2, "tp": 2, "dp": 2})) * 8 == flops(graph)


def test_a_mesh_that_does_not_fit_says_so(graph: Graph) -> None:
    with pytest.raises(MeshError, match="ep=3 does not divide the 8 experts"):
        local_graph(graph, {"ep": 3})
