"""Softmax and norms: an operator over a whole dim, elementwise in the others.

The normalised dims need replication. Batch norm takes statistics over the batch, which data-parallel
training splits all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir import eager_kernels
from graph_ir.equation import Dim, Equation
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.ops.convolution import localize_groups
from graph_ir.ops.norm_parts import norm_backward_in_parts, norm_in_parts
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.decompose import DecompositionBuilder
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]
Types = Sequence[TensorType]


def _softmax_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`... t -> ... t` with t whole; attribute `axis`."""
    shape = outputs[0].shape
    dims: list[Dim] = [(f"i{i}",) for i in range(len(shape))]
    axis = attrs.get("axis", -1) % len(shape)
    sizes = {f"i{i}": n for i, n in enumerate(shape)}
    every = tuple(dims)
    return Equation(
        (every,) * len(inputs), (every,) * len(outputs), sizes, frozenset({f"i{axis}"}), None
    )


def _softmax(node: Node, x: Array) -> Array:
    axis = node.attrs.get("axis", -1)
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def _softmax_backward(node: Node, dy: Array, y: Array) -> Array:
    return np.asarray(y * (dy - (dy * y).sum(axis=node.attrs.get("axis", -1), keepdims=True)))


def _log_softmax_backward(node: Node, dy: Array, y: Array) -> Array:
    return np.asarray(dy - np.exp(y) * dy.sum(axis=node.attrs.get("axis", -1), keepdims=True))


def _decompose_softmax(b: DecompositionBuilder, node: Node) -> tuple[Value, ...]:
    """exp(x - max) / sum, or its logarithm."""
    x = node.inputs[0]
    axis = node.attrs.get("axis", -1) % len(x.type.shape)
    row = TensorType((*x.type.shape[:axis], 1, *x.type.shape[axis + 1 :]), x.type.dtype)
    attrs = {"axes": (axis,), "keepdims": True}
    shifted = b.emit("sub", [x, b.emit("reduce_max", [x], row, attrs)], x.type)
    powers = b.emit("exp", [shifted], x.type)
    total = b.emit("reduce_sum", [powers], row, attrs)
    if node.op == "softmax":
        return (b.emit("div", [powers, total], node.outputs[0].type),)
    return (b.emit("sub", [shifted, b.emit("log", [total], row)], node.outputs[0].type),)


def _decompose_softmax_backward(b: DecompositionBuilder, node: Node) -> tuple[Value, ...]:
    """A softmax's is y (dy - sum(dy y)), dy - exp(y) sum(dy) of its logarithm."""
    dy, y = node.inputs
    axis = node.attrs.get("axis", -1) % len(y.type.shape)
    row = TensorType((*y.type.shape[:axis], 1, *y.type.shape[axis + 1 :]), y.type.dtype)
    attrs = {"axes": (axis,), "keepdims": True}
    if node.op == "softmax_backward":
        total = b.emit("reduce_sum", [b.emit("mul", [dy, y], y.type)], row, attrs)
        return (b.emit("mul", [y, b.emit("sub", [dy, total], y.type)], node.outputs[0].type),)
    total = b.emit("reduce_sum", [dy], row, attrs)
    spread = b.emit("mul", [b.emit("exp", [y], y.type), total], y.type)
    return (b.emit("sub", [dy, spread], node.outputs[0].type),)


def _saves_result(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None]
    operands = [grads[0], node.outputs[0]]
    return b.emit(node, f"{node.op}_backward", operands, [node.inputs[0].type], node.attrs)


# --- layer norm and RMS norm: over the last `rank` dims -------------------------------------------------


def _row_dims(x: TensorType, rank: int) -> tuple[list[Dim], list[Dim], dict[str, int]]:
    dims: list[Dim] = [(f"i{i}",) for i in range(len(x.shape))]
    cut = len(dims) - rank
    return dims[:cut], dims[cut:], {f"i{i}": n for i, n in enumerate(x.shape)}


