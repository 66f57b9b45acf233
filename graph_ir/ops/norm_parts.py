"""Layer norm and RMS norm in parts, for devices that hold a part of the normalised dims.

A norm's statistics are sums over the normalised dims; everything else is done element by element. In parts
a norm is a kernel that sums, an exchange of one or two numbers per row, and a kernel that scales (Xu et al.
2021, arXiv 2104.05343, section 3.2.2, normalises so). Attributes: `rank` (normalised dims), `width` (elements
of a whole row), `eps`, `centred` (layer norm; RMS norm has no mean).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Dims, Equation
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import DType, TensorType

if TYPE_CHECKING:
    from graph_ir.decompose import DecompositionBuilder
    from graph_ir.graph import Node, Value

Types = Sequence[TensorType]
DEFAULT_EPS = {True: 1e-5, False: 1e-6}
"""By `centred`: what layer norm and RMS norm add to the variance if a node does not say."""


def _dims(inputs: Types, attrs: Mapping[str, Any]) -> tuple[Dims, Dims, Dims, dict[str, int]]:
    """Dims of the rows, of the normalised part and of the row's sums, and all sizes."""
    shape = inputs[0].shape
    dims: list[Dim] = [(f"i{i}",) for i in range(len(shape))]
    cut = len(dims) - attrs["rank"]
    moments = 2 if attrs["centred"] else 1
    rows = tuple(dims[:cut])
    sums: Dims = (("m",) if moments > 1 else (), *rows)
    sizes = {"m": moments, **{f"i{i}": n for i, n in enumerate(shape)}}
    return rows, tuple(dims[cut:]), sums, sizes


def _sums_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`... d -> m ...`."""
    rows, norm, sums, sizes = _dims(inputs, attrs)
    return Equation(((*rows, *norm),), (sums,), sizes, frozenset({"m"}))


def _statistics_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`m ... -> ..., ...`: mean and inverse deviation, or the latter."""
    shape = outputs[0].shape
    rows: Dims = tuple((f"i{i}",) for i in range(len(shape)))
    sizes = {"m": inputs[0].shape[0], **{f"i{i}": n for i, n in enumerate(shape)}}
    sums: Dims = (("m",) if sizes["m"] > 1 else (), *rows)
    return Equation((sums,), (rows,) * len(outputs), sizes, frozenset({"m"}), None)


def _scale_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`... d, statistics ..., d, d -> ... d`."""
    rows, norm, _, sizes = _dims(inputs, attrs)
    del sizes["m"]
    count = 2 if attrs["centred"] else 1
    weights = (norm,) * (len(inputs) - 1 - count)
    operands = ((*rows, *norm), *(rows,) * count, *weights)
    return Equation(operands, ((*rows, *norm),), sizes, frozenset(), None)


def _backward_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`... d, ... d, statistics ..., [m ...,] [d] -> ...`: sums per row, or all gradients."""
    rows, norm, sums, sizes = _dims(inputs, attrs)
    x, count = (*rows, *norm), 2 if attrs["centred"] else 1
    reads_sums = "sums" in attrs
    given = [x, x, *(rows,) * count, *((sums,) if reads_sums else ())]
    operands = (*given, *(norm,) * (len(inputs) - len(given)))
    if not reads_sums:
        return Equation(operands, (sums,), sizes, frozenset({"m"}))
    results = (x, *(norm,) * (len(outputs) - 1))
    return Equation(operands, results, sizes, frozenset({"m"}))


def _axes(node: Node) -> tuple[int, ...]:
    return tuple(range(-node.attrs["rank"], 0))


def _sums(node: Node, x: Array) -> Array:
    terms = [x, x * x] if node.attrs["centred"] else [x * x]
    return np.stack([t.sum(axis=_axes(node)) for t in terms])


def _statistics(node: Node, sums: Array) -> tuple[Array, ...]:
    *mean, square = sums / node.attrs["width"]
    variance = square - mean[0] ** 2 if mean else square
    return (*mean, 1 / np.sqrt(variance + node.attrs["eps"]))


def _normalised(node: Node, x: Array, *statistics: Array) -> Array:
    *mean, inverse = (np.expand_dims(s, _axes(node)) for s in statistics)
    return np.asarray((x - mean[0] if mean else x) * inverse)


