"""Conditions under which a model, while it is traced, does what it does when it is run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

SCAN = "mamba_selective_scan"
"""What transformers calls the scan of mamba_ssm in each of its files."""


@contextmanager
def as_when_run(model: Any) -> Iterator[None]:
    """While active, the model does not notice that it is exported, and runs scans as one kernel.

    Experts get equal shares of rows.
    """
    from importers.torch_scan import scan_of_kernel

    with ExitStack() as stack:
        stack.enter_context(_replaced(model, "is_torchdynamo_exporting", lambda: False))
        stack.enter_context(_replaced(model, SCAN, scan_of_kernel))
        stack.enter_context(_equal_shares(model))
        yield


@contextmanager
def _replaced(model: Any, name: str, function: Any) -> Iterator[None]:
    """A function of the files that the model's code is in, replaced.

    `is_torchdynamo_exporting`: some models write an operator out for formats that lack it when they see that
    they are exported. `mamba_selective_scan`: without its kernel it is a loop over tokens.
    """
    places = {sys.modules[type(part).__module__] for part in model.modules()}
    before = {place: getattr(place, name) for place in places if hasattr(place, name)}
    for place in before:
        setattr(place, name, function)
    try:
        yield
    finally:
        for place, old in before.items():
            setattr(place, name, old)


@contextmanager
def _equal_shares(model: Any) -> Iterator[None]:
    """A router that reads how many rows each expert gets (`counts.tolist()`) reads equal shares.

    The numbers hang on activations, which a trace does not have.
    """
    import torch

    routers = [p for p in model.modules() if hasattr(p, "top_k") and hasattr(p, "num_experts")]
    if not routers:
        yield
        return
    rows: list[tuple[int, int]] = []

    def enter(router: Any, args: Any) -> None:
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        count = tensors[0].numel() // tensors[0].shape[-1] if tensors else 0
        rows.append((int(router.num_experts), count * int(router.top_k)))

    def leave(*_: Any) -> None:
        rows.pop()

    real = torch.Tensor.tolist

    def tolist(tensor: Any) -> Any:
        if rows and tensor.ndim == 1 and tensor.shape[0] == rows[-1][0]:
            experts, total = rows[-1]
            return [total // experts + (i < total % experts) for i in range(experts)]
        return real(tensor)

    hooks = [router.register_forward_pre_hook(enter) for router in routers]
    hooks += [router.register_forward_hook(leave, always_call=True) for router in routers]
    torch.Tensor.tolist = tolist
    try:
        yield
    finally:
        torch.Tensor.tolist = real
        for hook in hooks:
            hook.remove()


def numbers_on_cpu() -> Any:
    """A mode for building a model on the meta device whose small whole-number buffers keep their contents.

    Some models compute sizes from such buffers (strides, numbers of frames).
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Numbers(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if function is torch.tensor and "device" not in kwargs:
                made = function(*args, **kwargs, device="cpu")
                return made if not made.is_floating_point() else made.to("meta")
            return function(*args, **kwargs)

    return Numbers()