def _layer_norm_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`... d, d, d -> ... d, ..., ...`: the result, and per row the mean and the inverse deviation."""
    rows, norm, sizes = _row_dims(inputs[0], attrs.get("rank", 1))
    x = (*rows, *norm)
    fixed = frozenset(d[0] for d in norm)
    stats = [tuple(rows)] * (len(outputs) - 1)
    return Equation((x, *[tuple(norm)] * (len(inputs) - 1)), (x, *stats), sizes, fixed, None)


def _layer_norm_backward_equation(
    inputs: Types, outputs: Types, attrs: Mapping[str, Any]
) -> Equation:
    """`... d, ... d, ..., d -> ... d, d, d`: the weights' gradients sum over the rows."""
    rows, norm, sizes = _row_dims(inputs[0], attrs.get("rank", 1))
    x, stat, w = (*rows, *norm), tuple(rows), tuple(norm)
    operands = (x, x, *[stat if i < attrs["statistics"] else w for i in range(len(inputs) - 2)])
    results = (x, *[w] * (len(outputs) - 1))
    return Equation(operands, results, sizes, frozenset(d[0] for d in norm))


def _layer_norm(node: Node, x: Array, *weights: Array) -> tuple[Array, ...]:
    axes = tuple(range(-node.attrs.get("rank", 1), 0))
    mean = x.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + node.attrs.get("eps", 1e-5))
    y = (x - mean) * inverse
    if weights:
        y = y * weights[0]
    if len(weights) > 1:
        y = y + weights[1]
    return (y, mean.squeeze(axes), inverse.squeeze(axes))[: len(node.outputs)]


def _rms_norm(node: Node, x: Array, *weights: Array) -> tuple[Array, ...]:
    axes = tuple(range(-node.attrs.get("rank", 1), 0))
    inverse = 1 / np.sqrt((x * x).mean(axis=axes, keepdims=True) + node.attrs.get("eps", 1e-6))
    y = x * inverse
    if weights:
        y = y * weights[0]
    return (y, inverse.squeeze(axes))[: len(node.outputs)]


def _norm_backward(node: Node, dy: Array, x: Array, *rest: Array) -> tuple[Array, ...]:
    """Statistics that the forward pass did not save are taken again."""
    rank, statistics = node.attrs.get("rank", 1), node.attrs["statistics"]
    axes = tuple(range(-rank, 0))
    centred = node.op == "layer_norm_backward"
    stats = [s.reshape(s.shape + (1,) * rank) for s in rest[:statistics]]
    weights = rest[statistics:]
    centre = x.mean(axis=axes, keepdims=True) if centred else 0.0
    if stats:
        inverse = stats[-1]
    else:
        square = ((x - centre) ** 2).mean(axis=axes, keepdims=True)
        inverse = 1 / np.sqrt(square + node.attrs.get("eps", 1e-5 if centred else 1e-6))
    xhat = (x - centre) * inverse
    g = dy * weights[0] if weights else dy
    dx = g - xhat * (g * xhat).mean(axis=axes, keepdims=True)
    if centred:
        dx = dx - g.mean(axis=axes, keepdims=True)
    rows = tuple(range(dy.ndim - rank))
    return (dx * inverse, (dy * xhat).sum(axis=rows), dy.sum(axis=rows))[: len(node.outputs)]


def _norm_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None] * len(node.inputs)
    x, *weights = node.inputs
    attrs = {**node.attrs, "statistics": len(node.outputs) - 1}
    attrs.pop("equation", None)
    operands = [grads[0], x, *node.outputs[1:], *weights[:1]]
    return b.emit(node, f"{node.op}_backward", operands, [v.type for v in node.inputs], attrs)


# --- group norm and batch norm: x[n, c, ...] -------------------------------------------------------------


