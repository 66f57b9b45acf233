"""A decoder's cache as flat tensors, in the form that each of its layers keeps.

Full attention keeps keys and values of every token, a window those of the window, a latent cache (MLA)
what the model itself hands it, and a state-space or convolution layer a state whose size no token changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from graph_ir.errors import OpboundError


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of the cache."""

    layer: int
    part: str
    """`keys`, `values`, `conv_states` or `recurrent_states`."""
    index: int
    """Which of a layer's states."""
    shape: tuple[int, ...]
    """Its shape for one sample and one token."""
    dtype: Any
    window: int | None
    """Tokens that the layer looks at, None if all."""

    @property
    def grows(self) -> bool:
        """Whether it has a dim for tokens."""
        return self.part in ("keys", "values")

    def tensor(self, batch: int, past: int, new: int) -> Any:
        """The buffer that a step of `new` tokens reads and writes, [batch, ...] on the meta device."""
        import torch

        shape = [batch, *self.shape[1:]]
        if self.grows:
            shape[2] = kept(past, self.window) + new
        return torch.zeros(shape, dtype=self.dtype, device="meta")


def kept(past: int, window: int | None) -> int:
    """Tokens whose keys and values stay: a window's newest token is the one being computed."""
    return past if window is None else min(past, window - 1)


def find_slots(step: Any, arguments: tuple[Any, ...]) -> list[Slot]:
    """What one token leaves in the cache, from running the model on the meta device.

    Raises:
        OpboundError: the model keeps a cache of another kind.
    """
    import torch

    name = type(step.model).__name__
    try:
        with torch.no_grad(), _plain_experts(step.model):
            _, cache = step.run(*arguments)
    except Exception as error:  # the model's own code runs here and may raise anything
        raise OpboundError(
            f"{name} does not run on a key-value cache of opbound's kind ({type(error).__name__}); "
            f"decode steps of such models cannot be imported yet: use inference mode"
        ) from error
    slots = [
        Slot(layer, part, index, tuple(tensor.shape), tensor.dtype, window)
        for layer, part, index, window, tensor in _parts(cache)
    ]
    odd = [s for s in slots if s.grows and (len(s.shape) != 4 or s.shape[2] != 1)]
    if odd or not slots:
        raise OpboundError(f"{name} keeps no plain key-value cache: use inference mode")
    return slots


@contextmanager
def _plain_experts(model: Any) -> Iterator[None]:
    """While active, experts run as batched products: the grouped kernel refuses fp32 outside of a trace."""
    before = getattr(model.config, "_experts_implementation", None)
    if before is None:
        yield
        return
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _parts(cache: Any) -> list[tuple[int, str, int, int | None, Any]]:
    found: list[tuple[int, str, int, int | None, Any]] = []
    for number, layer in enumerate(cache.layers):
        window = getattr(layer, "sliding_window", None)
        for part in ("keys", "values"):
            tensor = getattr(layer, part, None)
            if tensor is not None and tensor.numel():
                found.append((number, part, 0, window, tensor))
        for part in ("conv_states", "recurrent_states"):
            for index, tensor in (getattr(layer, part, None) or {}).items():
                if tensor is not None:
                    found.append((number, part, index, None, tensor))
    return found


def flat(cache: Any, *, copied: bool = False) -> list[Any]:
    """All tensors of a cache; `copied` copies the states, which a prefill has yet to store."""
    return [
        tensor.clone() if copied and part.endswith("states") else tensor
        for _, part, _, _, tensor in _parts(cache)
    ]


def make_cache(config: Any, count: int, slots: Sequence[Slot], tensors: Any, past: int) -> Any:
    """A cache with one layer of the kind that the config asks for per layer, filled with `tensors`.

    Args:
        config: the model's config.
        count: number of layers, if the config does not say their kinds.
        slots: what the tensors are; empty for a cache that the step is to fill.
        tensors: one per slot.
        past: tokens already in the cache.
    """
    from transformers.cache_utils import Cache, DynamicCache

    buffer_class, both_class = layer_classes()
    layers: list[Any] = []
    for number, layer in enumerate(DynamicCache(config=config).layers or [None] * count):
        own = {
            (s.part, s.index): t for s, t in zip(slots, tensors, strict=True) if s.layer == number
        }
        keys, values = own.get(("keys", 0)), own.get(("values", 0))
        if not hasattr(layer, "conv_states"):
            window = getattr(layer, "sliding_window", None)
            layers.append(buffer_class(keys, values, past, window))
            continue
        if hasattr(layer, "update"):
            layer = both_class(keys, values, past, layer.number_of_states)
        for (part, index), tensor in own.items():
            if part.endswith("states"):
                getattr(layer, part)[index] = tensor
                getattr(layer, f"is_{part}_initialized")[index] = True
                layer.has_previous_state[index] = True
                layer.dtype, layer.device = tensor.dtype, tensor.device
                if part == "conv_states":
                    layer.conv_kernel_size[index] = tensor.shape[-1]
        layers.append(layer)
    return Cache(layers=layers)


@lru_cache(maxsize=1)
def layer_classes() -> tuple[Any, Any]:
    """A layer with keys and values in a buffer, and one that has states too.

    Defined on first use: their bases live in transformers.
    """
    from transformers.cache_utils import DynamicLayer, LinearAttentionAndFullAttentionLayer

    class BufferLayer(DynamicLayer):
        """One layer's keys and values: what the prefill makes, or a buffer that a step writes into."""

        def __init__(
            self, keys: Any = None, values: Any = None, past: int = 0, window: int | None = None
        ) -> None:
            super().__init__()
            self.hold(keys, values, past, window)

        def hold(self, keys: Any, values: Any, past: int, window: int | None) -> None:
            self.past = 0
            self.is_sliding = window is not None
            if window is not None:
                self.sliding_window = window
            if keys is not None:
                self.keys, self.values = keys, values
                self.dtype, self.device = keys.dtype, keys.device
                self.past = past
                self.is_initialized = True

        def update(self, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            window = getattr(self, "sliding_window", None)
            if not self.is_initialized:
                self.dtype, self.device = keys.dtype, keys.device
                self.is_initialized = True
                # As transformers' own cache does: the cache outlives what it was computed from.
                first = 0 if window is None else max(keys.shape[-2] - window + 1, 0)
                self.keys, self.values = keys[:, :, first:].clone(), values[:, :, first:].clone()
                return (self.keys, self.values) if not first else (keys, values)
            start = kept(self.past, window)
            self.keys[:, :, start:] = keys
            self.values[:, :, start:] = values
            return self.keys, self.values

        def get_seq_length(self) -> int:
            return self.past

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            length = kept(self.past, getattr(self, "sliding_window", None)) + query_length
            return length, self.past + query_length - length

    class BufferAndStateLayer(BufferLayer, LinearAttentionAndFullAttentionLayer):
        """Keys and values in a buffer, beside states of fixed size."""

        def __init__(self, keys: Any, values: Any, past: int, number_of_states: int) -> None:
            LinearAttentionAndFullAttentionLayer.__init__(self, number_of_states=number_of_states)
            self.hold(keys, values, past, None)

    return BufferLayer, BufferAndStateLayer
