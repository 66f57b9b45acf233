"""Experts in one ONNX operator, with few tokens, with scores in a wider dtype: what is exchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper
from ranks import PartitionedRun, numbers, one_device

from graph_ir.errors import MeshError
from graph_ir.fold import fold
from graph_ir.graph import Graph, Node
from graph_ir.training import training_graph
from importers import load
from partitioner.mesh import Mesh
from partitioner.partition import partition
from partitioner.strategy import Strategy

WIDTH, INNER, TOP = 16, 32, 2


def mixture(
    path: Path, tokens: int, experts: int, *, bits: int | None = None, biases: bool = False
) -> Graph:
    """A router and com.microsoft.MoE, or QMoE with scales."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "router": (WIDTH, experts),
        "w1": (experts, INNER, WIDTH),
        "b1": (experts, INNER),
        "w2": (experts, WIDTH, INNER),
        "b2": (experts, WIDTH),
    }
    weights: dict[str, Any] = {
        n: rng.normal(size=s).astype(np.float32) * 0.3
        for n, s in shapes.items()
        if biases or bits is not None or n[0] != "b"
    }
    operands = ["x", "r", "w1", "b1" * biases, "w2", "b2" * biases]
    attrs: dict[str, Any] = {"k": TOP, "activation_type": "relu"}
    if bits is not None:
        for name in ("w1", "w2"):
            *outer, last = shapes[name]
            weights[name] = np.zeros((*outer, last * bits // 8), np.uint8)
        operands = ["x", "r", "w1", "b1", "", "w2", "b2", ""]
        attrs["expert_weight_bits"] = bits

    def typed(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, (tokens, WIDTH))

    op = "MoE" if bits is None else "QMoE"
    nodes = [
        helper.make_node("MatMul", ["x", "router"], ["r"]),
        helper.make_node(op, operands, ["y"], domain="com.microsoft", **attrs),
    ]
    stored = [numpy_helper.from_array(w, n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "mixture", [typed("x")], [typed("y")], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    return fold(load(path).graph)


def local(graph: Graph, mesh: dict[str, int]) -> Graph:
    (stage,) = partition(graph, Strategy(Mesh(mesh)), lambda n: 1.0).stages
    return stage.graph


def of(graph: Graph, op: str) -> list[Node]:
    return [n for n in graph.nodes if n.op == op]


@pytest.mark.parametrize("mesh", [{"ep": 4}, {"ep": 2, "dp": 2}, {"dp": 4}], ids=str)
def test_an_operator_for_all_experts_is_split_like_any_other(
    tmp_path: Path, mesh: dict[str, int]
) -> None:
    graph = mixture(tmp_path / "m.onnx", 32, 4, biases=True)
    given = numbers(graph)
    parts = partition(graph, Strategy(Mesh(mesh)), lambda n: 1.0)
    run = PartitionedRun(graph, parts, given)
    assert run.check(one_device(graph, given)) > len(graph.nodes) // 2
    ranks = mesh.get("ep", 1)
    shapes = {v.name: v.type.shape for v in parts.stages[0].graph.parameters}
    assert shapes["w1"] == (4 // ranks, INNER, WIDTH)
    assert len(of(parts.stages[0].graph, "all_to_all")) == (2 if ranks > 1 else 0)


def test_quantised_experts_are_split_too(tmp_path: Path) -> None:
    found = local(mixture(tmp_path / "m.onnx", 32, 4, bits=4), {"ep": 4})
    stored = {v.name: v.type for v in found.parameters}
    assert stored["w1"].bytes == INNER * WIDTH // 2
    assert len(of(found, "all_to_all")) == 2


@pytest.mark.parametrize(
    ("tokens", "experts", "mesh"),
    [
        (8, 8, {"ep": 8}),  # less than one row per expert from each rank
        (64, 64, {"ep": 8}),  # two rows per expert, eight ranks
        (8, 64, {"ep": 4}),  # fewer rows than experts
        (16, 64, {"ep": 4, "dp": 2}),
        (16, 8, {"dp": 8}),  # each replica meets some of the experts
    ],
    ids=str,
)
def test_few_tokens_are_exchanged_as_well(
    tmp_path: Path, tokens: int, experts: int, mesh: dict[str, int]
) -> None:
    found = local(mixture(tmp_path / "m.onnx", tokens, experts), mesh)
    ranks, replicas = mesh.get("ep", 1), mesh.get("dp", 1)
    rows = tokens * TOP // (ranks * replicas)
    sent = of(found, "all_to_all")
    assert [n.inputs[0].type.shape for n in sent] == [(rows, WIDTH)] * (2 if ranks > 1 else 0)
    assert [n.outputs[0].type.shape for n in sent] == [n.inputs[0].type.shape for n in sent]
    products = of(found, "grouped_matmul")
    assert [n.inputs[0].type.shape[0] for n in products] == [rows] * 2
    met = min(experts, tokens * TOP // replicas) // ranks
    assert {n.inputs[1].type.shape[0] for n in products} == {met}
    stored = {v.name: v.type.shape for v in found.parameters}
    assert stored["w1"] == (experts // ranks, INNER, WIDTH)
    # Nothing else is exchanged, and no weight is.
    kinds = {n.op for n in found.nodes if n.definition.kind == "collective"} - {"shard"}
    assert kinds <= {"all_to_all"}


def test_rows_that_cannot_be_shared_out_say_so(tmp_path: Path) -> None:
    graph = mixture(tmp_path / "m.onnx", 12, 16)
    for mesh in ({"ep": 4}, {"dp": 2}):
        with pytest.raises(MeshError, match=r"the 24 rows .* no multiple of the 16 experts"):
            local(graph, mesh)


@pytest.mark.parametrize(
    ("batch", "experts", "replicas", "rows", "met"),
    [
        (12, 16, 2, 12, 12),  # of 24 rows, eight experts get two
        (20, 16, 4, 10, 10),
        (12, 8, 2, 16, 8),  # three rows per expert: two of them for the busier replica
    ],
)
def test_replicas_share_rows_that_no_number_of_experts_divides(
    tmp_path: Path, batch: int, experts: int, replicas: int, rows: int, met: int
) -> None:
    pytest.importorskip("transformers")
    graph = small_mixtral(tmp_path, "decode", batch=batch, sequence=15, experts=experts)
    found = local(graph, {"dp": replicas})
    products = of(found, "grouped_matmul")
    assert [n.inputs[0].type.shape[0] for n in products] == [rows] * 2
    assert {n.inputs[1].type.shape[0] for n in products} == {met}
    assert not [n for n in found.nodes if n.definition.kind == "collective"]


def small_mixtral(folder: Path, mode: str, *, batch: int, sequence: int, experts: int) -> Graph:
    config = {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"num_local_experts": experts, "num_experts_per_tok": TOP, "vocab_size": 64}
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return fold(load(f"hf:{path}", batch=batch, sequence=sequence, mode=mode, dtype="bf16").graph)


def test_scores_in_a_wider_dtype_widen_no_message(tmp_path: Path) -> None:
    """Mixtral's scores are float32: its results become so, but only once they are back."""
    pytest.importorskip("transformers")
    forward = small_mixtral(tmp_path, "training", batch=4, sequence=16, experts=4)
    sent = of(local(training_graph(forward), {"ep": 4}), "all_to_all")
    rows = 4 * 16 * TOP // 4
    # Two each way, and nothing besides (Lepikhin et al. 2021, arXiv 2006.16668, section 3.2).
    assert [n.during for n in sent] == ["forward"] * 2 + ["backward"] * 2
    assert {n.inputs[0].type.shape for n in sent} == {(rows, 32)}
    assert {n.inputs[0].type.dtype.label for n in sent} == {"bfloat16"}
