"""How the run-time trace sees calls: whole functions first, then the operators that are left.

A dispatch mode sees operators only after torch has taken apart `linear`, attention and norms; a function
mode sees those whole. Both run what they see on meta tensors, whole numbers on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from importers.torch_runtime_trace import _REAL_ELEMENTS

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_WHOLE = (
    "linear",
    "scaled_dot_product_attention",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "matmul",
    "__matmul__",
    "conv1d",
    "conv2d",
    "conv3d",
    "dropout",
    *_RECURRENT,
)
"""Functions that are recorded as one operator; their arguments stand in the operator's own order."""


def modes(recorder: Any) -> tuple[Any, Any]:
    """The dispatch mode and the function mode of one trace."""
    dispatch_class, function_class = _classes()
    return dispatch_class(recorder), function_class(recorder)


@dataclass(slots=True)
class _Silent:
    """Takes the recorder's place where nothing is to be recorded."""

    paused: int = 1


def mixed_devices() -> Any:
    """A mode in which meta tensors and tensors of whole numbers on the CPU may meet."""
    return _classes()[0](_Silent())


@lru_cache(maxsize=1)
def _classes() -> tuple[Any, Any]:
    """Defined on first use: their bases live in torch."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

    aten = torch.ops.aten
    tree = torch.utils._pytree

    def tensors_of(*trees: Any) -> list[Any]:
        return [t for t in tree.tree_leaves(trees) if isinstance(t, torch.Tensor)]

    def on_meta(value: Any) -> Any:
        return tree.tree_map_only(
            torch.Tensor,
            lambda t: t if t.device.type == "meta" else torch.empty_like(t, device="meta"),
            value,
        )

    class Dispatch(TorchDispatchMode):
        def __init__(self, recorder: Any) -> None:
            super().__init__()
            self.recorder = recorder

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if self.recorder.paused:
                return run(func, args, kwargs)
            self.recorder.check(func, args)
            if func is aten.masked_select.default:
                func, args = aten.index.Tensor, (args[0], [args[1]])
            if str(func).startswith(("aten.index.", "aten.index_put")):
                source, picks, *rest = args
                args = (source, numbered(picks, source.ndim), *rest)
            result = run(func, args, kwargs)
            if func._schema.name == "aten::_local_scalar_dense":
                return result
            if torch.Tag.dynamic_output_shape in func.tags and "index" not in str(func):
                # Its size hangs on contents: what was found becomes a constant of the graph.
                return result
            self.recorder.record(func, args, kwargs, result)
            return result

    def numbered(picks: Any, rank: int) -> list[Any]:
        """Masks among the indices, as the positions that they choose."""
        found: list[Any] = []
        for pick in picks:
            if isinstance(pick, torch.Tensor) and pick.dtype in (torch.bool, torch.uint8):
                found += list(pick.nonzero().unbind(1))
            else:
                found.append(pick)
        return found

    def run(func: Any, args: Any, kwargs: Any) -> Any:
        given = tensors_of(args, kwargs)
        if all(t.device.type == "cpu" for t in given) and is_small(func, args, kwargs, given):
            if "device" in kwargs:
                kwargs = {**kwargs, "device": torch.device("cpu")}
            return func(*args, **kwargs)
        args, kwargs = on_meta((args, kwargs))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("meta")}
        return func(*args, **kwargs)

    def is_small(func: Any, args: Any, kwargs: Any, given: list[Any]) -> bool:
        """Whether a result is worth computing; of a larger one only the shape is."""
        if not given:
            size = args[0] if args else kwargs.get("size")
            if isinstance(size, list | tuple) and all(isinstance(n, int) for n in size):
                return int(torch.Size(size).numel()) <= _REAL_ELEMENTS
            return True
        if func._schema.is_mutable or torch.Tag.dynamic_output_shape in func.tags:
            return True
        if max(t.numel() for t in given) < 1 << 12 or "_local_scalar_dense" in str(func):
            return True
        moved, named = on_meta((args, kwargs))
        if "device" in named:
            named = {**named, "device": torch.device("meta")}
        try:
            made = tensors_of(func(*moved, **named))
        except (RuntimeError, NotImplementedError):
            return True
        return all(t.numel() <= _REAL_ELEMENTS for t in made)

    @contextmanager
    def paused(recorder: Any) -> Iterator[None]:
        recorder.paused += 1
        try:
            yield
        finally:
            recorder.paused -= 1

    class Functions(TorchFunctionMode):
        def __init__(self, recorder: Any) -> None:
            super().__init__()
            self.recorder = recorder

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            name = getattr(func, "__name__", "")
            given = tensors_of(args, kwargs)
            if (
                name not in _WHOLE
                or self.recorder.paused
                or all(t.device.type == "cpu" for t in given)
                or (name == "dropout" and not kwargs.get("training", True))
            ):
                return func(*args, **kwargs)
            if name == "dropout":
                args, kwargs = (args[0], kwargs.get("p", 0.5), kwargs["training"]), {}
            target = getattr(aten, "matmul" if name == "__matmul__" else name)
            target = target.default if "default" in target.overloads() else func
            if name in _RECURRENT:
                target = getattr(aten, name).input
            if name.startswith("conv") and isinstance(kwargs.get("padding", 0), str):
                target = getattr(aten, name).padding
            # The dispatch mode would make small copies on the CPU.
            with _disable_current_modes():
                moved, named = on_meta((args, kwargs))
            with paused(self.recorder):
                result = func(*moved, **named)
            self.recorder.record(target, args, kwargs, result)
            return result

    return Dispatch, Functions
