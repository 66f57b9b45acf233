"""aten's fused attention in graph_ir's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.torch_call import Call, Constant
from importers.torch_movement import as_shape

Rule = Callable[[Call], Any]


def _attention(call: Call) -> Value:
    """Fused attention; in training its result for the backward pass is the row's log-sum of exponentials."""
    operands = [_four_dims(call, n) for n in ("query", "key", "value")]
    query, _, value = (v.type for v in operands)
    operands += call.values(["attn_mask", "attn_bias"])[:1]
    attrs: dict[str, Any] = {"causal": bool(call["is_causal"])}
    if call["scale"] is not None:
        attrs["scale"] = float(call["scale"])
    if call["dropout_p"]:
        attrs["dropout"] = float(call["dropout_p"])
    types = [query.with_shape((*query.shape[:3], value.shape[3]))]
    if call.training:
        types.append(TensorType(query.shape[:3], DType.FLOAT32))
    result = call.emit("attention", operands, types, attrs)[0]
    _follow_query_layout(call)
    return as_shape(call, result, call.type.shape)


def _four_dims(call: Call, name: str) -> Value:
    """An operand as [batch, heads, tokens, width], its further leading dims joined."""
    value = call.value(name)
    shape = value.type.shape
    if len(shape) == 4:
        return value
    return as_shape(call, value, (prod(shape[:-3]), *shape[-3:]), name)


def _follow_query_layout(call: Call) -> None:
    """Gives the result the query's memory order, as fused kernels do.

    That is b s h d for a transposed view; tracing assumes a contiguous result. So the transpose and the
    reshape that follow are free.
    """
    import torch

    layout = call.layout("query")
    val = call.node.meta["val"]
    order = sorted(range(val.ndim), key=lambda i: -layout.stride()[i])
    plain = torch.empty([val.shape[i] for i in order], dtype=val.dtype, device="meta")
    call.converter.set_layout(call.node, plain.permute([order.index(i) for i in range(val.ndim)]))


# The kernels that torch chooses between, in programs that were decomposed after the choice.
_KERNELS = (
    "flash_attention",
    "flash_attention_for_cpu",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
    "attention_math",
)


def _kernel(call: Call) -> list[Any]:
    """A kernel's own operator: its first result is the attention, the others are for its backward pass."""
    return [_attention(call), *map(Constant, call.types[1:])]


def flexible_attention(call: Call, args: Sequence[Any]) -> list[Any]:
    """`flex_attention`: fused attention whose scores a user's function changes while they are in registers.

    What a block mask skips is not known before it runs: all scores count.
    """
    query, key, value = (call.converter.materialize(v, call.node) for v in args[:3])
    out, *rest = call.types
    types = [out, *rest[:1]] if call.training else [out]
    (found, *_) = call.emit("attention", [query, key, value], types, {"scale": float(args[5])})
    call.converter.notes.append(
        "flex_attention is priced without its score function, and as if its block mask skipped nothing"
    )
    return [found, *map(Constant, rest)]


RULES: Mapping[str, Rule] = {
    "aten.scaled_dot_product_attention": _attention,
    **{f"aten._scaled_dot_product_{kind}": _kernel for kind in _KERNELS},
}
"""Rules by aten name."""