def _channel_dims(x: TensorType, groups: int) -> tuple[tuple[Dim, ...], dict[str, int]]:
    space: list[Dim] = [(f"x{i}",) for i in range(len(x.shape) - 2)]
    sizes = {"n": x.shape[0], "g": groups, "c": x.shape[1] // groups}
    sizes |= {f"x{i}": n for i, n in enumerate(x.shape[2:])}
    return (("n",), ("g", "c"), *space), sizes


def _group_norm_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`n (g c) x, (g c), (g c) -> n (g c) x, n g, n g`: whole groups can be split.

    The last two results are mean and inverse deviation, where asked for. Instance norm has c = 1. The
    backward operator has the same dims; its weights' gradients sum over n.
    """
    x, sizes = _channel_dims(inputs[0], attrs["groups"])
    fixed = frozenset({"c", *(d[0] for d in x[2:])})

    def dims(t: TensorType) -> tuple[Dim, ...]:
        if t.shape == inputs[0].shape:
            return x
        return (("g", "c"),) if len(t.shape) == 1 else (("n",), ("g",))

    operands, results = tuple(map(dims, inputs)), tuple(map(dims, outputs))
    reduction = "sum" if any(len(t.shape) == 1 for t in outputs) else None
    return Equation(operands, results, sizes, fixed, reduction)


def _batch_norm_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`n c x, c, c -> n c x`: statistics over n and x; at inference elementwise.

    A device that holds part of n has statistics of its own; the backward operator's weight gradients sum.
    """
    reduction = "sum" if "statistics" in attrs else None
    x, sizes = _channel_dims(inputs[0], inputs[0].shape[1])
    del sizes["c"]
    x = (x[0], ("g",), *x[2:])
    space = {"n", *(d[0] for d in x[2:])}
    operands = tuple(x if t.shape == inputs[0].shape else (("g",),) for t in inputs)
    results = tuple(x if t.shape == inputs[0].shape else (("g",),) for t in outputs)
    if not attrs.get("training"):
        return Equation(operands, results, sizes, frozenset(), reduction)
    return replace(
        Equation(operands, results, sizes, frozenset(space - {"n"}), reduction),
        statistics=frozenset({"n"}),
    )


def _per_channel(v: Array, x: Array) -> Array:
    return v.reshape((1, -1) + (1,) * (x.ndim - 2))


def _group_statistics(node: Node, split: Array) -> tuple[Array, Array]:
    """Mean and inverse deviation [n, g, 1] of split[n, g, ...]."""
    variance = split.var(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(variance + node.attrs.get("eps", 1e-5))
    return split.mean(axis=-1, keepdims=True), inverse


def _group_norm(node: Node, x: Array, *weights: Array) -> tuple[Array, ...]:
    split = x.reshape(x.shape[0], node.attrs["groups"], -1)
    mean, inverse = _group_statistics(node, split)
    y = ((split - mean) * inverse).reshape(x.shape)
    for i, w in enumerate(weights):
        y = y * _per_channel(w, x) if i == 0 else y + _per_channel(w, x)
    return (y, mean[..., 0], inverse[..., 0])[: len(node.outputs)]


def _group_norm_backward(node: Node, dy: Array, x: Array, *rest: Array) -> tuple[Array, ...]:
    """Operands: gradient, x, the saved statistics (attribute `statistics` of them), the weight if any."""
    shape = (x.shape[0], node.attrs["groups"], -1)
    saved, weights = rest[: node.attrs["statistics"]], rest[node.attrs["statistics"] :]
    split = x.reshape(shape)
    if len(saved) == 2:
        mean, inverse = (s[..., None] for s in saved)
    else:
        mean, inverse = _group_statistics(node, split)
    xhat = (split - mean) * inverse
    g = (dy * _per_channel(weights[0], x) if weights else dy).reshape(shape)
    dx = g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True)
    axes = (0, *range(2, x.ndim))
    dw = (dy * xhat.reshape(x.shape)).sum(axis=axes)
    return ((dx * inverse).reshape(x.shape), dw, dy.sum(axis=axes))[: len(node.outputs)]


def _batch_norm(node: Node, x: Array, *rest: Array) -> tuple[Array, ...]:
    """Operands x, weight, bias, and at inference the running mean and variance."""
    weight, bias = rest[:2]
    if node.attrs.get("training"):
        axes = (0, *range(2, x.ndim))
        mean, variance = x.mean(axis=axes), x.var(axis=axes)
    else:
        mean, variance = rest[2:4]
    inverse = 1 / np.sqrt(variance + node.attrs.get("eps", 1e-5))
    y = (x - _per_channel(mean, x)) * _per_channel(inverse * weight, x) + _per_channel(bias, x)
    return (y, mean, inverse)[: len(node.outputs)]


def _channel_norm_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """Reads the operand again; the statistics are small.

    A batch norm's are per channel: the batch's own in training, the running ones at inference.
    """
    if grads[0] is None:
        return [None] * len(node.inputs)
    x, *rest = node.inputs
    weights, statistics = rest[:2], [*node.outputs[1:], *rest[2:]]
    operands = [grads[0], x, *statistics, *weights[:1]]
    attrs = {k: v for k, v in node.attrs.items() if k != "equation"}
    attrs["statistics"] = len(statistics)
    types = [x.type, *(w.type for w in weights)]
    results = b.emit(node, f"{node.op}_backward", operands, types, attrs)
    return [*results, *[None] * (len(node.inputs) - len(results))]


def _batch_norm_backward(
    node: Node, dy: Array, x: Array, mean: Array, spread: Array, weight: Array
) -> tuple[Array, ...]:
    """`spread` is the batch's inverse deviation in training, the running variance at inference."""
    axes = (0, *range(2, x.ndim))
    training = node.attrs.get("training")
    inverse = spread if training else 1 / np.sqrt(spread + node.attrs.get("eps", 1e-5))
    xhat = (x - _per_channel(mean, x)) * _per_channel(inverse, x)
    dw, db = (dy * xhat).sum(axis=axes), dy.sum(axis=axes)
    dx = dy
    if training:
        count = x.size / x.shape[1]
        dx = dy - (_per_channel(db, x) + xhat * _per_channel(dw, x)) / count
    return dx * _per_channel(inverse * weight, x), dw, db


def _norm(name: str, equation: Any, flops: float, **extra: Any) -> OpDef:
    return OpDef(name, "normalization", equation, flops=flops, **extra)


def _row_norm(name: str, flops: float, backward_flops: float, evaluate: Any) -> tuple[OpDef, OpDef]:
    forward = _norm(
        name,
        _layer_norm_equation,
        flops,
        gradient=_norm_gradient,
        evaluate=evaluate,
        decompose_norm=norm_in_parts,
    )
    backward = _norm(
        f"{name}_backward",
        _layer_norm_backward_equation,
        backward_flops,
        evaluate=_norm_backward,
        decompose_norm=norm_backward_in_parts,
        eager_kernels=eager_kernels.row_norm_backward,
    )
    return forward, backward


register(
    _norm(
        "softmax",
        _softmax_equation,
        7,
        gradient=_saves_result,
        evaluate=_softmax,
        decompose=_decompose_softmax,
    ),
    _norm(
        "softmax_backward",
        _softmax_equation,
        4,
        evaluate=_softmax_backward,
        decompose=_decompose_softmax_backward,
        eager_kernels=eager_kernels.softmax_backward,
    ),
    _norm(
        "log_softmax",
        _softmax_equation,
        7,
        gradient=_saves_result,
        evaluate=lambda node, x: np.log(_softmax(node, x)),
        decompose=_decompose_softmax,
    ),
    _norm(
        "log_softmax_backward",
        _softmax_equation,
        7,
        evaluate=_log_softmax_backward,
        decompose=_decompose_softmax_backward,
    ),
    *_row_norm("layer_norm", 8, 14, _layer_norm),
    *_row_norm("rms_norm", 5, 11, _rms_norm),
    # Attribute `groups`.
    _norm(
        "group_norm",
        _group_norm_equation,
        8,
        gradient=_channel_norm_gradient,
        evaluate=_group_norm,
        eager_kernels=eager_kernels.group_norm,
        localize=localize_groups,
    ),
    _norm(
        "group_norm_backward",
        _group_norm_equation,
        14,
        evaluate=_group_norm_backward,
        eager_kernels=eager_kernels.group_norm_backward,
        localize=localize_groups,
    ),
    # Attribute `training`; its results are then also the batch's mean and inverse deviation.
    _norm(
        "batch_norm", _batch_norm_equation, 4, gradient=_channel_norm_gradient, evaluate=_batch_norm
    ),
    _norm("batch_norm_backward", _batch_norm_equation, 10, evaluate=_batch_norm_backward),
)
