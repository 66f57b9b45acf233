"""Quantised operators of the standard domain: they compute in integers, then rescale."""

from __future__ import annotations

from collections.abc import Sequence

from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.contraction import emit_matmul
from importers.onnx_ops.convolution import window_attributes
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_values import OnnxNode


@rule("QuantizeLinear", "DequantizeLinear")
def quantize(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Per tensor, per slice of `axis`, or per block along it."""
    x, out = e.at(node, 0, _weight_kind(node)), e.result_type(node)
    attrs = {"axis": node.attributes.get("axis", 1)}
    if node.attributes.get("block_size"):
        attrs["block_size"] = node.attributes["block_size"]
    op = "quantize" if node.op_type == "QuantizeLinear" else "dequantize"
    return [e.emit(node, op, [x, *e.operands(node)[1:]], out, attrs)]


def _weight_kind(node: OnnxNode):  # type: ignore[no-untyped-def]
    value = required(node, 0)
    return "parameter" if value.origin == "weight" and value.type.elements > 1 else None


@rule("DynamicQuantizeLinear")
def dynamic_quantize(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Finds the largest and smallest element, then quantises."""
    x = e.at(node, 0)
    axes = {"axes": tuple(range(len(x.type.shape))), "keepdims": False}
    scalar = x.type.with_shape(())
    high = e.emit(node, "reduce_max", [x], scalar, axes, "max")
    low = e.emit(node, "reduce_min", [x], scalar, axes, "min")
    scale = e.emit(node, "sub", [high, low], scalar, None, "scale")
    zero_type = TensorType((), DType.UINT8)
    zero = e.emit(node, "cast", [low], zero_type, None, "zero_point")
    levels = e.emit(node, "quantize", [x, scale], x.type.with_dtype(DType.UINT8), {"axis": 0})
    return [levels, scale, zero]


@rule("MatMulInteger")
def matmul_integer(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Integer product; the zero points' share is a correction of the sums and costs no product."""
    return [emit_matmul(e, node, e.at(node, 0, _weight_kind(node)), e.at(node, 1))]


@rule("ConvInteger")
def conv_integer(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Integer convolution."""
    return [_conv(e, node, e.at(node, 0), e.at(node, 1), e.result_type(node))]


def _conv(e: Emitter, node: OnnxNode, x: Value, weight: Value, out: TensorType) -> Value:
    attrs = window_attributes(node, x.type.shape[2:], out.shape[2:], weight.type.shape[2:])
    attrs["groups"] = node.attributes.get("group", 1)
    return e.emit(node, "conv", [x, weight], out, attrs)


@rule("QLinearConv")
def qlinear_conv(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Operands x, scale, zero, w, scale, zero, scale and zero of the result, bias."""
    out = e.result_type(node)
    sums = _conv(e, node, e.at(node, 0), e.at(node, 3), out.with_dtype(DType.INT32))
    sums = e.add_bias(node, sums, node.input(8), channel=1)
    return [requantize(e, node, sums, out, scale=6, axis=1)]


@rule("QLinearMatMul")
def qlinear_matmul(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Operands a, scale, zero, b, scale, zero, scale and zero of the result."""
    out = e.result_type(node)
    sums = emit_matmul(e, node, e.at(node, 0), e.at(node, 3), out.with_dtype(DType.INT32))
    return [requantize(e, node, sums, out, scale=6, axis=-1)]


def requantize(
    e: Emitter, node: OnnxNode, sums: Value, out: TensorType, *, scale: int, axis: int
) -> Value:
    """Sums back to few bits, as the epilogue of the kernel that made them."""
    scales = [e.at(node, i) for i in (scale, scale + 1) if node.input(i) is not None]
    attrs = {"axis": axis, "epilogue": True}
    return e.emit(node, "quantize", [sums, *scales], out, attrs, "requantize")
