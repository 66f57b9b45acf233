"""The same model from several frontends: the same canonical operators, the same work."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from graph_ir.canonicalize import canonicalize  # noqa: E402
from graph_ir.fold import fold  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from importers import load  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))

from written_out import Decoder, arguments  # noqa: E402

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SMALL | {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", SMALL | {"num_key_value_heads": 2, "head_dim": 8}),
    "gpt_neox": ("GPTNeoX", SMALL),
    "falcon": (
        "Falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100},
    ),
    "bert": ("Bert", SMALL),
    "opt": ("OPT", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}),
}
CANONICAL = ("attention", "layer_norm", "rms_norm", "gelu", "silu", "rotary_embedding")


QUICK = ("llama", "bert")


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


def model_of(name: str, attention: str) -> Any:
    prefix, sizes = MODELS[name]
    config = getattr(transformers, f"{prefix}Config")(
        **sizes, attn_implementation=attention, use_cache=False
    )
    return getattr(transformers, f"{prefix}Model")(config).eval()


class Exported(torch.nn.Module):
    """Names the argument, as tracing a model of transformers needs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Any) -> Any:
        return self.model(input_ids=tokens).last_hidden_state


def imported(name: str, attention: str) -> Graph:
    tokens = torch.zeros(2, 16, dtype=torch.long)
    return load(model_of(name, attention), example_inputs=(tokens,)).graph


def work(graph: Graph) -> int:
    heavy = ("contraction", "attention")
    return sum(n.flops * n.count for n in graph.nodes if n.definition.kind in heavy)


def traffic(graph: Graph) -> int:
    return sum((n.bytes_read + n.bytes_written) * n.count for n in graph.nodes)


def kernels(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.nodes if not n.definition.is_view(n))


@pytest.mark.parametrize("name", ["llama", "bert", *(slow(n) for n in MODELS if n not in QUICK)])
def test_written_out_attention_equals_fused_attention(
    name: str, request: pytest.FixtureRequest
) -> None:
    if name == "opt":
        reason = "a factor on the queries of an attention that is fused already stays a product"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    eager, fused = imported(name, "eager"), imported(name, "sdpa")
    ours, theirs = canonicalize(eager), canonicalize(fused)
    assert kernels(ours) == kernels(theirs)
    assert kernels(ours)["attention"] == 2
    assert work(ours) == work(theirs) == work(eager) == work(fused)
    assert traffic(ours) == pytest.approx(traffic(theirs), rel=0.01)
    assert traffic(ours) < traffic(eager)


@pytest.mark.filterwarnings("ignore")  # the exporter that writes norms out is a legacy one
@pytest.mark.parametrize("opset", [14, 17])
@pytest.mark.parametrize("name", [slow("bert"), "decoder"])
def test_an_onnx_export_equals_the_module(name: str, opset: int, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.onnx"
    model, given = Decoder().eval(), arguments()
    if name == "bert":
        model, given = Exported(model_of(name, "eager")), (torch.zeros(2, 16, dtype=torch.long),)
    torch.onnx.export(model, given, path, opset_version=opset, dynamo=False)
    written = load(path).graph
    ours, theirs = canonicalize(written), canonicalize(load(model, example_inputs=given).graph)
    found, wanted = kernels(ours), kernels(theirs)
    assert {op: found[op] for op in CANONICAL} == {op: wanted[op] for op in CANONICAL}
    assert found["attention"] == 2
    assert found["layer_norm"] + found["rms_norm"] >= 4
    assert work(ours) == work(written) == work(theirs)
    assert traffic(ours) < traffic(written)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "layers", "wanted"),
    [
        ("llama-2-7b", "inference", 32, {"rms_norm": 65, "attention": 32, "rotary_embedding": 64}),
        ("megatron-22b", "training", 48, {"layer_norm": 97, "attention": 48, "softmax": 0}),
        ("t5-base", "inference", 12, {"rms_norm": 62, "attention": 36, "softmax": 0}),
    ],
)
def test_shipped_models(name: str, mode: str, layers: int, wanted: dict[str, int]) -> None:
    graph = load(f"hf:{name}", batch=1, sequence=64, mode=mode).graph
    found = canonicalize(graph, training=mode == "training")
    assert {op: kernels(found)[op] for op in wanted} == wanted
    assert work(found) == work(graph)
    assert traffic(found) < traffic(graph)
    assert max(b.count for b in fold(found).blocks) >= layers - 1
    if mode == "training":
        assert all(n.attrs["dropout"] == 0.1 for n in found.nodes if n.op == "attention")
