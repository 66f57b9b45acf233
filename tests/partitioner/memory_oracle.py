"""What PyTorch's own tracker sees in memory when FSDP2 trains a model on a fake process group.

The models are what `hf:` imports from the same config: real tensors on the CPU, a few layers of 256 channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fsdp_oracle import fake_ranks
from torch import nn
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import fully_shard

LAYERS, WIDTH, VOCABULARY = 3, 256, 1024
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 688,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_IMAGES = {"image_size": 64, "num_labels": 16}
_ENCODER = {**_DECODER, "max_position_embeddings": 512, "num_key_value_heads": 8}
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaDecoderLayer", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3DecoderLayer", _DECODER),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralDecoderLayer",
        {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Block",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 8, "n_positions": 512},
    ),
    "bert": ("BertForMaskedLM", "BertLayer", {**_ENCODER, "tie_word_embeddings": True}),
    # Its attention adds a table to the scores; only eager attention has that table's gradient on a CPU.
    "t5": (
        "T5ForConditionalGeneration",
        "T5Block",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 32,
            "d_ff": 688,
            "num_layers": LAYERS,
            "num_heads": 8,
            "decoder_start_token_id": 0,
            "_attn_implementation": "eager",
        },
    ),
    "vit": ("ViTForImageClassification", "ViTLayer", {**_ENCODER, **_IMAGES, "patch_size": 8}),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextLayer",
        {"hidden_sizes": [48, 96, 192, 384], "depths": [2, 2, 4, 2], **_IMAGES},
    ),
    # No two layers of it are alike: one unit.
    "resnet": (
        "ResNetForImageClassification",
        "",
        {"embedding_size": 32, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2],
         "num_labels": 16},
    ),
}  # fmt: skip
"""Model type -> class of the model, class of its repeated layers, config."""


def write_config(name: str, folder: Path) -> Path:
    """The config as a file, without dropout, whose masks a CPU keeps as floats and a GPU as bytes."""
    architecture, _, settings = CONFIGS[name]
    plain = {"model_type": name, "architectures": [architecture], **settings, **_no_dropout(name)}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(plain))
    return path


def _no_dropout(name: str) -> dict[str, float]:
    import transformers

    options = vars(transformers.AutoConfig.for_model(name))
    return {k: 0.0 for k, v in options.items() if "drop" in k and isinstance(v, float)}


class Loss(nn.Module):
    """A model that returns its loss alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **given: Any) -> torch.Tensor:
        """The mean loss."""
        return self.model(**given).loss


def build(name: str, dtype: torch.dtype) -> Loss:
    """The model with random weights."""
    import transformers

    architecture, _, settings = CONFIGS[name]
    settings = {**settings, **_no_dropout(name)}
    attention = settings.pop("_attn_implementation", "sdpa" if name != "convnext" else None)
    config = transformers.AutoConfig.for_model(name, **settings)
    extra = {} if name in ("resnet", "convnext") else {"attn_implementation": attention}
    made = getattr(transformers, architecture)._from_config(config, dtype=dtype, **extra)
    # A cache is of no use to training, and layers that are recomputed would keep theirs.
    made.config.use_cache = False
    return Loss(made.train())


def inputs(name: str, batch: int, tokens: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What one rank is given."""
    if "Image" in CONFIGS[name][0]:
        side = CONFIGS[name][2].get("image_size", 224)
        images = torch.zeros(batch, 3, side, side, dtype=dtype)
        return {"pixel_values": images, "labels": torch.zeros(batch, dtype=torch.long)}
    ids = torch.ones(batch, tokens, dtype=torch.long)
    return {"input_ids": ids, "labels": ids}


def tracked(
    name: str,
    batch: int,
    tokens: int,
    ranks: int,
    *,
    recompute: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Mapping[str, int]]:
    """Bytes by FSDPMemTracker's own categories after the forward pass, and at the peak.

    Of the second micro-batch of a step: gradients and the optimizer's states are there already. The
    embedding, and norm and head, are units of their own where they can be, as torchtitan has them.
    """
    torch.set_num_threads(1)
    with fake_ranks(ranks) as mesh:
        model = build(name, dtype)
        units = [m for m in model.modules() if type(m).__name__ == CONFIGS[name][1]]
        if recompute:
            wrapped = set(units)
            apply_activation_checkpointing(
                model, checkpoint_wrapper_fn=checkpoint_wrapper, check_fn=lambda m: m in wrapped
            )
        inner = model.model
        if not getattr(inner.config, "tie_word_embeddings", True) and hasattr(inner, "lm_head"):
            fully_shard(inner.model.embed_tokens, mesh=mesh)
            fully_shard([inner.model.norm, inner.lm_head], mesh=mesh, reshard_after_forward=False)
        for unit in (*units, model):
            fully_shard(unit, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        given = inputs(name, batch, tokens, dtype)
        model(**given).backward()
        optimizer.step()
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs(tuple(given.values()))
        with tracker:
            loss = model(**given)
            forward = tracker.get_tracker_snapshot("current")
            loss.backward()
            peak = tracker.get_tracker_snapshot("peak")
    place = torch.device("cpu")
    return {
        when: {getattr(kind, "value", kind): size for kind, size in snapshot[place].items()}
        for when, snapshot in (("forward", forward), ("peak", peak))
    }
