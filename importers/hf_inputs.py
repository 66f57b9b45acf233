"""Example inputs for transformers models: what to trace them with, by modality and by mode.

Every input lives on the meta device: it has a shape and a dtype, never contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from graph_ir.errors import DimensionError, OpboundError
from importers.hf_companions import companions, missing
from importers.hf_modalities import (
    field_of,
    floats,
    images,
    media_tokens,
    parameters_of,
    pixels,
    sound,
)
from importers.imported_model import ImportOptions
from importers.torch_call import InputHint

DEFAULT_SEQUENCE = 1024
"""Tokens per sample where neither the user nor the model's longest sequence says less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCase:
    """A module with the arguments to trace it with."""

    module: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any]
    inputs: Mapping[str, InputHint]
    """What the dims of each tensor argument mean, by argument name."""
    prefix: str = ""
    """What the wrapping module puts before every module path of the user's model."""
    batch: int
    sequence: int | None
    notes: tuple[str, ...] = ()
    first_cache_output: int | None = None
    """Index of the first result that is a KV cache; all that follow are too."""


def traceable(model: Any, options: ImportOptions) -> TraceCase:
    """The arguments, and for generation the cache-carrying wrapper, to trace `model` with.

    Raises:
        OpboundError: opbound has no input builder for this kind of model, or a size does not fit it.
    """
    case = _main_inputs(model, options)
    if case.module is not model:
        return case
    more = companions(model, case.kwargs, case.batch, case.sequence)
    kwargs = {**case.kwargs, **more}
    lacking = missing(model, kwargs)
    if lacking:
        raise _no_builder(model, lacking[0])
    hints = {k: InputHint(("batch", *[None] * (v.ndim - 1))) for k, v in more.items()}
    return replace(case, kwargs=kwargs, inputs={**hints, **case.inputs})


def _no_builder(model: Any, name: str) -> OpboundError:
    return OpboundError(
        f"{type(model).__name__} takes {name!r}, for which importers/hf_inputs.py has no input "
        f"builder: pass the module with example inputs through opbound.analyze"
    )


def _main_inputs(model: Any, options: ImportOptions) -> TraceCase:
    batch = options.batch or 1
    main = getattr(model, "main_input_name", "input_ids")
    names = parameters_of(model)
    if "input_ids" not in names and "pixel_values" in names:
        return _vision(model, options, batch)
    if main in ("input_values", "input_features"):
        return _sound(model, options, batch, main)
    if has_images(model):
        return _text_and_more(model, options, batch)
    if "input_ids" not in names:
        if main in ("states", "flattened_patches"):
            return _vectors(model, options, batch)
        raise _no_builder(model, main)
    sequence, notes = _sequence(model, options)
    if options.mode in ("prefill", "decode"):
        from importers.hf_generation import generation_case

        return generation_case(model, options, batch, sequence, notes)
    if model.config.is_encoder_decoder:
        return _encoder_decoder(model, options, batch, sequence, notes)
    kwargs = {"input_ids": tokens(batch, sequence)}
    if _is_causal(model):
        kwargs |= causal_mask(model, sequence, sequence)
        kwargs["use_cache"] = False
    if options.mode == "training":
        kwargs["labels"] = _labels(model, batch, sequence)
    return TraceCase(
        module=model,
        kwargs=kwargs,
        inputs=_hints(kwargs),
        batch=batch,
        sequence=sequence,
        notes=notes,
    )


def tokens(batch: int, sequence: int) -> Any:
    """Token numbers, int64[batch, sequence]. A new tensor per call: traced inputs must be distinct."""
    import torch

    return torch.zeros(batch, sequence, dtype=torch.long, device="meta")


def causal_mask(model: Any, queries: int, keys: int) -> dict[str, Any]:
    """The additive [1, 1, queries, keys] mask that decomposed attention adds to its scores.

    transformers uses a 4-D mask as it is; without one it would build its own from positions, in dozens
    of integer operators that it skips when it is not being traced.
    """
    import torch

    attends = getattr(model.config, "num_attention_heads", None) is not None
    if model.config._attn_implementation != "eager" or not attends:
        return {}
    return {"attention_mask": torch.zeros(1, 1, queries, keys, dtype=model.dtype, device="meta")}


def _encoder_decoder(
    model: Any, options: ImportOptions, batch: int, sequence: int, notes: tuple[str, ...]
) -> TraceCase:
    """Encoder and decoder on sequences of the same length; training shifts the labels in."""
    kwargs: dict[str, Any] = {"input_ids": tokens(batch, sequence), "use_cache": False}
    kwargs["labels" if options.mode == "training" else "decoder_input_ids"] = tokens(
        batch, sequence
    )
    return TraceCase(
        module=model,
        kwargs=kwargs,
        inputs=_hints(kwargs),
        batch=batch,
        sequence=sequence,
        notes=(*notes, f"encoder and decoder each process {sequence} tokens"),
    )


