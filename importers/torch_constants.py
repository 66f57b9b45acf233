"""Constants of a traced program: what depends on no input is computed once, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from importers.torch_call import Constant

FOLDED_ELEMENTS = 1 << 20
"""Largest constant whose content is computed at once."""

COMPUTABLE_ELEMENTS = 1 << 26
"""Largest constant whose content is computed if something asks for it (a mask over 8,192 tokens)."""


@lru_cache(maxsize=4096)
def is_random(target: Any) -> bool:
    """Whether an operator draws random numbers, so that its result is no constant."""
    import torch

    return torch.Tag.nondeterministic_seeded in target.tags


def evaluate_on_cpu(node: Any, resolve: Any) -> Any:
    """Runs a call on the contents of its constant arguments; None if one of them is not known."""

    def content(argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [content(a) for a in argument]
        value = resolve(argument)
        if isinstance(value, Constant):
            found = value.content
            if found is None and value.recipe is not None:
                found = value.recipe()
            if found is None:
                raise LookupError
            return found
        return value

    try:
        args = [content(a) for a in node.args]
        kwargs = {
            k: content(v) for k, v in node.kwargs.items() if k not in ("device", "pin_memory")
        }
        if "device" in node.kwargs or str(node.target).startswith(("aten.zeros", "aten.ones")):
            kwargs["device"] = "cpu"
        made = node.target(*args, **kwargs)
    except (LookupError, RuntimeError, NotImplementedError, TypeError):
        return None
    # What was traced on the meta device may name it anywhere.
    on_meta = any(
        getattr(t, "is_meta", False) for t in (made if isinstance(made, tuple) else (made,))
    )
    return None if on_meta else made


@dataclass(frozen=True, slots=True)
class Computable:
    """A constant that numpy takes for an array; it is computed when it is read."""

    recipe: Callable[[], Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """The content.

        Raises:
            ValueError: it cannot be computed.
        """
        content = self.recipe()
        if content is None:
            raise ValueError("a constant cannot be computed")
        found = as_numpy(content)
        return found if dtype is None else found.astype(dtype)


def as_numpy(tensor: Any) -> Any:
    """A copy of a constant's content; numpy has no bfloat16, which becomes float32."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return tensor
    found = tensor.detach()
    if found.dtype == torch.bfloat16:
        found = found.float()
    # A copy: a later in-place write must not reach what the graph has taken.
    return found.numpy().copy()
