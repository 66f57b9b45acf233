"""Small models of every family, as folded forward graphs with a loss."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from blocks import Bottleneck, GptBlock, LlamaBlock
from torch import nn
from torch.nn import functional as F

from graph_ir.fold import fold
from graph_ir.graph import Graph
from importers import load

WIDTH, VOCABULARY, BATCH, TOKENS = 32, 24, 8, 16


class FusedBlock(nn.Module):
    """Fused causal attention with grouped queries, one weight for query, key and value; fused norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH)
        self.mixed, self.out = nn.Linear(WIDTH, 64), nn.Linear(WIDTH, WIDTH)
        self.fc, self.proj = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[b, s, width] -> [b, s, width]."""
        b, s, _ = x.shape
        parts = self.mixed(self.norm_1(x)).split([32, 16, 16], dim=-1)
        q, k, v = (p.view(b, s, -1, 4).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, WIDTH))
        return x + self.proj(F.gelu(self.fc(self.norm_2(x)), approximate="tanh"))


class SeparateBlock(FusedBlock):
    """The same with a weight each for query, key and value, so that its heads can be split."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Identity()
        self.q, self.k = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 16)
        self.v = nn.Linear(WIDTH, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[b, s, width] -> [b, s, width]."""
        b, s, _ = x.shape
        y = self.norm_1(x)
        q, k, v = (p(y).view(b, s, -1, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, WIDTH))
        return x + self.proj(F.gelu(self.fc(self.norm_2(x)), approximate="tanh"))


class LanguageModel(nn.Module):
    """Embedding, blocks, head, cross entropy: the whole way of a token."""

    def __init__(self, block: Callable[[], nn.Module], layers: int, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(block() for _ in range(layers))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(self.norm(x)).view(-1, VOCABULARY), target.view(-1))


class ResNet(nn.Module):
    """Bottlenecks of two widths, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Sequential(Bottleneck(), Bottleneck())
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.second = nn.Sequential(Bottleneck(32, 16), Bottleneck(32, 16))
        self.head = nn.Linear(32, 24)

    def forward(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        y = self.second(self.down(self.first(self.stem(image))))
        return F.cross_entropy(self.head(y.mean((2, 3))), target)


def language_model(block: Callable[[], nn.Module], layers: int = 3, *, tied: bool = False) -> Graph:
    tokens = torch.zeros(BATCH, TOKENS, dtype=torch.long)
    model = LanguageModel(block, layers, tied)
    return fold(load(model, example_inputs=(tokens, tokens), mode="training").graph)


def resnet() -> Graph:
    given = (torch.zeros(BATCH, 3, 8, 8), torch.zeros(BATCH, dtype=torch.long))
    return fold(load(ResNet(), example_inputs=given, mode="training").graph)


def architecture(kind: str, **sizes: Any) -> Graph:
    """A Hugging Face architecture by its config."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({"model_type": kind, "vocab_size": 64, **sizes}))
        model = load(f"hf:{path}", batch=BATCH, sequence=TOKENS, mode="training", dtype="fp32")
    return fold(model.graph)


def mixture() -> Graph:
    return architecture(
        "mixtral",
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )


def mixture_with_shared_expert() -> Graph:
    """Latent attention, a dense layer, then a layer of routed experts and one that all tokens pass."""
    return architecture(
        "deepseek_v3",
        hidden_size=WIDTH,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_group=1,
        topk_group=1,
    )


def encoder_decoder() -> Graph:
    return architecture(
        "t5",
        d_model=WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )


_MODELS: dict[str, Callable[[], Graph]] = {
    "gpt": lambda: language_model(GptBlock),
    "llama": lambda: language_model(LlamaBlock),
    "fused": lambda: language_model(FusedBlock),
    "separate": lambda: language_model(SeparateBlock),
    "tied": lambda: language_model(SeparateBlock, tied=True),
    "resnet": resnet,
    "mixture": mixture,
    "shared expert": mixture_with_shared_expert,
    "encoder-decoder": encoder_decoder,
}


@cache
def model(name: str) -> Graph:
    """The forward graph of a small model, folded."""
    return _MODELS[name]()
