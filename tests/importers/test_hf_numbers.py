"""The imported graph computes what the model computes: both are run on the same random numbers."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import importers  # noqa: E402
from graph_ir.evaluate import run_graph  # noqa: E402
from importers.huggingface import read_config  # noqa: E402

BATCH, SEQUENCE = 2, 12

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
SMALL = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 50},
    "megatron-22b": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 50},
    "llama-3.1-8b": LLAMA,
    "bert-large": LLAMA,
    "vit-large": LLAMA | {"image_size": 16, "patch_size": 8},
    "t5-base": {
        "d_model": 32,
        "d_ff": 48,
        "d_kv": 8,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "vocab_size": 50,
    },
}


@pytest.fixture
def small(tmp_path):
    def make(name):
        content = dict(read_config(name).content) | SMALL[name]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        settings = {k: v for k, v in content.items() if not k.startswith("_") and k != "model_type"}
        config = transformers.AutoConfig.for_model(content["model_type"], **settings)
        torch.manual_seed(0)
        model = getattr(transformers, content["architectures"][0])._from_config(
            config, attn_implementation=content["_attn_implementation"], dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        return f"hf:{path}", model.eval()

    return make


def evaluate(graph, model, inputs):
    """Runs a graph on the model's weights."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    values = {}
    for value in graph.inputs:
        if value.kind in ("parameter", "buffer"):
            values[value] = tensors[value.name].detach().numpy()
        elif value.kind == "constant":
            values[value] = value.data
        else:
            values[value] = inputs[value.name]
        assert values[value].shape == value.type.shape
    found = run_graph(graph, values)
    return [found[v] for v in graph.outputs]


def ids():
    return np.random.default_rng(0).integers(1, 50, (BATCH, SEQUENCE))


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b", "bert-large"])
def test_language_models(small, name):
    source, model = small(name)
    graph = importers.load(source, batch=BATCH, sequence=SEQUENCE, dtype="float32").graph
    logits, *_ = evaluate(graph, model, {"input_ids": ids()})
    expected = model(input_ids=torch.from_numpy(ids())).logits.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_decomposed_attention_with_its_mask(small):
    source, model = small("megatron-22b")
    graph = importers.load(source, batch=BATCH, sequence=SEQUENCE, dtype="float32").graph
    mask = np.triu(np.full((SEQUENCE, SEQUENCE), -1e9, dtype=np.float32), 1)[None, None]
    logits, *_ = evaluate(graph, model, {"input_ids": ids(), "attention_mask": mask})
    expected = model(input_ids=torch.from_numpy(ids())).logits.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_vision(small):
    source, model = small("vit-large")
    graph = importers.load(source, batch=BATCH, dtype="float32").graph
    image = np.random.default_rng(0).normal(size=(BATCH, 3, 16, 16)).astype(np.float32)
    logits, *_ = evaluate(graph, model, {"pixel_values": image})
    expected = model(pixel_values=torch.from_numpy(image)).logits.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_encoder_decoder(small):
    source, model = small("t5-base")
    graph = importers.load(source, batch=BATCH, sequence=SEQUENCE, dtype="float32").graph
    given = {"input_ids": ids(), "decoder_input_ids": ids()[:, ::-1].copy()}
    logits, *_ = evaluate(graph, model, given)
    expected = model(**{k: torch.from_numpy(v) for k, v in given.items()}).logits.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b"])
def test_prefill_then_decode_equals_the_whole_sequence(small, name):
    """The caches that the prefill returns, with room for one token, feed the decode step."""
    source, model = small(name)
    prompt, last = ids()[:, :-1], ids()[:, -1:]
    past = prompt.shape[1]
    prefill = importers.load(
        source, batch=BATCH, sequence=past, mode="prefill", dtype="float32"
    ).graph
    _, *caches = evaluate(prefill, model, {"input_ids": prompt})
    step = importers.load(
        source, batch=BATCH, mode="decode", past_tokens=past, dtype="float32"
    ).graph
    buffers = [v for v in step.inputs if v.role == "kv_cache"]
    assert len(buffers) == len(caches) == 4
    given = {"input_ids": last}
    for buffer, cache in zip(buffers, caches, strict=True):
        given[buffer.name] = np.concatenate([cache, np.zeros_like(cache[:, :, :1])], axis=2)
    logits, *_ = evaluate(step, model, given)
    expected = model(input_ids=torch.from_numpy(ids())).logits.detach().numpy()
    np.testing.assert_allclose(logits[:, -1], expected[:, -1], rtol=1e-3, atol=1e-4)


def test_encoder_decoder_generation(small):
    """Prefill: encoder and the decoder's first token; then one decode step from its caches."""
    source, model = small("t5-base")
    prompt, answer = ids(), ids()[:, :2]
    prefill = importers.load(
        source, batch=BATCH, sequence=SEQUENCE, mode="prefill", dtype="float32"
    ).graph
    first = {"input_ids": prompt, "decoder_input_ids": answer[:, :1]}
    _, *caches = evaluate(prefill, model, first)
    step = importers.load(
        source,
        batch=BATCH,
        sequence=SEQUENCE,
        past_tokens=SEQUENCE + 1,
        mode="decode",
        dtype="float32",
    ).graph
    buffers = [v for v in step.inputs if v.role == "kv_cache"]
    given = {"decoder_input_ids": answer[:, 1:]}
    for buffer, cache in zip(buffers, caches, strict=True):
        room = buffer.type.shape[2] - cache.shape[2]
        given[buffer.name] = np.pad(cache, ((0, 0), (0, 0), (0, room), (0, 0)))
    logits, *_ = evaluate(step, model, given)
    whole = (
        model(input_ids=torch.from_numpy(prompt), decoder_input_ids=torch.from_numpy(answer))
        .logits.detach()
        .numpy()
    )
    np.testing.assert_allclose(logits[:, -1], whole[:, -1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b"])
def test_cache_bytes_equal_the_real_cache(small, name):
    source, model = small(name)
    graph = importers.load(
        source, batch=BATCH, sequence=SEQUENCE, mode="prefill", dtype="float32"
    ).graph
    cache = model(input_ids=torch.from_numpy(ids()), use_cache=True).past_key_values
    real = sum(t.numel() * 4 for layer in cache.layers for t in (layer.keys, layer.values))
    ours = [v for n in graph.nodes for v in n.outputs if v.role == "kv_cache"]
    assert sum(v.type.bytes for v in ours) == real
    assert set(ours) == set(graph.outputs[1:])
