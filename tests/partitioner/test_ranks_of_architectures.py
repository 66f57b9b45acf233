"""Real architectures, small: all ranks together compute what one device does, split by tokens too."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from ranks import PartitionedRun, StageRun, numbers, one_device
from small_models import TOKENS, WIDTH, architecture

from graph_ir.graph import Graph
from graph_ir.training import training_graph
from partitioner.mesh import Mesh
from partitioner.partition import partition
from partitioner.strategy import Strategy

LAYERS = 3
_DECODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
_EXPERTS = {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
_GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": TOKENS}
_BART = {
    "d_model": WIDTH,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
    "max_position_embeddings": TOKENS,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "qwen3", "gemma", "cohere", "phi", "gpt_neox", "olmo2"), _DECODER),
    "bert": {**_DECODER, "max_position_embeddings": TOKENS},
    "gpt2": _GPT2,
    "gptj": {**_GPT2, "rotary_dim": 4},
    "opt": {
        **_DECODER,
        "ffn_dim": 48,
        "max_position_embeddings": TOKENS,
        "word_embed_proj_dim": WIDTH,
    },
    "albert": {**_DECODER, "embedding_size": 16, "max_position_embeddings": TOKENS},
    "bart": _BART,
    "t5": {
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": LAYERS,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "mixtral": _EXPERTS,
    "gpt_oss": {**_EXPERTS, "layer_types": ["full_attention"] * LAYERS},
}
SP = {"sequence_parallel": True}
MESHES: list[tuple[dict[str, int], dict[str, Any]]] = [
    ({"tp": 2}, SP),
    ({"dp": 2, "tp": 2, "pp": 2}, {"zero": 1, **SP}),
    ({"dp": 2}, {"zero": 3}),
    ({"cp": 2, "tp": 2}, {}),
]
IMPOSSIBLE = (("gpt_oss", 3),)
"""Its attention has sinks and is no fused one, and two heads of keys cannot be shared by four ranks."""
IN_DEFAULT = (("bert", 0), ("phi", 0), ("albert", 1))


@cache
def whole_run(name: str) -> tuple[Graph, Any, StageRun]:
    graph = training_graph(architecture(name, **CONFIGS[name]))
    given = numbers(graph)
    return graph, given, one_device(graph, given)


@pytest.mark.parametrize(
    ("name", "mesh", "options"),
    [
        pytest.param(name, *mesh, marks=() if (name, i) in IN_DEFAULT else pytest.mark.slow)
        for name in CONFIGS
        for i, mesh in enumerate(MESHES)
        if (name, i) not in IMPOSSIBLE
    ],
)
def test_ranks_compute_what_one_device_does(
    name: str, mesh: dict[str, int], options: dict[str, Any]
) -> None:
    graph, given, expected = whole_run(name)
    parts = partition(graph, Strategy(Mesh(mesh), **options), lambda n: float(n.flops))
    assert PartitionedRun(graph, parts, given).check(expected) > len(graph.nodes)
