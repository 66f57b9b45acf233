"""An operator without a rule, written out in the operators that torch itself defines it with.

Only the one call is taken apart, where it stands. torch's own pass over a whole program would also drop what
eager execution computes in vain and turn in-place operators into copies, so that less or other work counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _definitions() -> Mapping[Any, Any]:
    """The definitions in torch of operators by simpler ones."""
    import torch

    found: Mapping[Any, Any] = torch.export.default_decompositions()
    return found


def decomposed(node: Any, resolve: Callable[[Any], Any]) -> tuple[Any, list[Any]] | None:
    """The simpler operators of one call.

    Args:
        node: the fx node of the call.
        resolve: what an argument that is no tensor stands for (a size that another node computes).

    Returns:
        A GraphModule and the fx nodes that its placeholders stand for, or None if torch has no definition.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    definitions = _definitions()
    if node.target not in definitions:
        return None
    leaves, form = torch.utils._pytree.tree_flatten((node.args, dict(node.kwargs)))
    holes = [i for i, a in enumerate(leaves) if isinstance(_tensor(a), torch.Tensor)]

    def call(*tensors: Any) -> Any:
        given = dict(zip(holes, tensors, strict=True))
        filled = [given[i] if i in given else resolve(a) for i, a in enumerate(leaves)]
        args, kwargs = torch.utils._pytree.tree_unflatten(filled, form)
        if "device" in kwargs:
            kwargs["device"] = "meta"
        return node.target(*args, **kwargs)

    table = {node.target: definitions[node.target]}
    examples = [_on_meta(torch, _tensor(leaves[i])) for i in holes]
    try:
        with torch.no_grad():
            module = make_fx(call, decomposition_table=table)(*examples)
    except (
        Exception
    ):  # a definition may look at contents, which no meta tensor has, and raise anything
        return None
    inner = [n for n in module.graph.nodes if n.op == "call_function"]
    if any(n.target is node.target for n in inner):
        return None
    for part in inner:
        for key in ("nn_module_stack", "fwd_nn_module_stack"):
            if key in node.meta:
                part.meta[key] = node.meta[key]
    return module, [leaves[i] for i in holes]


def _tensor(argument: Any) -> Any:
    return getattr(argument, "meta", {}).get("val") if hasattr(argument, "op") else None


def _on_meta(torch: Any, tensor: Any) -> Any:
    return torch.empty_strided(
        tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta"
    )
