"""What a diffusion model is called with, from its config and the names of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from graph_ir.errors import OpboundError
from importers.imported_model import ImportOptions
from importers.torch_call import InputHint

_PROMPT_TOKENS = 77
"""CLIP's context, the prompt of Stable Diffusion 1 to XL."""
_LONG_PROMPT_TOKENS = {"SD3Transformer2DModel": 333, "FluxTransformer2DModel": 512}
"""CLIP's 77 and T5's 256 tokens; T5's 512 tokens."""
_DEFAULT_LATENT = 64
"""Latent pixels per side of a 512-pixel image, where the config has no `sample_size`."""
_PACKED = 2
"""Models that take a row of patches (they are given positions) get 2 x 2 latent pixels in each."""


def inputs_of(module: Any, options: ImportOptions) -> tuple[dict[str, Any], dict[str, InputHint]]:
    """Keyword arguments to trace a model with, and what their dims mean.

    Raises:
        OpboundError: the model needs an argument that is not known here.
    """
    import torch

    config = module.config
    dtype = next(module.parameters()).dtype
    batch = options.batch or 1
    name = type(module).__name__
    tokens = options.sequence or _LONG_PROMPT_TOKENS.get(name, _PROMPT_TOKENS)
    height, width = _latent(config, options)
    arguments = inspect.signature(module.forward).parameters
    packed = "img_ids" in arguments
    patches = (height // _PACKED) * (width // _PACKED)
    channels = int(config.get("in_channels") or 4)

    def floats(*shape: int) -> Any:
        return torch.empty(shape, dtype=dtype, device="meta")

    def numbers(*shape: int) -> Any:
        return torch.zeros(shape, dtype=torch.int64)

    image = floats(batch, patches, channels) if packed else floats(batch, channels, height, width)
    context = next((int(config[k]) for k in _CONTEXT_WIDTHS if config.get(k)), None)
    makers: dict[str, Any] = {
        "sample": image,
        "hidden_states": image,
        "timestep": floats(batch) if packed else numbers(batch),
    }
    if context is not None:
        makers["encoder_hidden_states"] = floats(batch, tokens, context)
    if config.get("pooled_projection_dim"):
        makers["pooled_projections"] = floats(batch, int(config["pooled_projection_dim"]))
    if config.get("guidance_embeds"):
        makers["guidance"] = floats(batch)
    if packed:
        makers |= {"img_ids": floats(patches, 3), "txt_ids": floats(tokens, 3)}
    if (config.get("num_embeds_ada_norm") and context is None) or config.get("class_embed_type"):
        makers["class_labels"] = numbers(batch)
    if config.get("addition_embed_type") == "text_time":
        times = 6
        pooled = int(config["projection_class_embeddings_input_dim"]) - times * int(
            config["addition_time_embed_dim"]
        )
        makers["added_cond_kwargs"] = {
            "text_embeds": floats(batch, pooled),
            "time_ids": floats(batch, times),
        }
    given = {k: v for k, v in makers.items() if k in arguments}
    missing = [
        k
        for k, a in arguments.items()
        if a.default is a.empty and k not in given and a.kind is a.POSITIONAL_OR_KEYWORD
    ]
    if missing:
        raise OpboundError(
            f"{name} needs {', '.join(missing)}, which opbound does not know how to make: write a factory "
            f"that returns (module, inputs) and give it as package.module:factory"
        )
    return given, _hints(given)


_CONTEXT_WIDTHS = (
    "joint_attention_dim",
    "caption_channels",
    "cross_attention_dim",
    "text_embed_dim",
)


def _hints(given: Mapping[str, Any]) -> dict[str, InputHint]:
    """The first dim is the batch, but for positions; the second one of the prompt its tokens."""
    found = {}
    for name, value in given.items():
        if hasattr(value, "shape") and not name.endswith("_ids"):
            dims: list[str | None] = ["batch", *[None] * (value.ndim - 1)]
            if name == "encoder_hidden_states":
                dims[1] = "sequence"
            found[name] = InputHint(tuple(dims))
    return found


def _latent(config: Mapping[str, Any], options: ImportOptions) -> tuple[int, int]:
    own = config.get("sample_size") or _DEFAULT_LATENT
    rows, columns = own if isinstance(own, list | tuple) else (own, own)
    return int(options.dims.get("height", rows)), int(options.dims.get("width", columns))
