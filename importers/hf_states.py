"""Generation of recurrent models whose state is no key-value cache: tensors that no token makes longer."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

from graph_ir.errors import OpboundError
from importers.hf_modalities import parameters_of


def keeps_states(model: Any) -> bool:
    """Whether the model hands on `state` (RWKV's kind) or a cache that has nothing but `rnn_state`."""
    names = parameters_of(model)
    if "past_key_values" in names:
        return False
    return "state" in names or hasattr(model.config, "return_last_states")


def state_step(model: Any, batch: int, *, decoding: bool) -> tuple[Any, list[Any]]:
    """A module (token numbers, states...) -> (logits, states...), and what it is to be called with.

    The states come from running the model on one token on the meta device; a prefill takes none.

    Raises:
        OpboundError: the model does not run so.
    """
    import torch

    ids = torch.zeros(batch, 1, dtype=torch.long, device="meta")
    try:
        with torch.no_grad():
            made = model(input_ids=ids, use_cache=True)
    except Exception as error:  # the model's own code runs here and may raise anything
        raise OpboundError(
            f"{type(model).__name__} does not run with a state of its own ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]}): use inference mode"
        ) from error
    step = _step_class()(model, getattr(made, "cache_params", None))
    return step, [torch.empty_like(t) for t in _states(made)] if decoding else []


def _states(made: Any) -> list[Any]:
    state = getattr(made, "state", None)
    if state is not None:
        return list(state)
    return [tensor for layer in made.cache_params.rnn_state.values() for tensor in layer]


@lru_cache(maxsize=1)
def _step_class() -> Any:
    """Defined on first use: its base lives in torch."""
    import torch

    class StateStep(torch.nn.Module):
        """The model with its states as arguments and results."""

        def __init__(self, model: Any, cache: Any) -> None:
            super().__init__()
            self.model = model
            self.cache = cache

        def forward(self, input_ids: Any, *kv: Any) -> tuple[Any, ...]:
            given: dict[str, Any] = {}
            if kv and self.cache is None:
                given["state"] = list(kv)
            elif kv:
                cache = copy.copy(self.cache)
                rest = iter(kv)
                cache.rnn_state = {
                    layer: tuple(next(rest) for _ in tensors)
                    for layer, tensors in self.cache.rnn_state.items()
                }
                given["cache_params"] = cache
            made = self.model(input_ids=input_ids, use_cache=True, **given)
            return (made.logits, *_states(made))

    return StateStep
