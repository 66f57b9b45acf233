"""ONNX operators that only say something known: constants, shapes, aliases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.errors import ModelFileError
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_fold import fold, is_foldable_size
from importers.onnx_values import (
    OnnxNode,
    OnnxValue,
    checked_shape,
    dtype_of,
    read_array,
    tensor_value,
)

if TYPE_CHECKING:
    from onnx import NodeProto

    from importers.onnx_resolve import Resolver
    from importers.onnx_scope import Scope

Special = Callable[["Resolver", "NodeProto", OnnxNode, "Scope"], None]
"""Settles one node in its scope, in place of the general way."""


def dtype_of_array(array: np.ndarray[Any, Any]) -> DType:
    """The dtype of a numpy array."""
    name = str(array.dtype)
    return DType.STRING if array.dtype.kind in "OUS" else DType.parse(name)


def _constant(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    attributes = resolved.attributes
    name = node.output[0]
    where = resolved.label
    if "value" in attributes:
        make = partial(tensor_value, attributes["value"], scope.prefix + name, where)
        scope.values[name] = scope.shared(name, make)
        return
    if "sparse_value" in attributes:
        sparse = attributes["sparse_value"]
        shape = checked_shape(list(sparse.dims), where)
        type_ = TensorType(shape, dtype_of(sparse.values.data_type))
        scope.values[name] = OnnxValue(scope.prefix + name, type_, "weight")
        return
    for key, dtype in (
        ("value_float", "float32"),
        ("value_floats", "float32"),
        ("value_int", "int64"),
        ("value_ints", "int64"),
    ):
        if key in attributes:
            array = np.asarray(attributes[key], dtype=dtype)
            type_ = TensorType(tuple(array.shape), DType.parse(dtype))
            scope.values[name] = OnnxValue(scope.prefix + name, type_, "weight", array)
            return
    if "value_string" in attributes or "value_strings" in attributes:
        strings = attributes.get("value_strings")
        shape = () if strings is None else (len(strings),)
        type_ = TensorType(shape, DType.STRING)
        scope.values[name] = OnnxValue(scope.prefix + name, type_, "weight")
        return
    raise ModelFileError(f"{where} holds no value")


def _constant_of_shape(
    resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope
) -> None:
    shape_value = resolved.input(0)
    if shape_value is None or shape_value.data is None:
        resolver.append(node, resolved, scope)
        return
    shape = checked_shape([int(n) for n in shape_value.data], resolved.label)
    fill = resolved.attributes.get("value")
    dtype = dtype_of(fill.data_type) if fill is not None else DType.FLOAT32
    name = node.output[0]
    data = None
    if is_foldable_size(shape) and not (dtype.is_float and shape_value.origin == "weight"):
        arrays = fold(node, resolved.attributes, [shape_value.data], resolved.version)
        data = arrays[0] if arrays else None
    if data is None and shape_value.origin != "weight":
        resolver.append(node, resolved, scope)
        return
    # With a shape that stands in the file this is how weights are left out of a file.
    stored = np.broadcast_to(np.float64(filling(resolved)), shape) if data is None else None
    scope.values[name] = OnnxValue(
        scope.prefix + name, TensorType(shape, dtype), shape_value.origin, data, stored=stored
    )


def filling(node: OnnxNode) -> float:
    """The number that a ConstantOfShape is full of."""
    value = node.attributes.get("value")
    if value is None:
        return 0.0
    array = read_array(value, TensorType(tuple(value.dims), dtype_of(value.data_type)), node.label)
    return 0.0 if array is None or array.size != 1 else float(array.reshape(-1)[0])


def _shape(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    value = operand(resolved)
    dims = list(value.shape)
    dims = dims[resolved.attributes.get("start", 0) : resolved.attributes.get("end", len(dims))]
    array = np.asarray(dims, dtype=np.int64)
    name = node.output[0]
    type_ = TensorType((len(dims),), DType.INT64)
    scope.values[name] = OnnxValue(scope.prefix + name, type_, "computed", array)


def _size(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    array = np.asarray(operand(resolved).type.elements, dtype=np.int64)
    name = node.output[0]
    type_ = TensorType((), DType.INT64)
    scope.values[name] = OnnxValue(scope.prefix + name, type_, "computed", array)


def _identity(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    scope.values[node.output[0]] = operand(resolved)


def operand(resolved: OnnxNode) -> OnnxValue:
    """The node's first operand.

    Raises:
        ModelFileError: it is absent.
    """
    value = resolved.input(0)
    if value is None:
        raise ModelFileError(f"{resolved.label} has no operand")
    return value


SPECIAL: Mapping[str, Special] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Size": _size,
    "Identity": _identity,
}
