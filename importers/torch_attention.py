"""aten's fused attention in graph_ir's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.torch_call import Call, is_tensor
from importers.torch_movement import as_shape

Rule = Callable[[Call], Any]


def _attention(call: Call) -> Value:
    """Fused attention; in training its result for the backward pass is the row's log-sum of exponentials."""
    operands = [_four_dims(call, n) for n in ("query", "key", "value")]
    query, _, value = (v.type for v in operands)
    if is_tensor(call["attn_mask"]):
        mask = call.value("attn_mask")
        operands.append(mask)
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


RULES: Mapping[str, Rule] = {
    "aten.scaled_dot_product_attention": _attention,
}
"""Rules by aten name."""
