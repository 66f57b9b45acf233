"""onnxruntime's quantised operators (domain com.microsoft): integers in, integers or floats out.

Each is one kernel: it computes on wider sums and rescales them before it writes. The records say so: the
operator itself, then a rescaling that is its epilogue.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.equation import bind
from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.channels_last import (
    as_channels_first,
    back,
    conv_types,
    global_types,
    pool_types,
)
from importers.onnx_ops.contraction import emit_matmul
from importers.onnx_ops.convolution import window_attributes
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import RULES, Emitter, broadcast_shape, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_ops.quantized import requantize
from importers.onnx_values import OnnxNode

_PAIRS: Mapping[str, str] = {"QLinearAdd": "add", "QLinearMul": "mul"}
_UNARY: Mapping[str, str] = {
    "QLinearSigmoid": "sigmoid",
    "QLinearLeakyRelu": "leaky_relu",
    "QLinearSoftmax": "softmax",
}


@rule(*_PAIRS, domain=MICROSOFT)
def pair(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Operands a, scale, zero, b, scale, zero, scale and zero of the result."""
    out = e.result_type(node)
    wide = out.with_dtype(DType.INT32)
    sums = e.emit(node, _PAIRS[node.op_type], [e.at(node, 0), e.at(node, 3)], wide)
    return [requantize(e, node, sums, out, scale=6, axis=-1)]


