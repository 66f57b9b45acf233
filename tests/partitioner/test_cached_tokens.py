"""Context parallelism of a decode step: what the ranks compute, what they exchange, what each keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ranks import PartitionedRun, numbers, one_device  # noqa: E402

from graph_ir.canonicalize import canonicalize  # noqa: E402
from graph_ir.errors import MeshError  # noqa: E402
from graph_ir.fold import fold  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.ops.collective import sent_bytes  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

BATCH, CACHED, WIDTH, LAYERS = 4, 15, 32, 2
SMALL = {"vocab_size": 64, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MIXTURE = {"num_experts_per_tok": 2, "intermediate_size": 48}
LATENT: Mapping[str, int] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**SMALL, **HEADS, "intermediate_size": 64},
    "mixtral": {**SMALL, **HEADS, **MIXTURE, "num_local_experts": 4},
    "deepseek_v3": {**SMALL, **MIXTURE, **LATENT},
    "gpt_oss": {
        **SMALL,
        **HEADS,
        **MIXTURE,
        "head_dim": 8,
        "num_local_experts": 4,
        "sliding_window": 8,
    },
    "t5": {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
}


def config(kind: str, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": kind, "vocab_size": 64, **CONFIGS[kind]}))
    return path


def decode_step(kind: str, folder: Path, past: int = CACHED) -> Graph:
    path = config(kind, folder)
    sequence = 16 if kind == "t5" else past
    options: dict[str, Any] = {"past_tokens": 16 + past} if kind == "t5" else {}
    model = load(
        f"hf:{path}", batch=BATCH, sequence=sequence, mode="decode", dtype="fp32", **options
    )
    return fold(model.graph)


def check(graph: Graph, mesh: dict[str, int], **options: Any) -> Graph:
    """Compares all ranks with one device; returns the first stage's graph."""
    whole = numbers(graph)
    expected = one_device(graph, whole)
    parts = partition(graph, Strategy(Mesh(mesh), **options), lambda n: float(n.flops))
    assert PartitionedRun(graph, parts, whole).check(expected) > len(graph.nodes) // 2
    return parts.stages[0].graph


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("llama", {"cp": 4}),
        ("llama", {"cp": 2, "tp": 2, "pp": 2, "dp": 2}),
        ("mixtral", {"cp": 2, "ep": 2, "tp": 2}),
        ("deepseek_v3", {"cp": 2, "tp": 2}),
        ("gpt_oss", {"cp": 4, "tp": 2}),
        ("t5", {"cp": 2, "tp": 2}),
    ],
    ids=str,
)
def test_all_ranks_compute_what_one_device_computes(
    kind: str, mesh: dict[str, int], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    graph = decode_step(kind, tmp_path)
    local = check(graph, mesh)
    share = {v.name: v.type.shape for v in graph.inputs if v.role == "kv_cache"}
    for value in local.inputs:
        if value.role == "kv_cache":
            assert value.type.shape[2] * mesh["cp"] == share[value.name][2]


class WrittenOut(torch.nn.Module):
    """Attention of one token to a cache, as two products and a softmax, with a mask."""

    def forward(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """query[b, h, 1, d], keys and values[b, h, t, d], mask[b, 1, 1, t] -> [b, h, 1, d]."""
        scores = query @ keys.transpose(-1, -2) * 0.3 + mask
        return torch.softmax(scores, dim=-1) @ values


@pytest.mark.parametrize("fused", [False, True])
def test_attention_need_not_be_one_operator(fused: bool) -> None:
    shapes = ((BATCH, 4, 1, 8), (BATCH, 4, 16, 8), (BATCH, 4, 16, 8), (BATCH, 1, 1, 16))
    example = tuple(torch.zeros(shape) for shape in shapes)
    graph = load(WrittenOut(), example_inputs=example, mode="inference").graph
    graph = canonicalize(graph, training=False) if fused else graph
    local = check(graph, {"cp": 4})
    assert [n.op for n in local.nodes].count("attention") == fused
    kinds = [n.op for n in local.nodes if n.definition.kind == "collective"]
    # The maximum, the sum, the product with the values; or the sums' logarithms and the product.
    expected = ["all_gather", "all_reduce"] if fused else ["all_reduce"] * 3
    assert kinds == expected


def onnx_decoder(path: Path, past: int, new: int) -> None:
    """Attention to a cache that grows by concatenation, as exporters write it."""
    from onnx import TensorProto, helper, numpy_helper

    def typed(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    weights = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(3)]
    nodes += [
        helper.make_node("Concat", ["past_key", "y1"], ["present_key"], axis=2),
        helper.make_node("Concat", ["past_value", "y2"], ["present_value"], axis=2),
        helper.make_node("Transpose", ["present_key"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["y0", "turned"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "present_value"], ["out"]),
    ]
    cached = (BATCH, 4, past, 8)
    graph = helper.make_graph(
        nodes,
        "decoder",
        [typed("x", BATCH, 4, new, 8), *(typed(f"past_{n}", *cached) for n in ("key", "value"))],
        [
            typed("out", BATCH, 4, new, 8),
            *(typed(f"present_{n}", BATCH, 4, past + new, 8) for n in ("key", "value")),
        ],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(("fused", "past", "new"), [(False, 15, 1), (True, 15, 1), (True, 12, 4)])
def test_a_cache_that_grows_by_a_copy_is_written_in_place(
    tmp_path: Path, fused: bool, past: int, new: int
) -> None:
    pytest.importorskip("onnx")
    onnx_decoder(tmp_path / "m.onnx", past, new)
    graph = load(tmp_path / "m.onnx").graph
    graph = canonicalize(graph, training=False) if fused else graph
    room = [(0, 0), (0, 0), (0, new), (0, 0)]
    given = numbers(graph)
    expected = one_device(graph, given)
    padded = {
        v: [np.pad(a, room) for a in arrays] if v.name.startswith("past") else arrays
        for v, arrays in given.items()
    }
    parts = partition(graph, Strategy(Mesh({"cp": 4})), lambda n: 1.0)
    run = PartitionedRun(graph, parts, padded)
    local = parts.stages[0].graph
    assert [v.type.shape[2] for v in local.outputs] == [new, 4, 4]
    for value, part in zip(graph.outputs, local.outputs, strict=True):
        right = expected.values[value][0][0]
        assert right is not None
        for known in run.joined(0, part, 0, right.shape):
            np.testing.assert_allclose(known, right, rtol=1e-6)


def test_two_messages_per_layer_of_a_size_that_no_cache_changes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = set()
    for past in (CACHED, 16 * CACHED):
        graph = decode_step("llama", tmp_path, past)
        (stage,) = partition(graph, Strategy(Mesh({"cp": 4})), lambda n: 1.0).stages
        sent = [n for n in stage.graph.nodes if n.definition.kind == "collective"]
        assert [(n.op, n.count) for n in sent] == [("all_gather", LAYERS), ("all_reduce", LAYERS)]
        sizes.add(tuple(sent_bytes(n) for n in sent))
        write = next(n for n in stage.graph.nodes if n.op == "slice_update")
        assert write.inputs[0].type.shape == (BATCH, 2, -(-(past + 1) // 4), 8)
    # Three of four float32 per query and head come from others; of a result, ring all-reduces send 2 x 3 / 4.
    queries = BATCH * 4
    assert sizes == {(queries * 3 * 4, queries * 8 * 4 * 2 * 3 // 4)}


@pytest.mark.parametrize("way", ["ulysses", "ring", "allgather", "ulysses:2+ring"])
def test_of_a_prompt_the_last_token_is_handed_on(tmp_path: Path, way: str) -> None:
    pytest.importorskip("transformers")
    path, cp = config("llama", tmp_path), 2 if way == "ulysses" else 4
    model = load(f"hf:{path}", batch=BATCH, sequence=16, mode="prefill", dtype="fp32")
    local = check(fold(model.graph), {"cp": cp, "dp": 2}, context_parallel=way)
    sent = [n for n in local.nodes if n.op == "all_gather" and n.count == 1]
    # Every device sends its candidate for it, not all its tokens.
    assert {n.inputs[0].type.shape for n in sent} == {(BATCH // 2, 1, WIDTH)}


def test_a_graph_without_tokens_says_so() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8))
    graph = load(module, example_inputs=(torch.zeros(4, 8),), mode="inference").graph
    with pytest.raises(MeshError, match="no tokens to split, and attends to no cached ones"):
        partition(graph, Strategy(Mesh({"cp": 2})), lambda n: 1.0)
