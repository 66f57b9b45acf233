"""Autocast regions: the casts that torch inserts before an operator, which a traced graph does not show."""

from __future__ import annotations

from typing import Any

from graph_ir.graph import Value
from importers.torch_call import Call, Constant, is_tensor

_CASTS = ("aten.to.", "aten._to_copy", "aten.type_as", "aten.float", "aten.copy_")


def autocast_operands(call: Call) -> None:
    """Casts a call's operands as autocast does.

    The dtype of the traced result says which way: an operator in a shorter dtype than its operands was
    given shortened ones, one in a longer dtype than all of them lengthened ones. Plain type promotion does
    neither.
    """
    if not call.types or str(call.node.target).startswith(_CASTS):
        return
    result = call.type.dtype
    floats = {v.type.dtype for v in call.args.values() if is_tensor(v) and v.type.dtype.is_float}
    shortened = any(dtype.bits > result.bits for dtype in floats)
    lengthened = bool(floats) and all(dtype.bits < result.bits for dtype in floats)
    if not result.is_float or not (shortened or lengthened):
        return
    done: dict[Any, Any] = {}
    for name, value in call.args.items():
        if is_tensor(value) and value.type.dtype.is_float and value.type.dtype is not result:
            # Some operands have two names here.
            done[value] = done.get(value) or _cast(call, name, value)
    call.args = {
        name: done.get(value, value) if is_tensor(value) else value
        for name, value in call.args.items()
    }


def _cast(call: Call, name: str, value: Value | Constant) -> Any:
    """The cast operand; a weight is cast once in a forward pass, as torch's cache does."""
    source = call.converter.materialize(value, call.node)
    wanted = source.type.with_dtype(call.type.dtype)
    cache = call.converter.cast_weights
    if (source, wanted.dtype) in cache:
        return cache[source, wanted.dtype]
    (found,) = call.emit("cast", [source], [wanted], suffix=f"autocast_{name}")
    if source.kind == "parameter":
        cache[source, wanted.dtype] = found
    return found
