"""ONNX sequences and optionals: containers that exist while importing and leave no operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from graph_ir.errors import DimensionError, ModelFileError
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_constants import Special, operand
from importers.onnx_values import OnnxNode, OnnxValue

if TYPE_CHECKING:
    from onnx import NodeProto

    from importers.onnx_resolve import Resolver
    from importers.onnx_scope import Scope

_NO_TYPE = TensorType((), DType.FLOAT32)


def sequence_value(name: str, elements: list[OnnxValue]) -> OnnxValue:
    """A sequence of known elements."""
    return OnnxValue(name, _NO_TYPE, sequence=elements)


def _elements(resolved: OnnxNode) -> list[OnnxValue]:
    value = operand(resolved)
    if value.sequence is None:
        raise ModelFileError(f"{resolved.label} needs a sequence, but {value.name!r} is a tensor")
    return value.sequence


def _position(resolved: OnnxNode, index: int, length: int, default: int) -> int:
    value = resolved.input(index)
    if value is None or value.data is None:
        return default
    position = int(value.data)
    position += length if position < 0 else 0
    if not 0 <= position <= length:
        raise ModelFileError(f"{resolved.label}: position {position} of a sequence of {length}")
    return position


def _define(node: NodeProto, scope: Scope, elements: list[OnnxValue]) -> None:
    name = node.output[0]
    scope.values[name] = sequence_value(scope.prefix + name, elements)


def _empty(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    _define(node, scope, [])


def _construct(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    _define(node, scope, [v for v in resolved.inputs if v is not None])


def _insert(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    elements = list(_elements(resolved))
    added = resolved.input(1)
    if added is None:
        raise ModelFileError(f"{resolved.label} inserts nothing")
    elements.insert(_position(resolved, 2, len(elements), len(elements)), added)
    _define(node, scope, elements)


def _erase(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    elements = list(_elements(resolved))
    if not elements:
        raise ModelFileError(f"{resolved.label} erases from an empty sequence")
    del elements[min(_position(resolved, 1, len(elements), len(elements) - 1), len(elements) - 1)]
    _define(node, scope, elements)


def _at(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    elements = _elements(resolved)
    position = _position(resolved, 1, len(elements), 0)
    if position >= len(elements):
        raise ModelFileError(f"{resolved.label}: position {position} of {len(elements)} elements")
    scope.values[node.output[0]] = elements[position]


def _length(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    name = node.output[0]
    array = np.asarray(len(_elements(resolved)), dtype=np.int64)
    type_ = TensorType((), DType.INT64)
    scope.values[name] = OnnxValue(scope.prefix + name, type_, "computed", array)


def _split(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    """SplitToSequence becomes an ordinary Split and a sequence of its results."""
    data = operand(resolved)
    axis = resolved.attributes.get("axis", 0) % max(len(data.shape), 1)
    total = data.shape[axis]
    split = resolved.input(1)
    if split is not None and split.data is None:
        raise DimensionError(
            f"{resolved.label}: the lengths of the parts are not fixed in the file"
        )
    if split is None:
        sizes = [1] * total
    elif split.data is not None and split.data.ndim == 0:
        chunk = max(int(split.data), 1)
        sizes = [min(chunk, total - i) for i in range(0, total, chunk)]
    else:
        sizes = [] if split.data is None else [int(s) for s in split.data]
    squeeze = split is None and not resolved.attributes.get("keepdims", 1)
    parts: list[OnnxValue] = []
    for i, size in enumerate(sizes):
        shape = (*data.shape[:axis], size, *data.shape[axis + 1 :])
        name = f"{scope.prefix}{node.output[0]}.{i}"
        parts.append(OnnxValue(name, data.type.with_shape(shape)))
    resolved.op_type = "Split"
    resolved.inputs = [data]
    resolved.outputs = list(parts)
    resolver.nodes.append(resolved)
    if squeeze:
        parts = [_squeezed(resolver, resolved, part, axis) for part in parts]
    _define(node, scope, parts)


def _squeezed(resolver: Resolver, resolved: OnnxNode, part: OnnxValue, axis: int) -> OnnxValue:
    """A piece of length 1 without that dim."""
    shape = (*part.shape[:axis], *part.shape[axis + 1 :])
    value = OnnxValue(f"{part.name}.squeezed", part.type.with_shape(shape))
    squeeze = replace(
        resolved, name=value.name, op_type="Squeeze", attributes={}, inputs=[part], outputs=[value]
    )
    resolver.nodes.append(squeeze)
    return value


def _concat(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    """ConcatFromSequence becomes an operator with the elements as operands."""
    elements = _elements(resolved)
    if not elements:
        raise DimensionError(f"{resolved.label} joins an empty sequence: its shape cannot be told")
    name = scope.prefix + node.output[0]
    value = join(resolved, name, elements, bool(resolved.attributes.get("new_axis", 0)))
    resolver.nodes.append(resolved)
    scope.values[node.output[0]] = value


def join(
    resolved: OnnxNode,
    name: str,
    elements: list[OnnxValue],
    new_axis: bool,
    axis: int | None = None,
) -> OnnxValue:
    """Makes `resolved` the operator that concatenates or stacks `elements`; returns its result."""
    first = elements[0]
    rank = len(first.shape) + new_axis
    place = (resolved.attributes.get("axis", 0) if axis is None else axis) % max(rank, 1)
    shape = list(first.shape)
    if new_axis:
        shape.insert(place, len(elements))
    else:
        shape[place] = sum(e.shape[place] for e in elements)
    resolved.op_type = "ConcatFromSequence"
    resolved.attributes = {"axis": place, "new_axis": int(new_axis)}
    resolved.inputs = list(elements)
    value = OnnxValue(name, first.type.with_shape(tuple(shape)))
    resolved.outputs = [value]
    return value


def _present(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    name = node.output[0]
    array = np.asarray(resolved.input(0) is not None)
    type_ = TensorType((), DType.BOOL)
    scope.values[name] = OnnxValue(scope.prefix + name, type_, "computed", array)


def _alias(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    scope.values[node.output[0]] = operand(resolved)


SPECIAL: Mapping[str, Special] = {
    "SequenceEmpty": _empty,
    "SequenceConstruct": _construct,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "SplitToSequence": _split,
    "ConcatFromSequence": _concat,
    "Optional": _alias,
    "OptionalGetElement": _alias,
    "OptionalHasElement": _present,
}
