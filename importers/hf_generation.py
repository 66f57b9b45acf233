"""Prefill and decode steps of transformers models, their KV cache as flat tensors.

A decode step is the model's own code on one new token; the cache is preallocated with room for it, and
the step writes its keys and values in place, as inference servers do. transformers' own growing cache
would copy the whole cache in every layer of every step.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from graph_ir.errors import OpboundError
from importers.hf_cache import Slot, find_slots, flat, layer_classes, make_cache
from importers.hf_inputs import TraceCase, causal_mask, tokens
from importers.imported_model import ImportOptions
from importers.torch_call import InputHint

_CACHE_DIMS = ("batch", None, "cache", None)


def generation_case(
    model: Any, options: ImportOptions, batch: int, sequence: int, notes: tuple[str, ...]
) -> TraceCase:
    """The prefill of `sequence` tokens, or one decode step after `options.past_tokens` tokens.

    The outputs are the last position's logits, then keys and values of every layer. In an
    encoder-decoder model the prompt goes to the encoder: its prefill is the encoder and the decoder's
    first token, and of `past_tokens` those beyond `sequence` are the decoder's.

    Raises:
        OpboundError: the model generates no tokens, or keeps no plain key-value cache.
    """
    if not model.can_generate():
        raise OpboundError(
            f"{type(model).__name__} generates no tokens: use inference or training mode"
        )
    encoder = model.config.is_encoder_decoder
    decoding = options.mode == "decode"
    past = options.past_tokens if options.past_tokens is not None else sequence
    prompt = past if decoding and (options.sequence is None or not encoder) else sequence
    own_past = (past - min(prompt, past) if encoder else past) if decoding else 0
    new = 1 if decoding or encoder else prompt
    wrapper, cross_wrapper = _step_classes()
    kinds: dict[str, InputHint] = {}
    mask = causal_mask(model, new, own_past + new).get("attention_mask")
    if not encoder:
        slots = find_slots(wrapper(model), (tokens(1, 1), None)) if decoding else []
        step = wrapper(model, slots, own_past)
        args = (tokens(batch, new), mask, *(s.tensor(batch, own_past, new) for s in slots))
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
        kwargs={},
        inputs={
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


def _layer_count(model: Any) -> int:
    config = model.config
    return int(getattr(config, "num_decoder_layers", None) or config.num_hidden_layers)


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
    if any(c is None or c.ndim != 4 or c.shape[2] != 1 for c in caches):
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

    buffer_layer, _ = layer_classes()

    def layers_of(kv: tuple[Any, ...], count: int, past: int | None = None) -> Any:
        if not kv:
            return Cache(layers=[buffer_layer() for _ in range(count)])
        held = past if past is not None else kv[0].shape[-2] - 1
        return Cache(layers=[buffer_layer(kv[2 * i], kv[2 * i + 1], held) for i in range(count)])

    class Step(torch.nn.Module):
        """(token numbers, mask, cache...) -> (last logits, cache...)."""

        def __init__(self, model: Any, slots: Sequence[Slot] = (), past: int = 0) -> None:
            super().__init__()
            self.model = model
            self.slots, self.past = tuple(slots), past
            names = inspect.signature(model.forward).parameters
            self.given: dict[str, Any] = {"use_cache": True}
            if "logits_to_keep" in names:
                self.given["logits_to_keep"] = 1
            self.cache_name = "cache_params" if "cache_params" in names else "past_key_values"

        def run(self, input_ids: Any, attention_mask: Any, *kv: Any) -> tuple[Any, Any]:
            """The model's own result, and the cache as it leaves it."""
            model = self.model
            cache = make_cache(model.config, _layer_count(model), self.slots, kv, self.past)
            given = {self.cache_name: cache, **self.given}
            if attention_mask is not None:
                given["attention_mask"] = attention_mask
            return model(input_ids=input_ids, **given), cache

        def forward(self, input_ids: Any, attention_mask: Any, *kv: Any) -> tuple[Any, ...]:
            out, cache = self.run(input_ids, attention_mask, *kv)
            return (out.logits, *flat(cache, copied=not kv))

    class CrossStep(torch.nn.Module):
        """(prompt or None, token numbers, own cache..., cross cache...) -> (logits, caches...)."""

        def __init__(self, model: Any, prompt: int) -> None:
            super().__init__()
            self.model = model
            self.prompt = prompt

        def forward(self, input_ids: Any, decoder_input_ids: Any, *kv: Any) -> tuple[Any, ...]:
            count = _layer_count(self.model)
            own = layers_of(kv[: 2 * count], count)
            cross = layers_of(kv[2 * count :], count, self.prompt)
            cache = EncoderDecoderCache(own, cross)
            given: dict[str, Any] = {"input_ids": input_ids}
            if input_ids is None:
                for i in range(count):
                    cache.is_updated[i] = True
                width = self.model.config.hidden_size
                shape = (decoder_input_ids.shape[0], self.prompt, width)
                # Only its shape is looked at: keys and values of the prompt are in the cross cache.
                encoded = torch.empty(shape, dtype=self.model.dtype, device="meta")
                given = {"encoder_outputs": (encoded,)}
            out = self.model(
                decoder_input_ids=decoder_input_ids, past_key_values=cache, use_cache=True, **given
            )
            # The step leaves the prompt's cache as it is, so only the prefill returns it.
            return (out.logits, *flat(own), *(flat(cross) if input_ids is not None else ()))

    return Step, CrossStep
