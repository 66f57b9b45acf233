"""Rules that an operator's nature gives, where no table has one of its own.

torch tags the operators that work element by element, and a schema says whose memory a result shares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import DType
from importers.torch_call import Call, flat, is_tensor
from importers.torch_movement import as_shape, slice_value

Rule = Callable[[Call], Any]

_INDEXED_ELEMENTS = 1 << 24
"""Largest view whose element order is computed."""


def natural_rule(target: Any) -> Rule | None:
    """The rule of an operator that computes element by element, or that only shows memory another way."""
    import torch

    schema = getattr(target, "_schema", None)
    if schema is None or target.namespace != "aten":
        return None
    if torch.Tag.pointwise in target.tags and len(schema.returns) == 1:
        return _pointwise
    shares = [a.alias_info for a in (*schema.arguments[:1], *schema.returns)]
    single = [str(r.type) for r in schema.returns] == ["Tensor"]
    if single and len(shares) == 2 and all(s is not None and not s.is_write for s in shares):
        return _view
    return None


def _pointwise(call: Call) -> Value:
    operands = [
        call.converter.materialize(v, call.node) for v in flat(call.args.values()) if is_tensor(v)
    ]
    name = str(call.node.target).split(".")[1]
    return call.one("pointwise", operands, function=name)


def _view(call: Call) -> Any:
    """Any other view: where its elements lie is found by viewing their numbers, and looked up."""
    import torch

    first = call.node.target._schema.arguments[0].name
    source = call.value(first)
    own = call.argument_node(first).meta["val"]
    if call.type.elements == source.type.elements and _same_order(call, own):
        return call.one("reshape", [source], view=True)
    if own.is_complex() != call.node.meta["val"].is_complex():
        # The real or the imaginary parts, every second number.
        pair = call.type.with_shape((*call.type.shape, 2))
        (parts,) = call.emit("reshape", [source], [pair], {"view": True}, "parts")
        return as_shape(call, slice_value(call, parts, len(pair.shape) - 1, 0, 1), call.type.shape)
    if source.type.elements > _INDEXED_ELEMENTS or own.dtype != call.node.meta["val"].dtype:
        return call.converter.unknown_call(call)
    numbers = torch.arange(source.type.elements).reshape(source.type.shape)
    node = call.node
    named = {a.name: call[a.name] for a in node.target._schema.arguments if a.name != first}
    shown = node.target(numbers, **named)
    line = as_shape(call, source, (source.type.elements,), "line")
    index = call.constant(shown.contiguous().numpy(), DType.INT64)
    return call.one("gather", [line, index], axis=0)


def _same_order(call: Call, own: Any) -> bool:
    """Whether the view shows all elements in their order, under another shape or dtype."""
    shown = call.node.meta["val"]
    return bool(own.is_contiguous() and shown.is_contiguous() and own.dtype == shown.dtype)
