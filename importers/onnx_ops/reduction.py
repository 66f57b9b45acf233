"""Reductions, pooling, top-k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.convolution import window_attributes
from importers.onnx_ops.emitter import Emitter, known_ints, rule
from importers.onnx_values import OnnxNode

# Operator -> (function before, reduction, function after).
_REDUCE: Mapping[str, tuple[str, str, str]] = {
    "ReduceSum": ("", "reduce_sum", ""),
    "ReduceMean": ("", "reduce_mean", ""),
    "ReduceMax": ("", "reduce_max", ""),
    "ReduceMin": ("", "reduce_min", ""),
    "ReduceProd": ("", "reduce_prod", ""),
    "ReduceL1": ("abs", "reduce_sum", ""),
    "ReduceL2": ("", "reduce_norm", ""),
    "ReduceLogSum": ("", "reduce_sum", "log"),
    "ReduceLogSumExp": ("exp", "reduce_sum", "log"),
    "ReduceSumSquare": ("square", "reduce_sum", ""),
}


@rule(*_REDUCE)
def reduce_(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Over `axes` (an attribute, later an operand), or over everything."""
    x, out = e.at(node, 0), e.result_type(node)
    before, op, after = _REDUCE[node.op_type]
    axes = _axes(node, x.type.shape, out.shape)
    if not axes:
        return [x]
    if before == "square":
        x = e.emit(node, "mul", [x, x], x.type, None, "square")
    elif before:
        x = e.emit(node, before, [x], x.type, None, before)
    attrs = {"axes": axes, "keepdims": bool(node.attributes.get("keepdims", 1))}
    result = e.emit(node, op, [x], out, attrs)
    return [e.emit(node, after, [result], out, None, after) if after else result]


def _axes(node: OnnxNode, shape: Sequence[int], result: Sequence[int]) -> tuple[int, ...]:
    axes = node.attributes.get("axes")
    given = node.input(1)
    if axes is None and given is not None:
        axes = known_ints(given)
        if axes is None:
            return _axes_from_shapes(shape, result)
    if axes is None or len(axes) == 0:
        return () if node.attributes.get("noop_with_empty_axes") else tuple(range(len(shape)))
    return tuple(sorted(a % max(len(shape), 1) for a in axes))


def _axes_from_shapes(shape: Sequence[int], result: Sequence[int]) -> tuple[int, ...]:
    """Axes that the data names: those whose dim is gone, or 1, in the result."""
    if len(shape) == len(result):
        return tuple(i for i, (n, m) in enumerate(zip(shape, result, strict=True)) if n != m)
    axes, kept = [], 0
    for i, n in enumerate(shape):
        if kept < len(result) and result[kept] == n:
            kept += 1
        else:
            axes.append(i)
    return tuple(axes)


@rule("MaxPool", "AveragePool", "LpPool")
def pool(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A window slides over each channel; MaxPool may return where the maxima were."""
    x, out = e.at(node, 0), e.result_type(node)
    kernel = tuple(node.attributes.get("kernel_shape", (1,)))
    attrs: dict[str, Any] = window_attributes(node, x.type.shape[2:], out.shape[2:], kernel)
    attrs["kernel"] = kernel
    op = "max_pool" if node.op_type == "MaxPool" else "avg_pool"
    if op == "avg_pool":
        attrs["count_include_pad"] = bool(node.attributes.get("count_include_pad", 0))
    types = [out, *(e.type_of(v.type) for v in node.outputs[1:] if v is not None)]
    return list(e.emit_all(node, op, [x], types, attrs))


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A reduction over all spatial dims."""
    x, out = e.at(node, 0), e.result_type(node)
    op = {"GlobalAveragePool": "reduce_mean", "GlobalMaxPool": "reduce_max"}.get(
        node.op_type, "reduce_norm"
    )
    axes = tuple(range(2, len(x.type.shape)))
    if not axes:
        return [x]
    return [e.emit(node, op, [x], out, {"axes": axes, "keepdims": True})]


@rule("MaxUnpool", "MaxRoiPool")
def unpool(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Elements are placed, or picked, where an operand says."""
    op = "scatter_nd" if node.op_type == "MaxUnpool" else "gather_nd"
    return [e.emit(node, op, e.operands(node)[:2], e.result_type(node))]


@rule("ArgMax", "ArgMin")
def arg(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The index of the extreme along an axis."""
    x, out = e.at(node, 0), e.result_type(node)
    axis = node.attributes.get("axis", 0) % max(len(x.type.shape), 1)
    row = (*x.type.shape[:axis], *x.type.shape[axis + 1 :])
    op = "argmax" if node.op_type == "ArgMax" else "argmin"
    result = e.emit(node, op, [x], TensorType(row, out.dtype), {"axis": axis})
    return [e.reshape(node, result, out.shape, "keepdims")]


@rule("TopK")
def topk(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The largest values along an axis, and their indices."""
    x = e.at(node, 0)
    out = e.result_type(node)
    axis = node.attributes.get("axis", -1) % len(x.type.shape)
    index = node.output(1)
    types = [out, out.with_dtype(index.dtype)] if index is not None else [out]
    results = e.emit_all(node, "topk", [x], types, {"axis": axis})
    return [*results, *[None] * (len(node.outputs) - len(results))]
