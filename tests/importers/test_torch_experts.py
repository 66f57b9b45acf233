"""Parameters that one token meets in a mixture of experts, against counts by hand and published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import importers

EXPERTS, CHOSEN = 8, 2
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 128,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
}


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_of_the_experts_only_the_chosen_ones_count(tmp_path: Path, kind: str) -> None:
    """Their weights, and the biases that gpt-oss gives each of them."""
    from importers.torch_experts import activated_parameters

    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": kind, **SIZES}))
    graph = importers.load(f"hf:{path}", batch=1, sequence=32).graph
    sizes = {v.name: v.type.elements for v in graph.parameters}
    own = sum(n for name, n in sizes.items() if ".experts." in name)
    biases = [name for name in sizes if ".experts." in name and "bias" in name]
    assert bool(biases) == (kind == "gpt_oss")
    total = sum(sizes.values())
    assert activated_parameters(graph, 32) == total - own + own * CHOSEN // EXPERTS


PUBLISHED = {
    # Jiang et al. 2024 (arXiv 2401.04088), DeepSeek-AI 2024 (arXiv 2412.19437), the
    # card of gpt-oss-120b, whose 5.1 G leave the 0.58 G of the embeddings out.
    "mixtral": ({}, 46.7, 12.9),
    "deepseek_v3": ({"model_type": "deepseek_v3"}, 671.0, 37.6),
    "gpt_oss": (
        {
            "model_type": "gpt_oss",
            "num_hidden_layers": 36,
            "num_local_experts": 128,
            "tie_word_embeddings": False,
        },
        116.8,
        5.13 + 0.58,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(tmp_path: Path, name: str) -> None:
    from importers.torch_experts import activated_parameters

    config, total, active = PUBLISHED[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    source = f"hf:{path}" if config else "hf:mixtral-8x7b"
    graph = importers.load(source, batch=1, sequence=512).graph
    found = sum(v.type.elements for v in graph.parameters)
    assert found / 1e9 == pytest.approx(total, abs=0.06)
    assert (activated_parameters(graph, 512) or 0) / 1e9 == pytest.approx(active, abs=0.06)
