"""One device's part of an operator: a range of one name, cut out of arrays, types and nodes.

A name may be an inner factor of a compound dim: in `(g r)`, a range of r is a strided part of the dim. What
a record's attributes mean on a part of the operator is the record's own business (`OpDef.localize`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dims, Equation, Window
from graph_ir.evaluate import Array

if TYPE_CHECKING:
    from graph_ir.graph import Node, Value

_JOIN: Mapping[str, Any] = {
    "sum": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "prod": np.multiply,
}


def ranges(size: int, parts: int) -> list[tuple[int, int]]:
    """Splits `size` into `parts` ranges, the first ones longer by one where it does not divide."""
    base, longer = divmod(size, parts)
    stops = [base * (i + 1) + min(i + 1, longer) for i in range(parts)]
    return list(zip([0, *stops[:-1]], stops, strict=True))


def dim_with(dims: Dims, name: str) -> int | None:
    """Index of the dim that has `name` as a factor, or None.

    Raises:
        ValueError: if the name is read through a window or occurs in several dims.
    """
    found = [i for i, dim in enumerate(dims) if name in dim]
    if not found:
        return None
    if len(found) > 1 or isinstance(dims[found[0]], Window):
        raise ValueError(f"{name!r} cannot be split in {dims}")
    return found[0]


def _refined(dims: Dims, sizes: Mapping[str, int], name: str, axis: int) -> tuple[int, int]:
    """Products of the factors before and after `name` in its dim."""
    dim = dims[axis]
    at = dim.index(name)
    return prod(sizes[n] for n in dim[:at]), prod(sizes[n] for n in dim[at + 1 :])


def shard_array(
    array: Array, dims: Dims, sizes: Mapping[str, int], name: str, start: int, stop: int
) -> Array:
    """The part of a tensor that belongs to `start:stop` of a name; all of it if it lacks the name."""
    axis = dim_with(dims, name)
    if axis is None:
        return array
    outer, inner = _refined(dims, sizes, name, axis)
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    split = array.reshape(*before, outer, sizes[name], inner, *after)
    part = split[(slice(None),) * (axis + 1) + (slice(start, stop),)]
    return np.ascontiguousarray(part).reshape(*before, outer * (stop - start) * inner, *after)


def join_arrays(
    parts: Sequence[Array],
    dims: Dims,
    sizes: Mapping[str, int],
    name: str,
    reduction: str | None = "sum",
) -> Array:
    """The whole tensor from its parts: joined along the name, or combined if they are partial terms.

    Args:
        parts: in the order of their ranges.
        dims: of the whole tensor.
        sizes: of the whole tensor's names.
        name: what was split.
        reduction: how terms combine where the tensor lacks the name.

    Raises:
        ValueError: if the parts are terms but nothing says how they combine.
    """
    axis = dim_with(dims, name)
    if axis is None:
        if reduction is None:
            raise ValueError(f"terms of {name!r} do not combine")
        result = parts[0]
        for part in parts[1:]:
            result = _JOIN[reduction](result, part)
        return result
    outer, inner = _refined(dims, sizes, name, axis)
    before, after = parts[0].shape[:axis], parts[0].shape[axis + 1 :]
    split = [
        p.reshape(*before, outer, p.shape[axis] // (outer * inner), inner, *after) for p in parts
    ]
    joined = np.concatenate(split, axis=axis + 1)
    return joined.reshape(*before, outer * joined.shape[axis + 1] * inner, *after)


def local_equation(equation: Equation, name: str, length: int) -> Equation:
    """The same equation with `length` elements of a name."""
    return replace(equation, sizes={**equation.sizes, name: length})


def local_value(
    value: Value, dims: Dims, sizes: Mapping[str, int], name: str, length: int
) -> Value:
    """A value's local type when a device holds `length` elements of a name."""
    axis = dim_with(dims, name)
    if axis is None:
        return value
    shape = list(value.type.shape)
    shape[axis] = shape[axis] // sizes[name] * length
    return replace(value, type=value.type.with_shape(tuple(shape)))


def local_attrs(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    """Attributes of the node on the device that holds `start:stop` of a name, the equation included."""
    attrs = dict(node.attrs)
    localize = node.definition.localize
    if localize is not None:
        attrs.update(localize(node, name, start, stop))
    attrs["equation"] = local_equation(node.equation, name, stop - start)
    return attrs


def local_node(node: Node, name: str, start: int, stop: int) -> Node:
    """The node on the device that holds `start:stop` of a name: local types, attributes and equation.

    Raises:
        ValueError: if a tensor cannot be split along the name.
    """
    equation, length = node.equation, stop - start
    inputs = tuple(
        local_value(v, dims, equation.sizes, name, length)
        for v, dims in zip(node.inputs, equation.inputs, strict=True)
    )
    outputs = tuple(
        local_value(v, dims, equation.sizes, name, length)
        for v, dims in zip(node.outputs, equation.outputs, strict=True)
    )
    return replace(node, inputs=inputs, outputs=outputs, attrs=local_attrs(node, name, start, stop))
