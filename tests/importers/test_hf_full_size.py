"""Models at their real size, on the meta device: counts beside PyTorch's counter and beside arithmetic."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import importers  # noqa: E402
from graph_ir.fold import fold  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers.huggingface import build_model, config_names, read_config  # noqa: E402

# Counted from the published hyper-parameters: embeddings, per layer attention, feed-forward, norms, head.
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt3-175b": 174_604_259_328,
    "megatron-22b": 22_074_273_792,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "mixtral-8x7b": 46_702_792_704,
    "olmoe-1b-7b": 6_919_161_856,
    "qwen3-30b-a3b": 30_532_122_624,
    "vit-large": 304_326_632,
    "t5-base": 222_903_552,
}


def contraction_flops(graph, phases=("forward", "backward")):
    return sum(
        n.flops * n.count
        for n in graph.nodes
        if n.phase in phases and n.definition.kind in ("contraction", "attention")
    )


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters_of_shipped_configs(name):
    model = build_model(read_config(name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def counted(name, training, sequence):
    """FLOPs that PyTorch counts when transformers' model runs on the meta device."""
    model = build_model(read_config(name))
    model.set_attn_implementation("sdpa")
    model.train(training)
    ids = torch.zeros(1, sequence, dtype=torch.long, device="meta")
    # Without a mask of its own the model would look at the positions' values, which meta lacks.
    mask = torch.ones(1, 1, sequence, sequence, dtype=torch.bool, device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        labels = ids.clone() if training else None
        out = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
        if training:
            out.loss.backward()
    return counter.get_total_flops()


def test_llama_2_7b_forward_equals_the_counter():
    graph = importers.load("hf:llama-2-7b", sequence=1024).graph
    assert contraction_flops(graph) == counted("llama-2-7b", False, 1024)


def test_llama_2_7b_forward_and_backward_equal_the_counter():
    graph = training_graph(
        fold(importers.load("hf:llama-2-7b", sequence=512, mode="training").graph)
    )
    # With autograd on, meta decomposes attention into plain products; a fused backward pass computes the
    # scores once more.
    again = sum(n.flops // 2 * n.count for n in graph.nodes if n.op == "attention")
    assert contraction_flops(graph) - again == counted("llama-2-7b", True, 512)


def test_mixtral_counts_the_chosen_experts_only():
    """Two of eight experts per token: by hand, 512 tokens."""
    tokens, hidden, inner, layers, kv, vocabulary = 512, 4096, 14336, 32, 1024, 32000
    attention = 2 * tokens * hidden * (2 * hidden + 2 * kv) + 4 * tokens * tokens * hidden
    experts = 2 * 3 * 2 * tokens * hidden * inner + 2 * tokens * hidden * 8
    by_hand = layers * (attention + experts) + 2 * tokens * hidden * vocabulary
    graph = importers.load("hf:mixtral-8x7b", sequence=tokens).graph
    assert contraction_flops(graph) == by_hand
    assert by_hand == pytest.approx(13.19e12, rel=1e-3)


def test_mixtral_decode_reads_the_chosen_experts_only(tmp_path):
    content = dict(read_config("mixtral-8x7b").content) | {"num_hidden_layers": 2}
    path = tmp_path / "two-layers.json"
    path.write_text(json.dumps(content))
    graph = importers.load(f"hf:{path}", mode="decode", past_tokens=100).graph
    weights = [n for n in graph.nodes if n.op == "grouped_matmul"]
    assert {n.inputs[1].type.shape[0] for n in weights} == {2}
    assert len(weights) == 4


def grouped_flops(x, weights, *_, **__):
    """The counter has no formula for grouped products: every row meets one expert's matrix."""
    return 2 * x[0] * weights[1] * weights[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", config_names())
def test_forward_of_every_shipped_config_equals_the_counter(name):
    """transformers' model runs on the meta device at its real size; attention stays one operator."""
    tokens = 64
    model = build_model(read_config(name))
    config = model.config
    inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.long, device="meta")}
    if config.model_type == "vit":
        inputs = {"pixel_values": torch.zeros(1, 3, 224, 224, dtype=model.dtype, device="meta")}
    elif config.model_type == "t5":
        inputs["decoder_input_ids"] = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    elif model.can_generate() and config.model_type != "bert":
        inputs["attention_mask"] = torch.zeros(
            1, 1, tokens, tokens, dtype=model.dtype, device="meta"
        )
    formulas = {torch.ops.aten._grouped_mm: grouped_flops}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, torch.no_grad():
        model(**inputs)
    sequence = None if config.model_type == "vit" else tokens
    graph = importers.load(f"hf:{name}", sequence=sequence, dtype="bf16").graph
    assert contraction_flops(graph) == counter.get_total_flops() > 0
    assert sum(v.type.elements for v in graph.parameters) == sum(
        p.numel() for p in model.parameters()
    )
