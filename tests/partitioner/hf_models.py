"""Small real architectures from transformers, and others, as modules that return their loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from blocks import Bottleneck
from torch import nn
from torch.nn import functional as F

WIDTH, VOCABULARY, BATCH, TOKENS, LAYERS, HEAD = 32, 64, 8, 16, 3, 8


class Step(nn.Module):
    """A model and its cross entropy, by the model's own forward."""

    def __init__(self, model: nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model, self.fixed = model, fixed

    def forward(self, given: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean loss over all rows of the logits."""
        name = "pixel_values" if given.is_floating_point() else "input_ids"
        fixed = dict(self.fixed)
        if fixed.pop("decoder", False):
            fixed["decoder_input_ids"] = given
        logits = self.model(**{name: given}, **fixed).logits
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))


class Perceptron(nn.Module):
    """Layers of one width."""

    def __init__(self) -> None:
        super().__init__()
        width = WIDTH + 1  # which no mesh divides
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 75), nn.ReLU(), nn.Linear(75, width))
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """x[b, width], target[b] -> loss."""
        for layer in self.layers:
            x = x + layer(x)
        return F.cross_entropy(self.head(x), target)


class ResNet(nn.Module):
    """A stem, bottlenecks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.layers = nn.ModuleList(Bottleneck() for _ in range(LAYERS))
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """image[b, 3, y, x], target[b] -> loss."""
        y = self.stem(image)
        for layer in self.layers:
            y = layer(y)
        return F.cross_entropy(self.head(y.mean((2, 3))), target)


_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_IMAGE = {
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 10,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("CausalLM", {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4,
                          "n_positions": TOKENS}),
    "llama": ("CausalLM", _DECODER),
    "mistral": ("CausalLM", _DECODER),
    "qwen2": ("CausalLM", _DECODER),
    "qwen3": ("CausalLM", _DECODER),
    "gemma": ("CausalLM", {**_DECODER, "tie_word_embeddings": True}),
    "phi": ("CausalLM", _DECODER),
    "opt": ("CausalLM", {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "ffn_dim": 48,
                         "num_hidden_layers": LAYERS, "num_attention_heads": 4,
                         "max_position_embeddings": TOKENS, "word_embed_proj_dim": WIDTH,
                         "tie_word_embeddings": False}),
    "gpt_neox": ("CausalLM", _DECODER),
    "bert": ("MaskedLM", {**_DECODER, "tie_word_embeddings": True, "max_position_embeddings": TOKENS}),
    "vit": ("ImageClassification", {**_DECODER, **_IMAGE}),
    "t5": ("Seq2SeqLM", {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 48,
                         "num_layers": LAYERS, "num_heads": 4, "decoder_start_token_id": 0}),
    "mixtral": ("CausalLM", {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}),
}  # fmt: skip
_DECODERS = ("granite", "starcoder2", "cohere", "helium", "nemotron")
_CONFIGS |= dict.fromkeys(_DECODERS, ("CausalLM", _DECODER))
_OTHERS: dict[str, Callable[[], nn.Module]] = {"perceptron": Perceptron, "resnet": ResNet}
MODELS = (*(name for name in _CONFIGS if name not in _DECODERS), *_OTHERS)
"""All but further decoders of the same kind."""


def module(name: str) -> nn.Module:
    """A model with random weights and without dropout."""
    torch.manual_seed(3)
    if name in _OTHERS:
        return _OTHERS[name]()
    import transformers

    head, sizes = _CONFIGS[name]
    config = transformers.AutoConfig.for_model(name, **sizes)
    for option in vars(config):
        if "drop" in option and isinstance(getattr(config, option), float):
            setattr(config, option, 0.0)
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config)
    fixed = {"use_cache": False} if head in ("CausalLM", "Seq2SeqLM") else {}
    return Step(model, **fixed, **({"decoder": True} if head == "Seq2SeqLM" else {}))


def inputs(name: str, batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """What the module is called with, for a batch."""
    labels = torch.zeros(batch, dtype=torch.long)
    if name == "perceptron":
        return torch.randn(batch, WIDTH + 1), labels
    if name in ("resnet", "vit"):
        return torch.randn(batch, 3, 16, 16), labels
    tokens = torch.randint(1, VOCABULARY, (batch, TOKENS))
    return tokens, tokens


def layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers: the members of the outermost lists of modules."""
    found: list[nn.Module] = []

    def visit(parent: nn.Module) -> None:
        for child in parent.children():
            if isinstance(child, nn.ModuleList) and len(child) == LAYERS:
                found.extend(child)
            else:
                visit(child)

    visit(model)
    return found
