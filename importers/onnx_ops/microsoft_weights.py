"""onnxruntime's products with weights of few bits, and what it fuses with them (domain com.microsoft).

A weight counts its true bits, whatever it is packed in.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.emitter import Emitter, known_ints, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_ops.microsoft_recurrences import text
from importers.onnx_ops.normalization import emit_norm
from importers.onnx_values import OnnxNode, OnnxValue

_BITS: Mapping[int, DType] = {2: DType.UINT2, 4: DType.UINT4, 8: DType.UINT8}


def emit_product(
    e: Emitter,
    node: OnnxNode,
    x: Value,
    weight: int,
    type_: TensorType,
    scales: Sequence[int],
    bias: int,
    label: str = "",
) -> Value:
    """x[..., k] times the weight [n, k] that operand `weight` holds, rescaled, plus a bias."""
    tag = f"{label}." if label else ""
    matrix = unpacked(e, required(node, weight), type_)
    out = x.type.with_shape((*x.type.shape[:-1], type_.shape[0]))
    result = e.emit(node, "linear", [x, matrix], out, None, label)
    factors = [e.at(node, i) for i in scales if node.input(i) is not None]
    if factors:
        attrs = {"epilogue": True}
        result = e.emit(node, "apply_scales", [result, *factors], out, attrs, f"{tag}scales")
    if node.input(bias) is not None:
        operands = [result, e.at(node, bias)]
        result = e.emit(node, "add", operands, out, {"epilogue": True}, f"{tag}bias")
    return result


def unpacked(e: Emitter, packed: OnnxValue, type_: TensorType) -> Value:
    """A weight by its true type, made once however many nodes read it."""
    found = e.shared(packed)
    if found is None or found.type != type_:
        found = e.builder.add_input(packed.name, type_, "parameter")
        e.define(packed, found)
    return found


def weight_dtype(node: OnnxNode) -> DType:
    """The type of packed integer weights.

    Raises:
        ModelFileError: the file gives them a width that no operator has.
    """
    bits = node.attributes.get("bits", 4)
    if bits not in _BITS:
        raise ModelFileError(f"{node.label} has weights of {bits} bits: 2, 4 or 8 are read")
    return _BITS[bits]


@rule("MatMulNBits", "MatMulBnb4", domain=MICROSOFT)
def matmul_bits(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """x[..., k] times a packed low-bit weight [n, k], which is rescaled block by block."""
    shape = (node.attributes["N"], node.attributes["K"])
    dtype = DType.FLOAT4_E2M1 if node.op_type == "MatMulBnb4" else weight_dtype(node)
    return [emit_product(e, node, e.at(node, 0), 1, TensorType(shape, dtype), [2, 3], 5)]


@rule("MatMulNBitsQkv", "MatMulNBitsMlp", domain=MICROSOFT)
def several_products(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Perhaps a sum and an RMS norm, then products of one operand with two or three weights."""
    x = e.at(node, 0)
    total: Value | None = None
    if node.input(1) is not None:
        x = total = e.emit(node, "add", [x, e.at(node, 1)], x.type, None, "sum")
    if node.input(2) is not None:
        attrs = {"rank": 1, "eps": node.attributes.get("epsilon", 1e-5)}
        x = emit_norm(e, node, "rms_norm", [x, e.at(node, 2)], attrs, "norm")
    k, dtype = node.attributes["K"], weight_dtype(node)
    if node.op_type == "MatMulNBitsQkv":
        wide, narrow = node.attributes["Nq"], node.attributes["Nkv"]
        parts = [("query", wide), ("key", narrow), ("value", narrow)]
    else:
        parts = [("gate", node.attributes["N"]), ("up", node.attributes["N"])]
    products = [
        emit_product(e, node, x, i, TensorType((n, k), dtype), [i + 1], i + 2, name)
        for i, (name, n) in zip((3, 6, 9), parts, strict=False)
    ]
    if node.op_type == "MatMulNBitsQkv":
        return [*products, total]
    gate, up = products
    op = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}.get(
        text(node, "activation", "silu")
    )
    if op is None:
        raise ModelFileError(f"{node.label}: its activation does not exist")
    gate = e.emit(node, op, [gate], gate.type, {"epilogue": True}, "activation")
    return [e.emit(node, "mul", [gate, up], up.type, {"epilogue": True}, "gated"), total]


