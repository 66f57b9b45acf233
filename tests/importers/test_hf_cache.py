"""The cache of a decode step beside the tensors that the model's own cache really holds."""

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent))

from hf_zoo import tiny_config  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import importers  # noqa: E402
from importers.hf_inputs import traceable  # noqa: E402
from importers.huggingface import build_model, read_config  # noqa: E402

BATCH, PROMPT = 2, 20

CACHED = ["llama", "gemma3_text", "deepseek_v3", "mamba"]
HYBRID = "mamba2 jamba bamba lfm2 falcon_h1 qwen3_next deepseek_v2 llava qwen2_vl".split()
MEDIA = ("llava", "qwen2_vl")
CROSS = ["bart"]
CROSS_SLOW = "whisper t5 mbart pegasus speech_to_text moonshine m2m_100".split()


def real_cache(path, past):
    """Bytes that transformers' own cache holds after `past` tokens, run on the CPU in float32."""
    meta = build_model(read_config(str(path)), "float32")
    model = type(meta)._from_config(meta.config, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(input_ids=torch.ones(BATCH, past, dtype=torch.long), use_cache=True)
    cache = getattr(out, "past_key_values", None) or out.cache_params
    tensors = []
    for layer in cache.layers:
        tensors += [getattr(layer, part, None) for part in ("keys", "values")]
        for part in ("conv_states", "recurrent_states"):
            tensors += list((getattr(layer, part, None) or {}).values())
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def cached_bytes(graph):
    return sum(v.type.bytes for v in graph.inputs if v.role == "kv_cache")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_type", [*CACHED, *(pytest.param(kind, marks=pytest.mark.slow) for kind in HYBRID)]
)
def test_decode_cache_equals_the_real_one(model_type, tmp_path):
    """The step's buffers have room for the new token, so they are the cache after it."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config(model_type)))
    step = importers.load(
        f"hf:{path}", batch=BATCH, mode="decode", past_tokens=PROMPT, dtype="float32"
    )
    real, after = real_cache(path, PROMPT), real_cache(path, PROMPT + 1)
    if model_type in MEDIA:
        # The real run has no image, but the same number of tokens.
        assert cached_bytes(step.graph) == after
        return
    ours = cached_bytes(step.graph)
    # A full window drops its oldest token only after the step.
    config = build_model(read_config(str(path))).config
    if model_type == "gemma3_text":
        windows = sum("sliding" in kind for kind in config.layer_types)
        row = 2 * BATCH * config.num_key_value_heads * config.head_dim * 4
        assert ours == after + windows * row
    else:
        assert ours == after
    prefill = importers.load(
        f"hf:{path}", batch=BATCH, sequence=PROMPT, mode="prefill", dtype="float32"
    )
    assert sum(v.type.bytes for v in prefill.graph.outputs[1:]) == real


def case_on_cpu(path, mode, **sizes):
    """transformers' own model in float32 with random weights, and a prefill's inputs with numbers in them."""
    meta = build_model(read_config(str(path)), "float32")
    model = type(meta)._from_config(meta.config, dtype=torch.float32).eval()
    options = importers.ImportOptions(mode=mode, **sizes)
    return model, traceable(meta, options)


def cross_cache(path, answer):
    """Bytes of an encoder-decoder's own cache after `answer` tokens, run on the CPU."""
    model, case = case_on_cpu(path, "inference", batch=BATCH, sequence=PROMPT)
    name = "input_ids" if "input_ids" in case.kwargs else model.main_input_name
    shape, dtype = case.kwargs[name].shape, case.kwargs[name].dtype
    given = torch.rand(shape) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
    ids = torch.ones(BATCH, answer, dtype=torch.long)
    with torch.no_grad():
        cache = model(**{name: given}, decoder_input_ids=ids, use_cache=True).past_key_values
    both = (cache.self_attention_cache, cache.cross_attention_cache)
    tensors = [t for part in both for layer in part.layers for t in (layer.keys, layer.values)]
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_type", [*CROSS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in CROSS_SLOW)]
)
def test_cross_attention_caches_equal_the_real_ones(model_type, tmp_path):
    """Whatever goes to the encoder is in the cross caches; the decoder's own grow by a token per step."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config(model_type)))
    source = f"hf:{path}"
    sound = model_type in ("whisper", "speech_to_text", "moonshine")
    answer = 5
    # The decoder's tokens are all of `past_tokens` behind sound, else those beyond the prompt.
    past = answer if sound else PROMPT + answer
    sizes = {} if sound else {"sequence": PROMPT}
    step = importers.load(
        source, batch=BATCH, mode="decode", past_tokens=past, dtype="float32", **sizes
    )
    assert cached_bytes(step.graph) == cross_cache(path, answer + 1)
    first = answer if sound else 1
    prefill = importers.load(
        source, batch=BATCH, sequence=answer if sound else PROMPT, mode="prefill", dtype="float32"
    )
    assert sum(v.type.bytes for v in prefill.graph.outputs[1:]) == cross_cache(path, first)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_states_of_rwkv_equal_the_real_ones(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config("rwkv")))
    model, _ = case_on_cpu(path, "inference", batch=BATCH, sequence=PROMPT)
    ids = torch.ones(BATCH, PROMPT, dtype=torch.long)
    with torch.no_grad():
        state = model(input_ids=ids, use_cache=True).state
    real = sum(t.numel() * t.element_size() for t in state)
    for mode, sizes in (("prefill", {"sequence": PROMPT}), ("decode", {"past_tokens": PROMPT})):
        graph = importers.load(f"hf:{path}", batch=BATCH, mode=mode, dtype="float32", **sizes).graph
        assert sum(v.type.bytes for v in graph.outputs[1:]) == real
        assert cached_bytes(graph) == (real if mode == "decode" else 0)


@pytest.mark.filterwarnings("ignore")
def test_images_are_part_of_the_prefill_only(tmp_path):
    """A prefill's products are those of a real run on text and image; a decode step sees one token."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config("llava")))
    sizes = {"batch": BATCH, "sequence": 24, "dtype": "float32"}
    prefill = importers.load(f"hf:{path}", mode="prefill", **sizes).graph
    assert "pixel_values" in {v.name for v in prefill.inputs}
    model, case = case_on_cpu(path, "prefill", batch=BATCH, sequence=24)
    pixels = torch.rand(case.kwargs["pixel_values"].shape)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=case.args[0], pixel_values=pixels, use_cache=True, logits_to_keep=1)
    kinds = ("contraction", "attention")
    counted = sum(n.flops for n in prefill.nodes if n.definition.kind in kinds)
    assert counted == counter.get_total_flops()
    step = importers.load(f"hf:{path}", batch=BATCH, mode="decode", past_tokens=24).graph
    assert "pixel_values" not in {v.name for v in step.inputs}
