"""The cache of a decode step beside the tensors that the model's own cache really holds."""

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent))

from hf_zoo import tiny_config  # noqa: E402

import importers  # noqa: E402
from importers.huggingface import build_model, read_config  # noqa: E402

BATCH, PROMPT = 2, 20

CACHED = ["llama", "gemma3_text", "deepseek_v3", "mamba"]
HYBRID = ["mamba2", "jamba", "bamba", "lfm2", "falcon_h1"]


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
