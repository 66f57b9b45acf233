"""Every rank of a split training step computes its part of what one device computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from blocks import Bottleneck, GptBlock, LlamaBlock  # noqa: E402
from ranks import Array, Ranks, Split  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import partitioner.strategies.context  # noqa: E402
import partitioner.strategies.data  # noqa: E402
import partitioner.strategies.tensor  # noqa: E402
from graph_ir.evaluate import run_graph  # noqa: E402
from graph_ir.graph import Graph, Value  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.propagate import split_graph  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402


class LanguageModel(nn.Module):
    """Embedding, one block, head, cross entropy: the whole way of a token."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embedding, self.block = nn.Embedding(24, 32), block()
        self.head = nn.Linear(32, 24, bias=False)

    def forward(self, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.block(self.embedding(tokens)))
        return F.cross_entropy(logits.view(-1, 24), target.view(-1))


class FusedBlock(nn.Module):
    """Fused causal attention with grouped queries, one weight for query, key and value; fused norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(32, eps=1e-6), nn.LayerNorm(32)
        self.mixed, self.out = nn.Linear(32, 64), nn.Linear(32, 32)
        self.fc, self.proj = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        parts = self.mixed(self.norm_1(x)).split([32, 16, 16], dim=-1)
        q, k, v = (p.view(b, s, -1, 4).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, 32))
        return x + self.proj(F.gelu(self.fc(self.norm_2(x)), approximate="tanh"))


def numbers(graph: Graph) -> dict[Value, Array]:
    """Random numbers for every input of a graph; the content of constants where it is known."""
    rng = np.random.default_rng(5)

    def array(value: Value) -> Any:
        shape = value.type.shape
        if value.data is not None:
            return np.asarray(value.data)
        if not value.type.dtype.is_float:
            return rng.integers(0, 24, size=shape)
        return rng.normal(size=shape) * (0.3 if value.kind == "parameter" else 1.0)

    return {v: array(v) for v in graph.inputs}


def language_model(block: Callable[[], nn.Module]) -> Graph:
    tokens = torch.zeros(4, 8, dtype=torch.long)
    model = LanguageModel(block)
    return load(model, example_inputs=(tokens, tokens), mode="training").graph


MODELS = {
    "gpt": lambda: language_model(GptBlock),
    "fused": lambda: language_model(FusedBlock),
    "llama": lambda: language_model(LlamaBlock),
    "bottleneck": lambda: (
        load(Bottleneck(), example_inputs=(torch.zeros(4, 16, 6, 6),), mode="training").graph
    ),
}


def split(graph: Graph, strategy: Strategy, monkeypatch: pytest.MonkeyPatch, name: str) -> Split:
    """Splits by a strategy, and keeps the plan that it made."""
    found: list[Split] = []

    def record(whole: Graph, axes: Any, plan: Any) -> Graph:
        local = split_graph(whole, axes, plan)
        found.append(Split(whole, axes, plan, local))
        return local

    module = getattr(partitioner.strategies, name)
    monkeypatch.setattr(module, "split_graph", record)
    module.apply(graph, strategy)
    return found[-1]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("way", ["data", "tensor", "tensor with sequence", "context"])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_ranks_compute_their_parts(
    model: str, way: str, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model == "bottleneck" and way in ("tensor with sequence", "context"):
        pytest.skip("an image has no sequence")
    graph = training_graph(MODELS[model](), optimizer="sgd")
    name = way.split()[0]
    mesh = Mesh({{"data": "dp", "tensor": "tp", "context": "cp"}[name]: world})
    strategy = Strategy(mesh, sequence_parallel="sequence" in way)
    found = split(graph, strategy, monkeypatch, name)
    given = numbers(found.whole)
    expected = run_graph(found.whole, given)
    assert Ranks(found, given).check(expected) > 0.9 * len(found.whole.nodes)


def test_attention_with_few_heads_gathers_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    world = 8  # the model has 4 key-value heads
    graph = training_graph(MODELS["fused"](), optimizer="sgd")
    found = split(graph, Strategy(Mesh({"cp": world})), monkeypatch, "context")
    given = numbers(found.whole)
    assert Ranks(found, given).check(run_graph(found.whole, given)) > 0.9 * len(found.whole.nodes)
    sent = [n for n in found.local.nodes if n.phase == "communication" and n.op != "all_reduce"]
    # Keys and values are gathered, in the backward pass again, and their gradients reduce-scattered.
    assert sorted(n.op for n in sent) == ["all_gather"] * 4 + ["reduce_scatter"] * 2
    (attention,) = (n for n in found.local.nodes if n.op == "attention")
    whole = next(n for n in found.whole.nodes if n.op == "attention")
    assert attention.flops * world == whole.flops
    share = attention.definition.executed_fraction(attention)
    assert share == whole.definition.executed_fraction(whole)