@rule(*_UNARY, domain=MICROSOFT)
def unary(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Operands x, scale, zero, scale and zero of the result."""
    x, out = e.at(node, 0), e.result_type(node)
    attrs = {"axis": node.attributes.get("axis", -1)} if node.op_type == "QLinearSoftmax" else {}
    value = e.emit(node, _UNARY[node.op_type], [x], out.with_dtype(DType.FLOAT32), attrs)
    return [requantize(e, node, value, out, scale=3, axis=-1)]


@rule("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT)
def pool(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A mean over windows, or over the whole image."""
    last = bool(node.attributes.get("channels_last", 0))
    inner = as_channels_first(e, node) if last else node
    x, out = e.at(inner, 0), e.result_type(inner)
    wide = out.with_dtype(DType.INT32)
    if node.op_type == "QLinearAveragePool":
        kernel = tuple(node.attributes.get("kernel_shape", (1,)))
        attrs = window_attributes(inner, x.type.shape[2:], out.shape[2:], kernel)
        attrs["kernel"] = kernel
        attrs["count_include_pad"] = bool(node.attributes.get("count_include_pad", 0))
        sums = e.emit(node, "avg_pool", [x], wide, attrs)
    else:
        axes = tuple(range(2, len(x.type.shape)))
        sums = e.emit(node, "reduce_mean", [x], wide, {"axes": axes, "keepdims": True})
    return back(e, node, [requantize(e, node, sums, out, scale=3, axis=1)])


@rule("QLinearReduceMean", domain=MICROSOFT)
def reduce_mean(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A mean over `axes`."""
    x, out = e.at(node, 0), e.result_type(node)
    attrs = {"axes": _axes(node), "keepdims": bool(node.attributes.get("keepdims", 1))}
    sums = e.emit(node, "reduce_mean", [x], out.with_dtype(DType.INT32), attrs)
    return [requantize(e, node, sums, out, scale=3, axis=-1)]


def _axes(node: OnnxNode) -> tuple[int, ...]:
    rank = len(required(node, 0).shape)
    axes = node.attributes.get("axes") or range(rank)
    return tuple(sorted({a % max(rank, 1) for a in axes}))


@rule("QLinearConcat", domain=MICROSOFT)
def concat(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Scale and zero of the result, then a value, scale and zero of each part."""
    parts = [e.operand(v) for v in node.inputs[2::3] if v is not None]
    axis = node.attributes.get("axis", 0) % max(len(parts[0].type.shape), 1)
    return [e.emit(node, "concat", parts, e.result_type(node), {"axis": axis})]


@rule("QLinearWhere", domain=MICROSOFT)
def where(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A condition; x, scale, zero; y, scale, zero; scale and zero of the result."""
    operands = [e.at(node, i) for i in (0, 1, 4)]
    return [e.emit(node, "where", operands, e.result_type(node))]


@rule("QLinearConv", domain=MICROSOFT)
def qlinear_conv(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The standard operator, with images that may have their channels last."""
    last = bool(node.attributes.get("channels_last", 0))
    inner = as_channels_first(e, node) if last else node
    return back(e, node, RULES[("", "QLinearConv")](e, inner))


@rule("QGemm", domain=MICROSOFT)
def qgemm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A, scale, zero, B, scale, zero, C, and scale and zero of the result if it is quantised."""
    a, b, out = e.at(node, 0), e.at(node, 3), e.result_type(node)
    left = "k m" if node.attributes.get("transA") else "m k"
    right = "n k" if node.attributes.get("transB") else "k n"
    equation = bind(f"{left}, {right} -> m n", [a.type.shape, b.type.shape], [out.shape])
    wide = out.with_dtype(DType.INT32)
    sums = e.emit(node, "einsum", [a, b], wide, {"equation": equation})
    sums = e.add_bias(node, sums, node.input(6))
    if node.input(7) is not None:
        return [requantize(e, node, sums, out, scale=7, axis=-1)]
    return [_dequantized(e, node, sums, out, 4)]


def _dequantized(e: Emitter, node: OnnxNode, sums: Value, out: TensorType, *scales: int) -> Value:
    """Integer sums times scales, as floats, in the epilogue of the kernel that made them."""
    operands = [e.at(node, i) for i in scales]
    attrs = {"axis": -1, "epilogue": True}
    value = e.emit(node, "dequantize", [sums, operands[0]], out, attrs, "dequantize")
    for i, scale in enumerate(operands[1:]):
        value = e.emit(node, "mul", [value, scale], out, {"epilogue": True}, f"scale{i}")
    return value


@rule("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_matmul(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A float operand is quantised by its own range, then times B, scale, zero, plus a bias."""
    x, out = e.at(node, 0), e.result_type(node)
    levels, scale, _ = RULES[("", "DynamicQuantizeLinear")](e, node)
    if levels is None or scale is None:
        raise ModelFileError(f"{node.label} cannot be quantised")
    sums = emit_matmul(e, node, levels, e.at(node, 1), out.with_dtype(DType.INT32))
    value = _dequantized(e, node, sums, out, 2)
    scale = e.reshape(node, scale, (), "scale_of_operand")
    value = e.emit(
        node, "mul", [value, scale], x.type.with_shape(out.shape), {"epilogue": True}, "scale"
    )
    return [e.add_bias(node, value, node.input(4))]


@rule("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_to_float(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A, B, scale of A, scale of B, their zeros, a bias."""
    out = e.result_type(node)
    sums = emit_matmul(e, node, e.at(node, 0), e.at(node, 1), out.with_dtype(DType.INT32))
    return [e.add_bias(node, _dequantized(e, node, sums, out, 3, 2), node.input(6))]


@rule("MatMulInteger16", domain=MICROSOFT)
def matmul_integer(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A product of 16-bit integers."""
    return [emit_matmul(e, node, e.at(node, 0), e.at(node, 1))]


@rule("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def quantize(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The standard operators, for more types."""
    return RULES[("", node.op_type)](e, node)


@rule("QuantizeWithOrder", "DequantizeWithOrder", domain=MICROSOFT)
def quantize_with_order(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Quantised or back, with another order of the elements in memory."""
    op = "quantize" if node.op_type.startswith("Q") else "dequantize"
    return [e.emit(node, op, e.operands(node)[:2], e.result_type(node), {"axis": 0})]


@rule("GatherBlockQuantized", domain=MICROSOFT)
def gather_blocks(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Rows of a table of few bits, and of its scales; only what is picked becomes floating point."""
    table, scales = required(node, 0), e.at(node, 2)
    out = e.result_type(node)
    axis = node.attributes.get("gather_axis", 0) % len(table.shape)
    block_axis = node.attributes.get("quantize_axis", 1) % len(table.shape)
    shape, dtype = _unpacked(node)
    whole = table.type.with_shape(shape).with_dtype(dtype)
    data = e.operand(table) if table.type == whole else _packed(e, node, whole)
    index = e.at(node, 1)
    picked = e.emit(node, "gather", [data, index], out.with_dtype(dtype), {"axis": axis}, "rows")
    if scales.type.shape[axis] == shape[axis]:
        rows = (*scales.type.shape[:axis], *index.type.shape, *scales.type.shape[axis + 1 :])
        type_ = scales.type.with_shape(rows)
        scales = e.emit(node, "gather", [scales, index], type_, {"axis": axis}, "scales")
    place = block_axis + (len(index.type.shape) - 1 if block_axis > axis else 0)
    return [e.emit(node, "dequantize", [picked, scales], out, {"axis": place})]


def _packed(e: Emitter, node: OnnxNode, type_: TensorType) -> Value:
    """A weight that the file keeps as bytes, by its true type."""
    return e.builder.add_input(required(node, 0).name, type_, "parameter")


def _unpacked(node: OnnxNode) -> tuple[tuple[int, ...], DType]:
    """Shape and dtype of a table of which bytes hold several numbers along the last dim."""
    table, bits = required(node, 0).type, node.attributes.get("bits", 4)
    if table.dtype.bits != 8 or bits == 8:
        return table.shape, table.dtype
    if bits not in (2, 4):
        raise ModelFileError(f"{node.label} has weights of {bits} bits: 2, 4 or 8 are read")
    return (*table.shape[:-1], table.shape[-1] * (8 // bits)), DType.parse(f"uint{bits}")


@rule("QOrderedMatMul", domain=MICROSOFT)
def ordered_matmul(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A, scale, B, scale, scale of the result, bias, C, scale."""
    a, b, out = e.at(node, 0), e.at(node, 2), e.result_type(node)
    wide = out.with_dtype(DType.INT32)
    if _is_transposed(node):
        sums = e.emit(node, "linear", [a, b], wide)
    else:
        sums = e.emit(node, "matmul", [a, b], wide)
    sums = e.add_bias(node, sums, node.input(5))
    if node.input(6) is not None:
        sums = e.emit(node, "add", [sums, e.at(node, 6)], wide, {"epilogue": True}, "addend")
    return [requantize(e, node, sums, out, scale=4, axis=-1)]


def _is_transposed(node: OnnxNode) -> bool:
    a, b = required(node, 0).shape, required(node, 2).shape
    return node.attributes.get("order_B", 1) == 0 and b[-1] == a[-1]


@rule("QOrderedGelu", domain=MICROSOFT)
def ordered_gelu(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The exact form; x, its scale, the result's scale."""
    x, out = e.at(node, 0), e.result_type(node)
    value = e.emit(node, "gelu", [x], out.with_dtype(DType.FLOAT32))
    return [requantize(e, node, value, out, scale=2, axis=-1)]


@rule("QOrderedLayerNormalization", domain=MICROSOFT)
def ordered_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X, its scale, weight, bias, the result's scale."""
    x, out = e.at(node, 0), e.result_type(node)
    attrs = {"rank": 1, "eps": node.attributes.get("epsilon", 1e-5)}
    weights = [e.operand(v) for v in node.inputs[2:4] if v is not None]
    wide = out.with_dtype(DType.FLOAT32)
    value = e.emit(node, "layer_norm", [x, *weights], wide, attrs)
    return [requantize(e, node, value, out, scale=4, axis=-1)]


def _product_types(node: OnnxNode, second: int, dtype: DType) -> Sequence[TensorType | None]:
    a, b = list(required(node, 0).shape), list(required(node, second).shape)
    if len(a) >= 2 and node.attributes.get("transA"):
        a[-2:] = a[-2:][::-1]
    if len(b) >= 2 and node.attributes.get("transB"):
        b[-2:] = b[-2:][::-1]
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ModelFileError(f"{node.label}: shapes {a} and {b} do not fit")
    return [TensorType((*broadcast_shape(a[:-2], b[:-2]), a[-2], b[-1]), dtype)]


def _pair_types(node: OnnxNode) -> Sequence[TensorType | None]:
    a, b = required(node, 0).type, required(node, 3).type
    return [a.with_shape(broadcast_shape(a.shape, b.shape))]


def _where_types(node: OnnxNode) -> Sequence[TensorType | None]:
    c, x, y = (required(node, i).type for i in (0, 1, 4))
    return [x.with_shape(broadcast_shape(c.shape, x.shape, y.shape))]


def _concat_types(node: OnnxNode) -> Sequence[TensorType | None]:
    parts = [v.type for v in node.inputs[2::3] if v is not None]
    if not parts or not parts[0].shape:
        raise ModelFileError(f"{node.label} has nothing to join")
    axis = node.attributes.get("axis", 0) % len(parts[0].shape)
    total = sum(p.shape[axis] for p in parts)
    return [parts[0].with_shape((*parts[0].shape[:axis], total, *parts[0].shape[axis + 1 :]))]


def _mean_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, axes = required(node, 0).type, _axes(node)
    if node.attributes.get("keepdims", 1):
        return [x.with_shape(tuple(1 if i in axes else n for i, n in enumerate(x.shape)))]
    return [x.with_shape(tuple(n for i, n in enumerate(x.shape) if i not in axes))]


def _by_layout(types: Callable[..., Sequence[TensorType | None]]) -> Callable[..., Any]:
    return lambda node: types(node, last=bool(node.attributes.get("channels_last", 0)))


def _qlinear_conv_types(node: OnnxNode) -> Sequence[TensorType | None]:
    (out,) = conv_types(node, 3, last=bool(node.attributes.get("channels_last", 0)))
    zero = node.input(7)
    return [out if out is None or zero is None else out.with_dtype(zero.dtype)]


def _qgemm_types(node: OnnxNode) -> Sequence[TensorType | None]:
    zero = node.input(8)
    if node.input(7) is None:
        return _product_types(node, 3, required(node, 1).dtype)
    return _product_types(node, 3, zero.dtype if zero is not None else required(node, 0).dtype)


def _gather_types(node: OnnxNode) -> Sequence[TensorType | None]:
    shape, _ = _unpacked(node)
    axis = node.attributes.get("gather_axis", 0) % len(shape)
    picked = (*shape[:axis], *required(node, 1).shape, *shape[axis + 1 :])
    return [TensorType(picked, required(node, 2).dtype)]


def _ordered_matmul_types(node: OnnxNode) -> Sequence[TensorType | None]:
    a, b = required(node, 0).type, required(node, 2).shape
    return [a.with_shape((*a.shape[:-1], b[0] if _is_transposed(node) else b[-1]))]


def _quantized_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, zero = required(node, 0).type, node.input(2)
    if node.op_type == "DequantizeLinear":
        return [x.with_dtype(required(node, 1).dtype)]
    return [x.with_dtype(zero.dtype if zero is not None else DType.UINT8)]


def _ordered_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    if node.op_type == "QuantizeWithOrder":
        return [x.with_dtype(DType.INT8)]
    from importers.onnx_values import dtype_of

    return [x.with_dtype(dtype_of(node.attributes.get("to", 1)))]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, name): types
    for name, types in {
        **dict.fromkeys(_PAIRS, _pair_types),
        **dict.fromkeys((*_UNARY, "QOrderedGelu", "QOrderedLayerNormalization"), same_as_first),
        "QLinearAveragePool": _by_layout(pool_types),
        "QLinearGlobalAveragePool": _by_layout(global_types),
        "QLinearReduceMean": _mean_types,
        "QLinearConcat": _concat_types,
        "QLinearWhere": _where_types,
        "QLinearConv": _qlinear_conv_types,
        "QGemm": _qgemm_types,
        "DynamicQuantizeMatMul": lambda node: _product_types(node, 1, required(node, 0).dtype),
        "MatMulIntegerToFloat": lambda node: _product_types(node, 1, required(node, 2).dtype),
        "MatMulInteger16": lambda node: _product_types(node, 1, DType.INT32),
        "QuantizeLinear": _quantized_types,
        "DequantizeLinear": _quantized_types,
        "QuantizeWithOrder": _ordered_types,
        "DequantizeWithOrder": _ordered_types,
        "GatherBlockQuantized": _gather_types,
        "QOrderedMatMul": _ordered_matmul_types,
    }.items()
}