def _vision(model: Any, options: ImportOptions, batch: int) -> TraceCase:
    """Images of the size the config names."""
    image = pixels(model, batch)
    if options.sequence is not None:
        raise DimensionError(
            f"{type(model).__name__} has no sequence dim: its {image.shape[-1]} px images fix the number of "
            f"patches; leave sequence out"
        )
    if options.mode in ("prefill", "decode"):
        raise OpboundError(
            f"{type(model).__name__} generates no tokens: use inference or training mode"
        )
    kwargs = {"pixel_values": image}
    if options.mode == "training":
        kwargs["labels"] = _labels(model, batch, 0)
    hints = {
        "pixel_values": InputHint(("batch", "channels", "height", "width")),
        "labels": InputHint(("batch",)),
    }
    return TraceCase(module=model, kwargs=kwargs, inputs=hints, batch=batch, sequence=None)


def has_images(model: Any) -> bool:
    """Whether a model that takes text also takes something beside it, and its config describes that."""
    names = parameters_of(model)
    config = model.config
    if "input_features" in names and hasattr(config, "audio_config"):
        return True
    return "pixel_values" in names and field_of(config, "image_size", "patch_size") is not None


def _sound(model: Any, options: ImportOptions, batch: int, main: str) -> TraceCase:
    """Samples or spectrogram frames, and in an encoder-decoder the tokens of the text too.

    `sequence` is the text's tokens where there is text, else the samples or frames.
    """
    names = parameters_of(model)
    text = "decoder_input_ids" in names
    if options.mode in ("prefill", "decode") and not text:
        raise OpboundError(
            f"{type(model).__name__} makes no text of sound: use inference or training mode"
        )
    kwargs = {main: sound(model, main, batch, None if text else options.sequence)}
    hints = {main: InputHint(("batch", *[None] * (kwargs[main].ndim - 1)))}
    sequence = None
    if text or "decoder_input_values" in names:
        longest = field_of(model.config, "max_target_positions", "max_position_embeddings")
        sequence = options.sequence or min(DEFAULT_SEQUENCE, int(longest or DEFAULT_SEQUENCE))
    if options.mode in ("prefill", "decode"):
        from importers.hf_generation import generation_case

        return generation_case(model, options, batch, sequence or 1, (), media=kwargs)
    if text:
        label = "labels" if options.mode == "training" else "decoder_input_ids"
        kwargs[label] = tokens(batch, sequence or 1)
        hints[label] = InputHint(("batch", "sequence"))
    elif "decoder_input_values" in names:
        kwargs["decoder_input_values"] = sound(model, "input_features", batch, sequence)
        kwargs["decoder_input_values"] = kwargs["decoder_input_values"].transpose(1, 2).contiguous()
    elif options.mode == "training":
        kwargs["labels"] = _labels(model, batch, 16)
    if "use_cache" in names:
        kwargs["use_cache"] = False
    return TraceCase(module=model, kwargs=kwargs, inputs=hints, batch=batch, sequence=sequence)


def _vectors(model: Any, options: ImportOptions, batch: int) -> TraceCase:
    """A sequence of vectors, and in an encoder-decoder the tokens of the text."""
    names = parameters_of(model)
    if options.mode in ("prefill", "decode"):
        raise OpboundError(
            f"{type(model).__name__} starts from vectors: its generation is not imported; use inference mode"
        )
    kwargs: dict[str, Any] = {}
    longest = field_of(model.config, "max_ep_len", "max_position_embeddings")
    sequence = options.sequence or min(DEFAULT_SEQUENCE, int(longest or DEFAULT_SEQUENCE))
    if "flattened_patches" in names:
        vision = getattr(model.config, "vision_config", model.config)
        # Row and column of each patch stand before its pixels.
        width = 2 + int(vision.patch_embed_hidden_size)
        kwargs["flattened_patches"] = floats(model, batch, int(vision.seq_len), width)
    if "decoder_input_ids" in names:
        label = "labels" if options.mode == "training" else "decoder_input_ids"
        kwargs[label] = tokens(batch, sequence)
        kwargs["use_cache"] = False
    hints = {
        k: InputHint(("batch", *[None] * (v.ndim - 1))) for k, v in kwargs.items() if v is not False
    }
    return TraceCase(module=model, kwargs=kwargs, inputs=hints, batch=batch, sequence=sequence)


