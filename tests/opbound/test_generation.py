"""Generation: a prefill and decode steps with a KV cache."""

import json

import pytest

import opbound

pytest.importorskip("transformers")

LAYERS, KV_HEADS, HEAD_DIM, BATCH = 3, 2, 16, 4
PROMPT, NEW = 40, 9


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": LAYERS,
        "vocab_size": 512,
    }
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return f"hf:{path}"


def generation(model, **options):
    return opbound.analyze(
        model,
        mode="generation",
        batch=BATCH,
        prompt_tokens=PROMPT,
        new_tokens=NEW,
        dtype="fp16",
        **options,
    )


@pytest.fixture(scope="module")
def report(model):
    return generation(model)


def test_the_cache_holds_every_token_at_the_end(report):
    per_token_bytes = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2
    assert report.memory.by_kind_bytes["kv_cache"] == BATCH * (PROMPT + NEW) * per_token_bytes


def test_times_add_up(report):
    totals = report.totals
    assert totals.decode_time_s == pytest.approx(NEW * totals.time_per_token_s)
    assert totals.step_time_s == pytest.approx(totals.prefill_time_s + totals.decode_time_s)
    by_phase = totals.time_s.by_phase
    assert by_phase["prefill"] == pytest.approx(totals.prefill_time_s)
    assert by_phase["decode"] == pytest.approx(totals.decode_time_s)


def test_every_step_is_counted(report):
    def products(phase: str) -> int:
        return sum(r.flops for r in report.operators if r.op == "linear" and r.phase == phase)

    # Every weight meets every token once: those of the prompt but for the head, and the new ones.
    weights = sum(
        r.shapes[1][0] * r.shapes[1][1] * (r.count // NEW)
        for r in report.operators
        if r.op == "linear" and r.phase == "decode"
    )
    assert products("decode") == 2 * weights * BATCH * NEW
    head = 512 * 64
    assert products("prefill") in (
        2 * weights * BATCH * PROMPT,
        2 * BATCH * ((weights - head) * PROMPT + head),
    )


def test_the_header_says_how_many_tokens(report):
    text = report.to_text(top=1)
    assert f"{PROMPT} prompt tokens, {NEW} new tokens" in text
    assert "per token" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hardware", "prefill_bound", "cache_bound"),
    [("a100-sxm-80gb", "compute", "memory"), ("h100-sxm-80gb", "memory", "latency")],
)
def test_the_bounds_of_llama_2_13b(hardware, prefill_bound, cache_bound):
    """A prompt of 200 tokens: above an A100's ridge point, below an H100's.

    One sample's cache is read within the latency of an H100's kernels.
    """
    report = opbound.analyze(
        "hf:llama-2-13b",
        mode="generation",
        batch=1,
        prompt_tokens=200,
        new_tokens=10,
        dtype="fp16",
        hardware=hardware,
    )
    layers = [row for row in report.operators if row.op == "linear" and "layers" in row.label]
    assert len(layers) == 2 * 7
    for row in layers:
        wanted = prefill_bound if row.phase == "prefill" else "memory"
        assert row.bound.split(":")[0] == wanted, row.label
    scores = [row for row in report.operators if row.op == "attention"]
    assert len(scores) == 2
    bounds = {row.phase: row.bound.split(":")[0] for row in scores}
    assert bounds == {"prefill": "memory", "decode": cache_bound}


@pytest.mark.parametrize("way", ["", "ring"])
def test_ranks_share_the_prompt_and_then_the_cache(model, report, way):
    found = generation(model, parallel={"cp": 2, "tp": 2}, context_parallel=way)
    whole, part = (r.memory.by_kind_bytes["kv_cache"] for r in (report, found))
    # The step for all has 45 tokens, 23 of them on the fuller rank, and two ranks share the heads.
    assert part == round(whole * 23 / 45 / 2)
    sent = {(r.op, r.count) for r in found.operators if r.axis == "cp" and r.count >= LAYERS * NEW}
    assert {op for op, _ in sent} == {"all_gather", "all_reduce"}
