"""Rarely used operators of onnxruntime (domain com.microsoft): transforms, crops, number formats.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import RULES, Emitter, known_ints, required, rule
from importers.onnx_ops.microsoft import MICROSOFT, matmul_types
from importers.onnx_ops.signal import by_bytes
from importers.onnx_values import OnnxNode, dtype_of


@rule("Rfft", "Irfft", domain=MICROSOFT)
def real_fourier(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A Fourier transform of the last `signal_ndim` dims; complex numbers are pairs in a dim of their own."""
    x, out = e.at(node, 0), e.result_type(node)
    count = node.attributes.get("signal_ndim", 1)
    signal = out.shape if node.op_type == "Irfft" else x.type.shape
    return [e.emit(node, "fft", [x], out, {"points": max(prod(signal[-count:]), 1), "rows": 1})]


@rule("BitmaskDropout", "BitmaskBiasDropout", domain=MICROSOFT)
def bitmask_dropout(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Nothing in inference, besides a bias and a skip connection; the mask has a bit per element."""
    x = e.at(node, 0)
    if node.op_type == "BitmaskBiasDropout":
        x = e.add_bias(node, x, node.input(1))
        if node.input(2) is not None:
            x = e.emit(node, "add", [x, e.at(node, 2)], x.type, {"epilogue": True}, "skip")
    mask = (
        e.emit(node, "fill", [], e.result_type(node, 1), None, "mask") if node.output(1) else None
    )
    return [x, mask]


@rule("ReduceSumInteger", domain=MICROSOFT)
def integer_sum(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Sums of small integers, over `axes`."""
    attrs = {"axes": _axes(node), "keepdims": bool(node.attributes.get("keepdims", 1))}
    return [e.emit(node, "reduce_sum", [e.at(node, 0)], e.result_type(node), attrs)]


def _axes(node: OnnxNode) -> tuple[int, ...]:
    rank = len(required(node, 0).shape)
    axes = node.attributes.get("axes") or range(rank)
    return tuple(sorted({a % max(rank, 1) for a in axes}))


@rule("CropAndResize", domain=MICROSOFT)
def crop_and_resize(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Boxes cut out of an image, each element a mix of its neighbours."""
    mode = node.attributes.get("mode", b"bilinear")
    kind = "nearest" if mode in (b"nearest", "nearest") else "linear"
    return [e.emit(node, "interpolate", e.operands(node)[:2], e.result_type(node), {"mode": kind})]


@rule("UnfoldTensor", "SampleOp", "QuantizeBFP", "DequantizeBFP", domain=MICROSOFT)
def moved(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Elements in another order, or another number format."""
    return by_bytes(e, node)


@rule("SparseToDenseMatMul", domain=MICROSOFT)
def sparse_matmul(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A product whose first operand is mostly zeros: at most what the dense one costs."""
    return RULES[(MICROSOFT, "FusedMatMul")](e, node)


def _fourier_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    if node.op_type == "Rfft":
        return [x.with_shape((*x.shape[:-1], x.shape[-1] // 2 + 1, 2))]
    return [x.with_shape((*x.shape[:-2], 2 * (x.shape[-2] - 1)))]


def _bitmask_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    return [x, TensorType((-(-x.elements // 32),), DType.UINT32)]


def _sum_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, axes = required(node, 0).type, _axes(node)
    keep = node.attributes.get("keepdims", 1)
    dims = [1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes]
    return [TensorType(tuple(dims), DType.INT32)]


def _crop_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, size = required(node, 0).type, known_ints(node.input(3))
    if size is None:
        return [None]
    return [x.with_shape((required(node, 1).shape[0], x.shape[1], *size))]


def _unfold_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, size = required(node, 0).type, node.attributes["size"]
    axis = node.attributes.get("dim", -1) % max(len(x.shape), 1)
    places = (x.shape[axis] - size) // max(node.attributes.get("step", 1), 1) + 1
    return [x.with_shape((*x.shape[:axis], places, *x.shape[axis + 1 :], size))]


def _block_float_types(node: OnnxNode) -> Sequence[TensorType | None]:
    """Nine bits a number: 8 of its own and 16 shared bits for each 16 numbers, at most."""
    x, ints = required(node, 0).type, TensorType((len(required(node, 0).shape),), DType.INT64)
    if node.op_type == "QuantizeBFP":
        return [TensorType((-(-x.elements * 9 // 8),), DType.UINT8), ints, ints]
    shape = known_ints(node.input(1))
    return [None if shape is None else TensorType(shape, dtype_of(node.attributes.get("dtype", 1)))]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, name): types
    for name, types in {
        "Rfft": _fourier_types,
        "Irfft": _fourier_types,
        "BitmaskDropout": _bitmask_types,
        "BitmaskBiasDropout": _bitmask_types,
        "ReduceSumInteger": _sum_types,
        "CropAndResize": _crop_types,
        "UnfoldTensor": _unfold_types,
        "SampleOp": same_as_first,
        "QuantizeBFP": _block_float_types,
        "DequantizeBFP": _block_float_types,
        "SparseToDenseMatMul": matmul_types,
    }.items()
}