@rule("MatMulFpQ4", domain=MICROSOFT)
def blob_product(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A weight [k, n] of 4 bits in one blob, its scales among it."""
    x, blob = e.at(node, 0), required(node, 1)
    k, n = _blob_shape(node)
    weight = TensorType((n, k), DType.UINT4)
    result = emit_product(e, node, x, 1, weight, [], 9)
    rest = blob.type.bytes - weight.bytes
    if rest <= 0:
        return [result]
    scales = e.builder.add_input(f"{blob.name}.scales", TensorType((rest,), DType.UINT8), "buffer")
    attrs = {"epilogue": True}
    return [e.emit(node, "apply_scales", [result, scales], result.type, attrs, "scales")]


def _blob_shape(node: OnnxNode) -> tuple[int, int]:
    shape = known_ints(node.input(2))
    if shape is None or len(shape) != 2:
        raise ModelFileError(f"{node.label}: the shape of its weight is not in the file")
    return shape[0], shape[1]


@rule("MatMulBlockQuantizedFp4Weight", domain=MICROSOFT)
def fp4_product(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A weight [n, k / 2] of two 4-bit floats per byte, a scale per block and one for all."""
    n, k = _fp4_shape(node)
    weight = TensorType((n, k), DType.FLOAT4_E2M1)
    return [emit_product(e, node, e.at(node, 0), 1, weight, [2, 3], 5)]


@rule("MatMulBlockQuantizedFp8Weight", domain=MICROSOFT)
def fp8_product(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A weight [n, k] of 8-bit floats, a scale per block; with a scale of its own x becomes fp8 too."""
    x, weight = e.at(node, 0), required(node, 1)
    dtype = weight.dtype if weight.dtype.is_float else DType.FLOAT8_E4M3
    out = x.type
    if node.input(3) is not None:
        levels = x.type.with_dtype(dtype)
        x = e.emit(node, "quantize", [x, e.at(node, 3)], levels, {"axis": -1}, "quantize")
    type_ = TensorType(weight.shape, dtype)
    matrix = unpacked(e, weight, type_)
    out = out.with_shape((*x.type.shape[:-1], weight.shape[0]))
    result = e.emit(node, "linear", [x, matrix], out)
    scales = [e.operand(v) for v in node.inputs[2:4] if v is not None]
    result = e.emit(node, "apply_scales", [result, *scales], out, {"epilogue": True}, "scales")
    return [e.add_bias(node, result, node.input(4))]


def _bits_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    k, n = node.attributes.get("K", 0), node.attributes.get("N", 0)
    if not x.shape or x.shape[-1] != k:
        raise ModelFileError(f"{node.label}: operand {list(x.shape)} does not end in K = {k}")
    block, bits = node.attributes.get("block_size", 0), node.attributes.get("bits", 4)
    if block <= 0:
        raise ModelFileError(f"{node.label} has block_size {block}")
    blocks = -(-k // block)
    scales = node.input(2)
    need = n * blocks if node.op_type == "MatMulNBits" else -(-n * k // block)
    if scales is not None and scales.type.elements != need:
        raise ModelFileError(
            f"{node.label} has {scales.type.elements} scales where N = {n}, K = {k} and blocks of "
            f"{block} need {need}"
        )
    needed = n * blocks * -(-block * bits // 8)
    packed = required(node, 1).type
    if node.op_type == "MatMulNBits" and packed.bytes != needed:
        raise ModelFileError(
            f"{node.label} has {packed.bytes} bytes of weights, {needed} are needed"
        )
    return [x.with_shape((*x.shape[:-1], n))]


def _several_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, attributes = required(node, 0).type, node.attributes
    k = attributes.get("K", 0)
    if not x.shape or x.shape[-1] != k:
        raise ModelFileError(f"{node.label}: operand {list(x.shape)} does not end in K = {k}")
    names = ("Nq", "Nkv", "Nkv") if node.op_type == "MatMulNBitsQkv" else ("N",)
    return [*(x.with_shape((*x.shape[:-1], attributes.get(name, 0))) for name in names), x]


def _blob_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, (k, n) = required(node, 0).type, _blob_shape(node)
    if not x.shape or x.shape[-1] != k:
        raise ModelFileError(f"{node.label}: operand {list(x.shape)} does not end in {k}")
    return [x.with_shape((*x.shape[:-1], n))]


def _fp4_shape(node: OnnxNode) -> tuple[int, int]:
    weight = required(node, 1)
    per_byte = 2 if weight.dtype.bits == 8 else 1
    return weight.shape[0], weight.shape[1] * per_byte


def _block_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    n, k = _fp4_shape(node) if "Fp4" in node.op_type else required(node, 1).shape
    if not x.shape or x.shape[-1] != k:
        raise ModelFileError(f"{node.label}: operand {list(x.shape)} does not end in {k}")
    return [x.with_shape((*x.shape[:-1], n))]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, "MatMulNBits"): _bits_types,
    (MICROSOFT, "MatMulBnb4"): _bits_types,
    (MICROSOFT, "MatMulNBitsQkv"): _several_types,
    (MICROSOFT, "MatMulNBitsMlp"): _several_types,
    (MICROSOFT, "MatMulFpQ4"): _blob_types,
    (MICROSOFT, "MatMulBlockQuantizedFp4Weight"): _block_types,
    (MICROSOFT, "MatMulBlockQuantizedFp8Weight"): _block_types,
}
