"""Softmax and norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_values import OnnxNode


@rule("Softmax", "LogSoftmax")
def softmax(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Over `axis`; before opset 13 over everything from `axis` on, as one flat dim."""
    x, out = e.at(node, 0), e.result_type(node)
    op = "softmax" if node.op_type == "Softmax" else "log_softmax"
    rank = len(x.type.shape)
    axis = node.attributes.get("axis", -1 if node.version >= 13 else 1)
    axis = axis % rank if rank and axis != rank else max(rank - 1, 0)
    tail = x.type.shape[axis + 1 :]
    if node.version >= 13 or prod(tail) == 1:
        return [e.emit(node, op, [x], out, {"axis": axis})]
    flat = e.reshape(node, x, (*x.type.shape[:axis], prod(x.type.shape[axis:])), "flat")
    result = e.emit(node, op, [flat], flat.type, {"axis": axis})
    return [e.reshape(node, result, out.shape, "unflat")]


@rule("Hardmax")
def hardmax(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """One where the maximum is: costs what a softmax costs."""
    return [e.emit(node, "softmax", [e.at(node, 0)], e.result_type(node), {"axis": -1})]


@rule("BatchNormalization", "SpatialBN")
def batch_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """x, scale, bias and the running mean and variance; in training the batch's own."""
    x, scale, bias = e.at(node, 0), e.at(node, 1), e.at(node, 2)
    eps = node.attributes.get("epsilon", 1e-5)
    out = e.result_type(node)
    if len(x.type.shape) == 1:
        x = e.reshape(node, x, (x.type.shape[0], 1), "column")
    if e.training:
        statistics = scale.type
        types = [out.with_shape(x.type.shape), statistics, statistics]
        attrs = {"eps": eps, "training": True}
        result = e.emit_all(node, "batch_norm", [x, scale, bias], types, attrs)[0]
    else:
        running = [e.at(node, i, "buffer") for i in (3, 4)]
        type_ = out.with_shape(x.type.shape)
        result = e.emit(node, "batch_norm", [x, scale, bias, *running], type_, {"eps": eps})
    # Further results are the running statistics, passed on or updated: a vector per channel.
    statistics_out = [e.at(node, 3 + i % 2, "buffer") for i in range(len(node.outputs) - 1)]
    return [e.reshape(node, result, out.shape), *statistics_out]


def _batch_norm_types(node: OnnxNode) -> Sequence[TensorType | None]:
    vector = required(node, 1).type
    return [required(node, 0).type, *[vector] * (len(node.outputs) or 4)]


@rule("InstanceNormalization")
def instance_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A group norm with one channel per group."""
    x, out = e.at(node, 0), e.result_type(node)
    attrs = {"groups": x.type.shape[1], "eps": node.attributes.get("epsilon", 1e-5)}
    return [e.emit(node, "group_norm", [x, e.at(node, 1), e.at(node, 2)], out, attrs)]


@rule("GroupNormalization")
def group_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Scale and bias per channel (before opset 21 per group)."""
    x, out = e.at(node, 0), e.result_type(node)
    groups = node.attributes["num_groups"]
    attrs = {"groups": groups, "eps": node.attributes.get("epsilon", 1e-5)}
    scale, bias = e.at(node, 1), e.at(node, 2)
    channels = x.type.shape[1]
    if scale.type.shape == (channels,):
        return [e.emit(node, "group_norm", [x, scale, bias], out, attrs)]
    normal = e.emit(node, "group_norm", [x], out, attrs)
    grouped = (x.type.shape[0], groups, channels // groups, *x.type.shape[2:])
    split = e.reshape(node, normal, grouped, "groups")
    spread = (groups, *[1] * (len(grouped) - 2))
    scaled = e.broadcast(node, "mul", [split, e.reshape(node, scale, spread, "scale")], "scaled")
    moved = e.broadcast(node, "add", [scaled, e.reshape(node, bias, spread, "bias")], "shifted")
    return [e.reshape(node, moved, out.shape, "result")]


@rule("LayerNormalization")
def layer_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Over the dims from `axis` on; the saved statistics are per row."""
    x = e.at(node, 0)
    rank = len(x.type.shape) - node.attributes.get("axis", -1) % len(x.type.shape)
    attrs = {"rank": rank, "eps": node.attributes.get("epsilon", 1e-5)}
    if node.output(1) is None and node.output(2) is None:
        return [emit_norm(e, node, "layer_norm", e.operands(node), attrs)]
    wanted = [e.type_of(v.type) if (v := node.output(i)) else None for i in (1, 2)]
    return emit_norm_with_statistics(e, node, e.operands(node), attrs, wanted)


@rule("RMSNormalization")
def rms_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Over the dims from `axis` on."""
    x = e.at(node, 0)
    rank = len(x.type.shape) - node.attributes.get("axis", -1) % len(x.type.shape)
    attrs = {"rank": rank, "eps": node.attributes.get("epsilon", 1e-5)}
    return [emit_norm(e, node, "rms_norm", e.operands(node), attrs)]


def emit_norm(
    e: Emitter,
    node: OnnxNode,
    op: str,
    operands: Sequence[Value],
    attrs: dict[str, int | float],
    label: str = "",
) -> Value:
    """A layer or RMS norm; its weights have the normalised dims, training saves statistics."""
    x, fitted, rows = _norm_operands(e, node, operands, int(attrs["rank"]))
    if not e.training:
        return e.emit(node, op, [x, *fitted], x.type, attrs, label)
    statistics = [x.type.with_shape(rows)] * (2 if op == "layer_norm" else 1)
    return e.emit_all(node, op, [x, *fitted], [x.type, *statistics], attrs, label)[0]


def emit_norm_with_statistics(
    e: Emitter,
    node: OnnxNode,
    operands: Sequence[Value],
    attrs: dict[str, int | float],
    wanted: Sequence[TensorType | None],
) -> list[Value | None]:
    """A layer norm whose mean and inverse deviation are results of the node too."""
    x, fitted, rows = _norm_operands(e, node, operands, int(attrs["rank"]))
    dtype = next((t.dtype for t in wanted if t is not None), x.type.dtype)
    types = [x.type, TensorType(rows, dtype), TensorType(rows, dtype)]
    result, *statistics = e.emit_all(node, "layer_norm", [x, *fitted], types, attrs)
    shaped = [
        e.reshape(node, value, type_.shape, f"statistic{i}") if type_ is not None else None
        for i, (value, type_) in enumerate(zip(statistics, wanted, strict=True))
    ]
    return [result, *shaped]


def _norm_operands(
    e: Emitter, node: OnnxNode, operands: Sequence[Value], rank: int
) -> tuple[Value, list[Value], tuple[int, ...]]:
    """The operand, the weights in the shape of its normalised dims, and its other dims."""
    x, *weights = operands
    cut = len(x.type.shape) - rank
    normal = x.type.shape[cut:]
    fitted = [w if w.type.shape == normal else _fitted(e, node, w, normal) for w in weights]
    return x, fitted, x.type.shape[:cut]


def _fitted(e: Emitter, node: OnnxNode, weight: Value, shape: Sequence[int]) -> Value:
    target = tuple(shape)
    if weight.type.elements == prod(target):
        return e.reshape(node, weight, target, "weight")
    return e.emit(node, "expand", [weight], weight.type.with_shape(target), None, "weight")


@rule("MeanVarianceNormalization")
def mean_variance_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """(x - mean) / deviation over `axes`: those dims moved last and normalised as one."""
    x, out = e.at(node, 0), e.result_type(node)
    rank = len(x.type.shape)
    axes = [a % rank for a in node.attributes.get("axes", [0, 2, 3]) if -rank <= a < rank]
    perm = [i for i in range(rank) if i not in axes] + axes
    moved = e.transpose(node, x, perm, "to_rows")
    normal = emit_norm(e, node, "layer_norm", [moved], {"rank": len(axes), "eps": 1e-9})
    back = [perm.index(i) for i in range(rank)]
    return [e.reshape(node, e.transpose(node, normal, back, "from_rows"), out.shape)]


@rule("LpNormalization")
def lp_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X over its norm along one axis."""
    x = e.at(node, 0)
    axis = node.attributes.get("axis", -1) % len(x.type.shape)
    shape = (*x.type.shape[:axis], 1, *x.type.shape[axis + 1 :])
    attrs = {"axes": (axis,), "keepdims": True}
    norm = e.emit(node, "reduce_norm", [x], x.type.with_shape(shape), attrs, "norm")
    return [e.emit(node, "div", [x, norm], x.type)]


@rule("LRN")
def lrn(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X over a power of the squares' mean in `size` neighbouring channels."""
    x = e.at(node, 0)
    attrs = {
        "size": node.attributes["size"],
        "alpha": node.attributes.get("alpha", 1e-4),
        "beta": node.attributes.get("beta", 0.75),
        "bias": node.attributes.get("bias", 1.0),
    }
    return [e.emit(node, "local_response_norm", [x], x.type, attrs)]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    ("", "BatchNormalization"): _batch_norm_types,
}
