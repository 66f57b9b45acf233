"""Prefill and decode steps of transformers models, their KV cache as flat tensors.

A decode step is the model's own code on one new token; the cache is preallocated with room for it, and
the step writes its keys and values in place, as inference servers do. transformers' own growing cache
would copy the whole cache in every layer of every step.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from graph_ir.errors import OpboundError
from importers.hf_cache import Slot, find_slots, flat, kept, layer_classes, make_cache
from importers.hf_inputs import TraceCase, causal_mask, tokens
from importers.hf_states import keeps_states, state_step
from importers.imported_model import ImportOptions
from importers.torch_call import InputHint

_CACHE_DIMS = ("batch", None, "cache", None)


def generation_case(
    model: Any,
    options: ImportOptions,
    batch: int,
    sequence: int,
    notes: tuple[str, ...],
    *,
    ids: Any = None,
    media: Mapping[str, Any] | None = None,
) -> TraceCase:
    """The prefill of `sequence` tokens, or one decode step after `options.past_tokens` tokens.

    The outputs are the last position's logits, then keys and values of every layer. In an
    encoder-decoder model the prompt goes to the encoder: its prefill is the encoder and the decoder's
    first token, and of `past_tokens` those beyond `sequence` are the decoder's. Images and recordings are
    part of the prefill; the decode step finds what came of them in the cache.

    Args:
        model: the transformers model.
        options: mode and sizes.
        batch: samples.
        sequence: tokens of the prompt.
        notes: what a reader should know.
        ids: the prompt's token numbers, where they matter; else any.
        media: inputs beside the text.

    Raises:
        OpboundError: the model generates no tokens, or keeps no plain key-value cache.
    """
    if not model.can_generate():
        raise OpboundError(
            f"{type(model).__name__} generates no tokens: use inference or training mode"
        )
    if media and model.config.is_encoder_decoder:
        return _from_media(model, options, batch, sequence, notes, media)
    encoder = model.config.is_encoder_decoder
    decoding = options.mode == "decode"
    if decoding and getattr(model.config.get_text_config(), "cross_attention_layers", None):
        notes = (*notes, "layers that attend to an image are left out of the decode step")
    past = options.past_tokens if options.past_tokens is not None else sequence
    prompt = past if decoding and (options.sequence is None or not encoder) else sequence
    own_past = (past - min(prompt, past) if encoder else past) if decoding else 0
    new = 1 if decoding or encoder else prompt
    wrapper, cross_wrapper = _step_classes()
    kinds: dict[str, InputHint] = {}
    mask = causal_mask(model, new, own_past + new).get("attention_mask")
    if keeps_states(model):
        step, states = state_step(model, batch, decoding=decoding)
        args = (tokens(batch, new), *states)
        kinds = {
            f"kv_{i}": InputHint(("batch", *[None] * (t.ndim - 1)), "kv_cache")
            for i, t in enumerate(states)
        }
    elif not encoder:
        slots = find_slots(wrapper(model), (tokens(1, 1), None)) if decoding else []
        step = wrapper(model, slots, own_past)
        given = tokens(batch, new) if ids is None or decoding else ids
        args = (given, mask, *(s.tensor(batch, own_past, new) for s in slots))
        kinds = {
            f"kv_{i}": InputHint(
                _CACHE_DIMS if s.grows else ("batch", *[None] * (len(s.shape) - 1)), "kv_cache"
            )
            for i, s in enumerate(slots)
        }
    elif decoding:
        step = cross_wrapper(model, prompt)
        caches = cache_shapes(step, (tokens(1, 1), tokens(1, 1)))
        own, cross = caches[: len(caches) // 2], caches[len(caches) // 2 :]
        kv = [*_caches(model, own, batch, own_past + new), *_caches(model, cross, batch, prompt)]
        args = (None, tokens(batch, new), *kv)
    else:
        step, args = cross_wrapper(model, prompt), (tokens(batch, prompt), tokens(batch, new))
    if decoding:
        notes = (*notes, f"one decode step, {past} tokens in the KV cache")
    return TraceCase(
        module=step,
        args=args,
        kwargs={} if decoding else dict(media or {}),
        inputs={
            **{k: InputHint(("batch", *[None] * (v.ndim - 1))) for k, v in (media or {}).items()},
            "input_ids": InputHint(("batch", "sequence")),
            "decoder_input_ids": InputHint(("batch", None)),
            "attention_mask": InputHint((None, None, "sequence", "cache")),
            "kv": InputHint(_CACHE_DIMS, role="kv_cache"),
            **kinds,
        },
        prefix="model",
        batch=batch,
        sequence=new if decoding else sequence,
        notes=notes,
        first_cache_output=1,
    )


def _from_media(
    model: Any,
    options: ImportOptions,
    batch: int,
    sequence: int,
    notes: tuple[str, ...],
    media: Mapping[str, Any],
) -> TraceCase:
    """Generation from a recording or an image: it goes to the encoder, all tokens are the decoder's."""
    (name, tensor), *more = media.items()
    if more:
        raise OpboundError(
            f"{type(model).__name__} encodes {name} with {more[0][0]}: decode steps of such models cannot be "
            f"imported yet: use inference mode"
        )
    decoding = options.mode == "decode"
    past = options.past_tokens if options.past_tokens is not None else sequence
    _, cross_wrapper = _step_classes()
    step = cross_wrapper(model, _encoded_length(model, name, tensor), name)
    args: tuple[Any, ...] = (tensor, tokens(batch, sequence))
    if decoding:
        caches = cache_shapes(step, (tensor[:1], tokens(1, 1)))
        own, cross = caches[: len(caches) // 2], caches[len(caches) // 2 :]
        kv = [*_caches(model, own, batch, past + 1), *_caches(model, cross, batch, step.prompt)]
        args = (None, tokens(batch, 1), *kv)
        notes = (*notes, f"one decode step, {past} tokens in the KV cache")
    return TraceCase(
        module=step,
        args=args,
        kwargs={},
        inputs={
            "input_ids": InputHint(("batch", *[None] * (tensor.ndim - 1))),
            "decoder_input_ids": InputHint(("batch", "sequence")),
            "kv": InputHint(_CACHE_DIMS, role="kv_cache"),
        },
        prefix="model",
        batch=batch,
        sequence=1 if decoding else sequence,
        notes=notes,
        first_cache_output=1,
    )


def _encoded_length(model: Any, name: str, tensor: Any) -> int:
    """Positions that the encoder makes of its input, from running it on the meta device."""
    import torch

    try:
        with torch.no_grad():
            found = model.get_encoder()(**{name: tensor[:1]})
    except Exception as error:  # the model's own code runs here and may raise anything
        raise OpboundError(
            f"the encoder of {type(model).__name__} does not run on {name} alone "
            f"({type(error).__name__}): use inference mode"
        ) from error
    return int(found[0].shape[1])


def _layer_count(model: Any) -> int:
    """Layers of the decoder."""
    config = model.config
    if not config.is_encoder_decoder:
        return int(config.get_text_config(decoder=True).num_hidden_layers)
    names = "num_decoder_layers decoder_layers decoder_num_hidden_layers num_hidden_layers".split()
    return int(next(n for name in names if (n := getattr(config, name, None))))


def cache_shapes(step: Any, args: tuple[Any, ...]) -> list[tuple[int, ...]]:
    """Shapes of the caches that one token leaves behind, from running the model on the meta device.

    They are [1, heads, 1, width], as the model has them: keys and values may differ, and so may layers.

    Raises:
        OpboundError: the model keeps no plain key-value cache.
    """
    import torch

    name = type(step.model).__name__
    try:
        with torch.no_grad():
            _, *caches = step(*args)
    except Exception as error:  # the model's own code runs here and may raise anything
        raise OpboundError(
            f"{name} does not run on a key-value cache of opbound's kind ({type(error).__name__}); "
            f"decode steps of such models cannot be imported yet: use inference mode"
        ) from error
    own = caches[: len(caches) // 2]
    if any(c is None or c.ndim != 4 for c in caches) or any(c.shape[2] != 1 for c in own):
        raise OpboundError(f"{name} keeps no plain key-value cache: use inference mode")
    return [tuple(c.shape) for c in caches]


def _caches(model: Any, shapes: list[tuple[int, ...]], batch: int, length: int) -> list[Any]:
    """Cache tensors [batch, heads, length, width]."""
    import torch

    return [
        torch.zeros(batch, heads, length, width, dtype=model.dtype, device="meta")
        for _, heads, _, width in shapes
    ]


@lru_cache(maxsize=1)
def _step_classes() -> tuple[Any, Any]:
    """The modules that put a model's KV cache into its arguments and results.

    Defined on first use: their bases live in torch and transformers.
    """
    import torch
    from transformers.cache_utils import Cache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    buffer_layer, _ = layer_classes()

    def layers_of(kv: tuple[Any, ...], count: int, past: int | None = None) -> Any:
        if not kv:
            return Cache(layers=[buffer_layer() for _ in range(count)])
        held = past if past is not None else kv[0].shape[-2] - 1
        return Cache(layers=[buffer_layer(kv[2 * i], kv[2 * i + 1], held) for i in range(count)])

    class Step(torch.nn.Module):
        """(token numbers, mask, cache..., images and recordings) -> (last logits, cache...)."""

        def __init__(self, model: Any, slots: Sequence[Slot] = (), past: int = 0) -> None:
            super().__init__()
            self.model = model
            self.slots, self.past = tuple(slots), past
            names = inspect.signature(model.forward).parameters
            self.given: dict[str, Any] = {"use_cache": True}
            if "logits_to_keep" in names:
                self.given["logits_to_keep"] = 1
            self.cache_name = "cache_params" if "cache_params" in names else "past_key_values"

        def run(
            self, input_ids: Any, attention_mask: Any, *kv: Any, **media: Any
        ) -> tuple[Any, Any]:
            """The model's own result, and the cache as it leaves it."""
            model = self.model
            config = model.config.get_text_config(decoder=True)
            cache = make_cache(config, _layer_count(model), self.slots, kv, self.past)
            given = {self.cache_name: cache, **self.given, **media}
            if attention_mask is not None:
                given["attention_mask"] = self.masks(config, attention_mask, input_ids.shape[1])
            return model(input_ids=input_ids, **given), cache

        def masks(self, config: Any, mask: Any, new: int) -> Any:
            """The mask of each kind of layer: one with a window keeps, and masks, the last tokens alone."""
            windows = [s.window for s in self.slots if s.grows and s.window is not None]
            length = min((kept(self.past, w) + new for w in windows), default=mask.shape[-1])
            if length == mask.shape[-1]:
                return mask
            last = mask[..., -length:]
            kinds = set(getattr(config, "layer_types", None) or ())
            return {k: mask if k == "full_attention" else last for k in kinds} if kinds else last

        def forward(
            self, input_ids: Any, attention_mask: Any, *kv: Any, **media: Any
        ) -> tuple[Any, ...]:
            out, cache = self.run(input_ids, attention_mask, *kv, **media)
            return (out.logits, *flat(cache, copied=not kv))

    class CrossStep(torch.nn.Module):
        """(prompt or None, token numbers, own cache..., cross cache...) -> (logits, caches...).

        The prompt is token numbers, or what else the encoder takes as `prompt_name`.
        """

        def __init__(self, model: Any, prompt: int, prompt_name: str = "input_ids") -> None:
            super().__init__()
            self.model = model
            self.prompt, self.prompt_name = prompt, prompt_name

        def forward(self, input_ids: Any, decoder_input_ids: Any, *kv: Any) -> tuple[Any, ...]:
            count = _layer_count(self.model)
            own = layers_of(kv[: 2 * count], count)
            cross = layers_of(kv[2 * count :], count, self.prompt)
            cache = EncoderDecoderCache(own, cross)
            given: dict[str, Any] = {self.prompt_name: input_ids}
            if input_ids is None:
                for i in range(count):
                    cache.is_updated[i] = True
                width = self.model.config.hidden_size
                shape = (decoder_input_ids.shape[0], self.prompt, width)
                # Only its shape is looked at: keys and values of the prompt are in the cross cache.
                encoded = torch.empty(shape, dtype=self.model.dtype, device="meta")
                made = BaseModelOutput(last_hidden_state=encoded)
                made.attention_mask = None
                given = {"encoder_outputs": made}
            out = self.model(
                decoder_input_ids=decoder_input_ids, past_key_values=cache, use_cache=True, **given
            )
            # The step leaves the prompt's cache as it is, so only the prefill returns it.
            return (out.logits, *flat(own), *(flat(cross) if input_ids is not None else ()))

    return Step, CrossStep
