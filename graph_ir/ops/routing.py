"""Sorting, top-k and cumulative sums: one dim is needed whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Equation
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]


def _axis_equation(
    inputs: Sequence[TensorType],
    outputs: Sequence[TensorType],
    attrs: Mapping[str, Any],
    reorders: bool = True,
) -> Equation:
    """`... t -> ... k` with both whole; the other dims pass.

    What is sorted or picked has another order: its dim is another axis, even at the same size.
    """
    shape = inputs[0].shape
    axis = attrs.get("axis", -1) % max(len(shape), 1)
    dims: list[Dim] = [(f"i{i}",) for i in range(len(shape))]
    sizes = {f"i{i}": n for i, n in enumerate(shape)}
    fixed = {f"i{axis}"} if shape else set()
    results = []
    for t in outputs:
        if len(t.shape) < len(shape):
            results.append(tuple(d for i, d in enumerate(dims) if i != axis))
            continue
        result = list(dims)
        if shape and (t.shape[axis] != shape[axis] or reorders):
            sizes["k"] = t.shape[axis]
            fixed.add("k")
            result[axis] = ("k",)
        results.append(tuple(result))
    return Equation((tuple(dims),) * len(inputs), tuple(results), sizes, frozenset(fixed), None)


def _comparisons(node: Node) -> int:
    """A comparison sort: n log2 n per row."""
    shape = node.inputs[0].type.shape
    n = shape[node.attrs.get("axis", -1)] if shape else 1
    return round(node.inputs[0].type.elements * max(1.0, log2(max(n, 1))))


def _topk(node: Node, x: Array) -> tuple[Array, Array]:
    axis = node.attrs.get("axis", -1)
    k = node.outputs[0].type.shape[axis]
    index = np.take(np.argsort(-x, axis=axis, kind="stable"), range(k), axis=axis)
    return np.take_along_axis(x, index, axis=axis), index


def _sort(node: Node, x: Array) -> tuple[Array, Array]:
    axis = node.attrs.get("axis", -1)
    index = np.argsort(-x if node.attrs.get("descending") else x, axis=axis, kind="stable")
    return np.take_along_axis(x, index, axis=axis), index


def _place_of(node: Node, search: Any, x: Array) -> Array:
    """The dim that is searched is gone, or of size 1 where the result says so."""
    found: Array = search(x, axis=node.attrs.get("axis", -1))
    return found.reshape(node.outputs[0].type.shape)


def _picked_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None]
    attrs = {"axis": node.attrs.get("axis", -1) % len(node.inputs[0].type.shape)}
    operands = [grads[0], node.outputs[1]]
    return b.emit(node, "gather_elements_backward", operands, [node.inputs[0].type], attrs)


def _cumsum_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None]
    attrs = {**node.attrs, "reverse": not node.attrs.get("reverse", False)}
    return b.emit(node, "cumsum", [grads[0]], [node.inputs[0].type], attrs, "grad")


def _cumprod_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """x[i] is a factor of every later product: the sum of dy y from i on, over x[i] (not zero)."""
    (grad,) = grads
    if grad is None:
        return [None]
    (x,), (y,), types = node.inputs, node.outputs, [node.inputs[0].type]
    axis = {"axis": node.attrs.get("axis", -1), "reverse": True}
    (terms,) = b.emit(node, "mul", [grad, y], types, label="terms")
    (sums,) = b.emit(node, "cumsum", [terms], types, axis, "sums")
    return b.emit(node, "div", [sums, x], types, label="grad")


def _cumsum(node: Node, x: Array) -> Array:
    axis = node.attrs.get("axis", -1)
    if node.attrs.get("reverse"):
        return np.flip(np.cumsum(np.flip(x, axis), axis=axis), axis)
    return np.cumsum(x, axis=axis)


def _running_equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    """`... t -> ... t` with t whole, in the same order."""
    return _axis_equation(inputs, outputs, attrs, reorders=False)


def _routing(name: str, flops: Any, equation: Any = _axis_equation, **extra: Any) -> OpDef:
    return OpDef(name, "routing", equation, flops=flops, engine="vector", **extra)


register(
    # Results: values and indices. The number taken is the result's size.
    _routing("topk", _comparisons, evaluate=_topk, gradient=_picked_gradient),
    _routing("sort", _comparisons, evaluate=_sort, gradient=_picked_gradient),
    _routing("argmax", 1, evaluate=lambda node, x: _place_of(node, np.argmax, x)),
    _routing("argmin", 1, evaluate=lambda node, x: _place_of(node, np.argmin, x)),
    _routing(
        "cumsum",
        1,
        _running_equation,
        evaluate=_cumsum,
        gradient=_cumsum_gradient,
        linear="jointly",
    ),
    _routing(
        "cumprod",
        1,
        _running_equation,
        evaluate=lambda node, x: np.cumprod(x, axis=node.attrs.get("axis", -1)),
        gradient=_cumprod_gradient,
    ),
)
