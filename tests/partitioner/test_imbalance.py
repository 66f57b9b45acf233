"""Uneven routing: what grows on the rank with the busiest experts, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from graph_ir.fold import fold
from graph_ir.graph import Graph, Node
from graph_ir.training import training_graph
from importers import load
from partitioner.mesh import Mesh
from partitioner.partition import partition
from partitioner.strategy import Strategy

WIDTH, INNER, EXPERTS = 64, 96, 8
F = 1.5


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A small mixture of experts, with its training step."""
    path: Path = tmp_path_factory.mktemp("config") / "config.json"
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128}
    experts = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}
    path.write_text(json.dumps({"model_type": "mixtral", **sizes, **heads, **experts}))
    model = load(f"hf:{path}", batch=4, sequence=32, mode="training", dtype="fp32")
    return training_graph(fold(model.graph))


def local_nodes(graph: Graph, mesh: dict[str, int], factor: float) -> tuple[Node, ...]:
    strategy = Strategy(Mesh(mesh), expert_imbalance=factor)
    (stage,) = partition(graph, strategy, lambda n: 1.0).stages
    return stage.graph.nodes


@pytest.mark.parametrize("mesh", [{"ep": 4}, {"ep": 2, "dp": 2}, {"ep": 2, "tp": 2}])
def test_the_experts_work_and_the_exchanged_rows_grow_alike(
    graph: Graph, mesh: dict[str, int]
) -> None:
    even, uneven = local_nodes(graph, mesh, 1.0), local_nodes(graph, mesh, F)
    assert [n.name for n in even] == [n.name for n in uneven]
    for before, after in zip(even, uneven, strict=True):
        grown = [
            (a.type.elements / b.type.elements, b)
            for b, a in zip(
                (*before.inputs, *before.outputs), (*after.inputs, *after.outputs), strict=True
            )
        ]
        if before.op == "grouped_matmul":
            # Forward and both gradients: rows, never weights, and so every product.
            assert after.flops == before.flops * F
            assert {g for g, v in grown if len(v.type.shape) == 2} == {F}
            assert {g for g, v in grown if len(v.type.shape) == 3} == {1.0}
        elif before.op == "all_to_all":
            assert sorted(g for g, _ in grown) == [1.0, F]
        elif "experts" not in before.name:
            assert {g for g, _ in grown} <= {1.0}


def test_parameters_and_their_gradients_stay_as_they_are(graph: Graph) -> None:
    def exchanged(nodes: tuple[Node, ...]) -> list[int]:
        return [n.inputs[0].type.bytes for n in nodes if n.op == "all_reduce"]

    even, uneven = (local_nodes(graph, {"ep": 4}, f) for f in (1.0, F))
    assert exchanged(even) == exchanged(uneven)


def test_one_rank_gets_no_more_than_all_tokens(graph: Graph) -> None:
    most, capped = (local_nodes(graph, {"ep": 2}, f) for f in (2.0, 7.0))
    assert [n.flops for n in most] == [n.flops for n in capped]


def test_nothing_changes_where_every_device_has_all_experts(graph: Graph) -> None:
    for mesh in ({"dp": 2}, {"tp": 2}, {}):
        even, uneven = local_nodes(graph, mesh, 1.0), local_nodes(graph, mesh, F)
        assert [n.flops for n in even] == [n.flops for n in uneven]


def test_gradients_have_the_dtype_of_what_they_belong_to(graph: Graph) -> None:
    """Routing weights in fp32 promote the experts' results; autograd casts their gradient back."""
    half = load_half()
    for node in half.nodes:
        if node.op == "grouped_matmul":
            assert {v.type.dtype.label for v in node.inputs} == {"bfloat16"}


def load_half() -> Graph:
    from importers.huggingface import CONFIG_FOLDER

    config = json.loads((CONFIG_FOLDER / "mixtral-8x7b.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128}
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        model = load(f"hf:{path}", batch=2, sequence=16, mode="training", dtype="bf16")
    return training_graph(model.graph)
