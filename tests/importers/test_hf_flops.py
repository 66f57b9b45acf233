"""FLOPs and parameters of imported Hugging Face models beside PyTorch's own counts.

The oracle really runs the model on the CPU, forward and backward, under FlopCounterMode: transformers' own
classes with random weights, its own attention and its own loop over experts.
"""

import json
from collections import Counter

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import importers  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers.huggingface import config_names, read_config  # noqa: E402

BATCH, SEQUENCE = 2, 24

SMALL = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 96},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    },
    "bert": {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    },
    "vit": {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
    "mixtral": {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    },
    "t5": {
        "d_model": 32,
        "d_ff": 80,
        "d_kv": 8,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "vocab_size": 96,
    },
}


@pytest.fixture(params=sorted(SMALL))
def small_config(request, tmp_path):
    """A shipped config of each architecture, shrunk; Llama 2 stays without grouped queries."""
    kind = request.param
    name = {
        "gpt2": "gpt2",
        "llama": "llama-3.1-8b",
        "bert": "bert-large",
        "vit": "vit-large",
        "mixtral": "mixtral-8x7b",
        "t5": "t5-base",
    }[kind]
    content = dict(read_config(name).content) | SMALL[kind]
    path = tmp_path / f"{kind}.json"
    path.write_text(json.dumps(content))
    return path, content


def run_on_cpu(content, training):
    """FLOPs by kind, forward and backward, of a real run of transformers' own model."""
    settings = {k: v for k, v in content.items() if not k.startswith("_") and k != "model_type"}
    config = transformers.AutoConfig.for_model(content["model_type"], **settings)
    model_class = getattr(transformers, content["architectures"][0])
    attention = content["_attn_implementation"]
    extra = {"experts_implementation": "eager"} if content["model_type"] == "mixtral" else {}
    torch.manual_seed(0)
    model = model_class._from_config(
        config, attn_implementation=attention, dtype=torch.float32, **extra
    )
    model.train(training)
    ids = torch.randint(1, 90, (BATCH, SEQUENCE))
    if content["model_type"] == "vit":
        inputs = {"pixel_values": torch.randn(BATCH, 3, 32, 32)}
        labels = torch.zeros(BATCH, dtype=torch.long)
    else:
        inputs, labels = {"input_ids": ids}, ids.clone()
    if training:
        inputs["labels"] = labels
    elif content["model_type"] == "t5":
        inputs["decoder_input_ids"] = ids.clone()
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.set_grad_enabled(training):
            result = model(**inputs)
        with FlopCounterMode(display=False) as backward:
            if training:
                result.loss.backward()
    parameters = sum(p.numel() for p in model.parameters())
    return by_kind(forward), by_kind(backward), parameters


def by_kind(counter):
    """The counter's operators, joined as far as two routes may differ in which of them they use.

    Fused attention runs as two batched products on the CPU, and one expert after the other as plain ones.
    """
    kinds = {"mm": "mm", "addmm": "mm", "bmm": "batched", "baddbmm": "batched"}
    kinds |= {"convolution": "convolution", "convolution_backward": "convolution"}
    found = Counter()
    for operator, flops in counter.get_flop_counts().get("Global", {}).items():
        found[kinds[str(operator).rsplit(".", 1)[-1]]] += flops
    return +found


def ours(graph, phase):
    """The graph's FLOPs of contractions and attention in one phase, in the same kinds."""
    found = Counter()
    for node in graph.nodes:
        if node.phase != phase or node.definition.kind not in ("contraction", "attention"):
            continue
        if node.op.startswith("conv"):
            kind = "convolution"
        elif node.op.startswith("attention") or (node.op == "matmul" and is_batched(node)):
            kind = "batched"
        else:
            kind = "mm"
        found[kind] += node.flops * node.count
    return +found


def is_batched(node):
    """Whether both operands of a product have more than two dims, as `bmm` takes them."""
    return min(len(v.type.shape) for v in node.inputs) > 2


def test_forward_flops_and_parameters_equal_a_real_run(small_config):
    path, content = small_config
    expected, _, parameters = run_on_cpu(content, training=False)
    sequence = None if content["model_type"] == "vit" else SEQUENCE
    graph = importers.load(f"hf:{path}", batch=BATCH, sequence=sequence).graph
    assert ours(graph, "forward") == expected
    assert sum(v.type.elements for v in graph.parameters) == parameters


def test_training_flops_equal_a_real_run(small_config):
    path, content = small_config
    forward, backward, _ = run_on_cpu(content, training=True)
    sequence = None if content["model_type"] == "vit" else SEQUENCE
    loaded = importers.load(f"hf:{path}", batch=BATCH, sequence=sequence, mode="training")
    graph = training_graph(loaded.graph)
    assert ours(graph, "forward") == forward
    found = ours(graph, "backward")
    if any(n.op == "attention" for n in graph.nodes):
        # The math backend keeps the probabilities; a fused kernel computes the scores once more, so its
        # backward pass is 5 products where the math backend has 4.
        scores = sum(n.flops // 2 for n in graph.nodes if n.op == "attention")
        assert found["batched"] - scores == backward["batched"]
        found["batched"] = backward["batched"]
    assert found == backward


@pytest.mark.parametrize("name", config_names())
def test_shipped_configs_name_their_source(name):
    content = read_config(name).content
    assert content["_source"].startswith(
        ("http", "Korthikanti", "Brown", "Touvron", "Grattafiori")
    ) or ("arXiv" in content["_source"])
    assert content["architectures"]


def test_rows_that_do_not_divide_over_the_experts(tmp_path):
    """5 tokens to 2 of 8 experts each: two experts take 2 rows, six take 1; every weight is read once."""
    content = dict(read_config("mixtral-8x7b").content) | SMALL["mixtral"]
    path = tmp_path / "mixtral.json"
    path.write_text(json.dumps(content))
    for dtype in ("bf16", "fp16", "fp32"):
        loaded = importers.load(f"hf:{path}", batch=1, sequence=5, mode="training", dtype=dtype)
        grouped = [n for n in loaded.graph.nodes if n.op == "grouped_matmul"]
        rows, hidden, inner, layers = 10, 32, 80, 2
        assert sum(n.flops for n in grouped) == layers * 3 * 2 * rows * hidden * inner
        weights = sum(n.inputs[1].type.elements for n in grouped)
        assert weights == layers * 8 * 3 * hidden * inner
        backward = ours(training_graph(loaded.graph), "backward")
        assert backward["mm"] > 0