def _text_and_more(model: Any, options: ImportOptions, batch: int) -> TraceCase:
    """Text with one image (or recording) per sample; the image's tokens are part of the sequence."""
    import torch

    names = parameters_of(model)
    more: dict[str, Any] = {}
    if "pixel_values" in names and field_of(model.config, "image_size", "patch_size") is not None:
        more = images(model, batch)
    elif "input_features" in names:
        more = {"input_features": sound(model, "input_features", batch, None)}
    if "qformer_input_ids" in names:
        more["qformer_input_ids"] = torch.zeros(batch, 8, dtype=torch.long)
    text = model.config.get_text_config()
    text.use_cache = options.mode in ("prefill", "decode")
    longest = field_of(text, "max_position_embeddings")
    wanted = options.sequence or min(DEFAULT_SEQUENCE, int(longest or DEFAULT_SEQUENCE))
    more |= companions(model, more, batch, wanted)
    ids = media_tokens(model, batch, wanted, more)
    more |= {k: v for k, v in companions(model, {}, batch, ids.shape[1]).items() if k in more}
    notes: tuple[str, ...] = ()
    if ids.shape[1] != wanted:
        notes = (
            f"the sequence is {ids.shape[1]} tokens, since the image alone fills {ids.shape[1] - 2}",
        )
    kwargs = {"input_ids": ids, **more}
    if "use_cache" in names:
        kwargs["use_cache"] = False
    if "bbox" in names:
        kwargs["bbox"] = tokens(batch, ids.shape[1] * 4).reshape(batch, -1, 4)
    if "mm_token_type_ids" in names:
        kwargs["mm_token_type_ids"] = (ids == int(model.config.image_token_id)).long()
    if options.mode in ("prefill", "decode"):
        from importers.hf_generation import generation_case

        media = {k: v for k, v in kwargs.items() if k not in ("input_ids", "use_cache")}
        return generation_case(model, options, batch, ids.shape[1], notes, ids=ids, media=media)
    if options.mode == "training":
        kwargs["labels"] = _labels(model, batch, ids.shape[1])
    elif "decoder_input_ids" in names:
        kwargs["decoder_input_ids"] = tokens(batch, wanted)
    hints = {
        k: InputHint(("batch", "sequence") if k in ("input_ids", "labels") else (None,) * v.ndim)
        for k, v in kwargs.items()
        if hasattr(v, "ndim")
    }
    return TraceCase(
        module=model,
        kwargs=kwargs,
        inputs=hints,
        batch=batch,
        sequence=ids.shape[1],
        notes=notes,
    )


def _sequence(model: Any, options: ImportOptions) -> tuple[int, tuple[str, ...]]:
    """Tokens per sample, checked against the positions that the model has learned."""
    config = model.config
    longest = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    decoding = options.mode == "decode" and options.past_tokens is not None
    wanted = options.sequence
    if wanted is None:
        wanted = min(DEFAULT_SEQUENCE, longest or DEFAULT_SEQUENCE)
    total = max(wanted, (options.past_tokens or 0) + 1) if decoding else wanted
    if longest is None or total <= longest:
        return wanted, ()
    if _learned_positions(model, longest):
        raise DimensionError(
            f"{type(model).__name__} has {longest} learned positions, which {total} tokens exceed: "
            f"use at most {longest}"
        )
    return wanted, (
        f"{total} tokens exceed the {longest} that the config names as the longest sequence",
    )


def _learned_positions(model: Any, longest: int) -> bool:
    """Whether an embedding has one row per position (`wpe`, `position_embeddings`): more cannot run."""
    import torch

    return any(
        isinstance(module, torch.nn.Embedding)
        and module.num_embeddings <= longest
        and ("position" in name or name.endswith("wpe"))
        for name, module in model.named_modules()
    )


def _is_causal(model: Any) -> bool:
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def _labels(model: Any, batch: int, sequence: int) -> Any:
    """Labels of the model's own loss, so that logits and loss are part of the graph."""
    import torch

    name = type(model).__name__
    if name.endswith(("ForImageClassification", "ForSequenceClassification")):
        return torch.zeros(batch, dtype=torch.long, device="meta")
    if name.endswith(("LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForTokenClassification")):
        return tokens(batch, sequence)
    if name.endswith("ForConditionalGeneration"):
        return tokens(batch, sequence)
    raise OpboundError(
        f"{name} has no loss that opbound knows to ask for: "
        f"name an architecture with a head in 'architectures'"
    )


def _hints(kwargs: Mapping[str, Any]) -> dict[str, InputHint]:
    dims = {2: ("batch", "sequence"), 4: (None, None, "sequence", "sequence")}
    return {
        name: InputHint(dims[value.ndim])
        for name, value in kwargs.items()
        if hasattr(value, "ndim")
    }