def _scale(node: Node, x: Array, *rest: Array) -> Array:
    count = 2 if node.attrs["centred"] else 1
    y = _normalised(node, x, *rest[:count])
    for i, weight in enumerate(rest[count:]):
        y = y * weight if i == 0 else y + weight
    return y


def _backward_sums(node: Node, dy: Array, x: Array, *rest: Array) -> Array:
    """Per row, the sums of g and of g times the normalised row; of RMS norm the latter alone."""
    count = 2 if node.attrs["centred"] else 1
    g = dy * rest[count] if len(rest) > count else dy
    product = g * _normalised(node, x, *rest[:count])
    terms = [g, product] if node.attrs["centred"] else [product]
    return np.stack([t.sum(axis=_axes(node)) for t in terms])


def _backward(node: Node, dy: Array, x: Array, *rest: Array) -> tuple[Array, ...]:
    count = 2 if node.attrs["centred"] else 1
    weights = rest[count + 1 :]
    xhat = _normalised(node, x, *rest[:count])
    *total, along = (np.expand_dims(s, _axes(node)) / node.attrs["width"] for s in rest[count])
    dx = (dy * weights[0] if weights else dy) - xhat * along
    if total:
        dx = dx - total[0]
    rows = tuple(range(dy.ndim - node.attrs["rank"]))
    inverse = np.expand_dims(rest[count - 1], _axes(node))
    return (dx * inverse, (dy * xhat).sum(axis=rows), dy.sum(axis=rows))[: len(node.outputs)]


def _attrs(node: Node) -> dict[str, Any]:
    rank, centred = node.attrs.get("rank", 1), node.op.startswith("layer_norm")
    shape = (node.inputs[1] if node.op.endswith("backward") else node.inputs[0]).type.shape
    eps = node.attrs.get("eps", DEFAULT_EPS[centred])
    return {"rank": rank, "width": prod(shape[len(shape) - rank :]), "eps": eps, "centred": centred}


def _row_statistics(
    b: DecompositionBuilder, x: Value, attrs: Mapping[str, Any], like: TensorType | None
) -> list[Value]:
    """Mean and inverse deviation of each row."""
    rows = x.type.shape[: len(x.type.shape) - attrs["rank"]]
    kind = like or TensorType(rows, DType.FLOAT32)
    count = 2 if attrs["centred"] else 1
    sums = b.emit("norm_sums", [x], kind.with_shape((count, *rows)), attrs)
    return b.emit_all("norm_statistics", [sums], [kind.with_shape(rows)] * count, attrs)


def norm_in_parts(b: DecompositionBuilder, node: Node) -> tuple[Value, ...]:
    """Sums, statistics, and the scaled rows; statistics are further results where the norm saves them."""
    x, *weights = node.inputs
    attrs = _attrs(node)
    like = node.outputs[1].type if len(node.outputs) > 1 else None
    statistics = _row_statistics(b, x, attrs, like)
    y = b.emit("norm_scale", [x, *statistics, *weights], node.outputs[0].type, attrs)
    return (y, *statistics)[: len(node.outputs)]


def norm_backward_in_parts(b: DecompositionBuilder, node: Node) -> tuple[Value, ...]:
    """Two sums per row, then all gradients; statistics that were not saved are taken again."""
    dy, x, *rest = node.inputs
    attrs = _attrs(node)
    saved, weights = rest[: node.attrs["statistics"]], rest[node.attrs["statistics"] :]
    if len(saved) != (2 if attrs["centred"] else 1):
        saved = _row_statistics(b, x, attrs, None)
    rows = saved[0].type
    shape = (2 if attrs["centred"] else 1, *rows.shape)
    sums = b.emit("norm_backward_sums", [dy, x, *saved, *weights], rows.with_shape(shape), attrs)
    operands = [dy, x, *saved, sums, *weights]
    types = [v.type for v in node.outputs]
    return tuple(b.emit_all("norm_backward_scale", operands, types, {**attrs, "sums": True}))


def _op(name: str, equation: Any, flops: float, evaluate: Any, **extra: Any) -> OpDef:
    return OpDef(name, "normalization", equation, flops=flops, evaluate=evaluate, **extra)


register(
    _op("norm_sums", _sums_equation, 3, _sums),
    _op("norm_statistics", _statistics_equation, 4, _statistics),
    _op("norm_scale", _scale_equation, 4, _scale),
    _op("norm_backward_sums", _backward_equation, 6, _backward_sums),
    _op("norm_backward_scale", _backward_equation, 9, _backward),
)
