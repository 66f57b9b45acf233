"""onnxruntime's own operators (domain com.microsoft) besides attention: fused products and norms.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from graph_ir.equation import bind
from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.channels_last import conv_types
from importers.onnx_ops.contraction import emit_matmul
from importers.onnx_ops.convolution import conv
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import Emitter, broadcast_shape, required, rule
from importers.onnx_ops.normalization import emit_norm, emit_norm_with_statistics
from importers.onnx_values import OnnxNode

MICROSOFT = "com.microsoft"
_ACTIVATIONS: Mapping[str, str] = {
    "Relu": "relu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "LeakyRelu": "leaky_relu",
    "HardSigmoid": "hardsigmoid",
    "Clip": "clamp",
}


@rule("Gelu", "BiasGelu", domain=MICROSOFT)
def gelu(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The exact form, of x + bias."""
    return [_biased(e, node, "gelu")]


@rule("FastGelu", domain=MICROSOFT)
def fast_gelu(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The tanh form, of x + bias."""
    return [_biased(e, node, "gelu_tanh")]


@rule("QuickGelu", domain=MICROSOFT)
def quick_gelu(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X sigmoid(alpha x)."""
    return [_biased(e, node, "silu", {"alpha": node.attributes.get("alpha", 1.702)})]


def _biased(e: Emitter, node: OnnxNode, op: str, attrs: Mapping[str, Any] | None = None) -> Value:
    x = e.add_bias(node, e.at(node, 0), node.input(1))
    return e.emit(node, op, [x], x.type, attrs)


@rule("BiasAdd", "BiasDropout", domain=MICROSOFT)
def bias_add(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A bias, and a skip connection if there is one."""
    x = e.add_bias(node, e.at(node, 0), node.input(1))
    if node.input(2) is not None:
        x = e.emit(node, "add", [x, e.at(node, 2)], x.type, None, "skip")
    return [x]


@rule("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Alpha A' B' with transposes of the last two dims."""
    a, b, out = e.at(node, 0), e.at(node, 1), e.result_type(node)
    trans_a, trans_b = (bool(node.attributes.get(k, 0)) for k in ("transA", "transB"))
    if trans_a or trans_b:
        left, right = "k m" if trans_a else "m k", "n k" if trans_b else "k n"
        text = f"... {left}, ... {right} -> ... m n"
        equation = bind(text, [a.type.shape, b.type.shape], [out.shape])
        result = e.emit(node, "einsum", [a, b], out, {"equation": equation})
    else:
        result = emit_matmul(e, node, a, b)
    return [_activated(e, node, e.scale(node, result, node.attributes.get("alpha", 1.0)))]


@rule("FusedGemm", "GemmFastGelu", domain=MICROSOFT)
def fused_gemm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A product, a bias and an activation."""
    from importers.onnx_ops.contraction import gemm

    result = gemm(e, node)[0]
    if result is None:
        raise ModelFileError(f"{node.label} has no result")
    if node.op_type == "GemmFastGelu":
        return [e.emit(node, "gelu_tanh", [result], result.type, {"epilogue": True}, "activation")]
    return [_activated(e, node, result)]


@rule("FusedConv", domain=MICROSOFT)
def fused_conv(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A convolution, perhaps a sum with a fourth operand, and an activation."""
    result = conv(e, node)[0]
    if result is None:
        raise ModelFileError(f"{node.label} has no result")
    if node.input(3) is not None:
        operands = [result, e.at(node, 3)]
        result = e.emit(node, "add", operands, result.type, {"epilogue": True}, "sum")
    return [_activated(e, node, result)]


def _activated(e: Emitter, node: OnnxNode, value: Value) -> Value:
    name = node.attributes.get("activation", b"")
    name = name.decode() if isinstance(name, bytes) else name
    op = _ACTIVATIONS.get(name)
    if op is None:
        return value
    return e.emit(node, op, [value], value.type, {"epilogue": True}, "activation")


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """norm(x + skip + bias); the sum is the fourth result."""
    simple = "Simplified" in node.op_type
    x = e.at(node, 0)
    total = e.broadcast(node, "add", [x, e.at(node, 1)], "sum")
    bias = node.input(3 if simple else 4)
    total = e.add_bias(node, total, bias)
    weights = [e.at(node, i) for i in ((2,) if simple else (2, 3)) if node.input(i) is not None]
    attrs = {"rank": 1, "eps": node.attributes.get("epsilon", 1e-5)}
    if simple or (node.output(1) is None and node.output(2) is None):
        op = "rms_norm" if simple else "layer_norm"
        return [emit_norm(e, node, op, [total, *weights], attrs), None, None, total]
    wanted = [v.type if (v := node.output(i)) else None for i in (1, 2)]
    return [*emit_norm_with_statistics(e, node, [total, *weights], attrs, wanted), total]


@rule("SimplifiedLayerNormalization", domain=MICROSOFT)
@rule("SimplifiedLayerNormalization")
def simplified_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """RMS norm; onnxruntime has it in the standard domain too."""
    x = e.at(node, 0)
    rank = len(x.type.shape) - node.attributes.get("axis", -1) % len(x.type.shape)
    attrs = {"rank": rank, "eps": node.attributes.get("epsilon", 1e-5)}
    return [emit_norm(e, node, "rms_norm", e.operands(node), attrs), None]


@rule("EmbedLayerNormalization", "QEmbedLayerNormalization", domain=MICROSOFT)
def embed_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Word, position and segment embeddings, summed and normalised."""
    ids = e.at(node, 0)
    out = e.result_type(node)
    word = e.emit(node, "gather", [e.at(node, 2), ids], out, {"axis": 0}, "word")
    table = e.at(node, 3)
    length = ids.type.shape[1]
    rows = e.type_of(TensorType((length, table.type.shape[1]), required(node, 3).dtype))
    starts = {"starts": (0, 0), "steps": (1, 1), "view": True}
    position = e.emit(node, "slice", [table], rows, starts, "position")
    total = e.emit(node, "add", [word, position], out, None, "with_position")
    if node.input(1) is not None and node.input(4) is not None:
        operands = [e.at(node, 4), e.at(node, 1)]
        segment = e.emit(node, "gather", operands, out, {"axis": 0}, "segment")
        total = e.emit(node, "add", [total, segment], out, None, "with_segment")
    attrs = {"rank": 1, "eps": node.attributes.get("epsilon", 1e-12)}
    weights = [e.at(node, 5), e.at(node, 6)]
    normal = emit_norm(e, node, "layer_norm", [total, *weights], attrs)
    mask: Value | None = None
    if node.output(1) is not None:
        type_ = e.result_type(node, 1)
        mask = e.emit(node, "fill", [], type_, None, "mask_index")
    return [normal, mask, total]


@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Positions, cosines and sines turn pairs of elements."""
    return [e.emit(node, "rotary_embedding", e.operands(node), e.result_type(node))]


@rule("GroupNorm", "SkipGroupNorm", domain=MICROSOFT)
def group_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Channels last as a rule; perhaps a skip connection before, a SiLU after."""
    x = e.at(node, 0)
    if node.op_type == "SkipGroupNorm":
        skip = e.at(node, 3)
        x = e.emit(node, "add", [x, skip], x.type, None, "skip")
    total = x
    channels_last = bool(node.attributes.get("channels_last", 1))
    attrs = {"groups": node.attributes["groups"], "eps": node.attributes.get("epsilon", 1e-5)}
    flat = x
    if channels_last:
        # The kernel reads channels where they lie; only the record wants them second.
        n, *space, c = x.type.shape
        flat = e.reshape(node, x, (n, c, *space), "channels")
    normal = e.emit(node, "group_norm", [flat, e.at(node, 1), e.at(node, 2)], flat.type, attrs)
    result = e.reshape(node, normal, x.type.shape, "result")
    if node.attributes.get("activation", 0):
        result = e.emit(node, "silu", [result], result.type, {"epilogue": True}, "activation")
    return [result, total]


def matmul_types(node: OnnxNode) -> Sequence[TensorType | None]:
    """Type of a product whose operands may be transposed."""
    a, b = required(node, 0).type, required(node, 1).type
    left, right = list(a.shape), list(b.shape)
    if node.attributes.get("transA"):
        left[-2:] = left[-2:][::-1]
    if node.attributes.get("transB"):
        right[-2:] = right[-2:][::-1]
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
        raise ModelFileError(f"{node.label}: shapes {list(a.shape)} and {list(b.shape)} do not fit")
    return [a.with_shape((*broadcast_shape(left[:-2], right[:-2]), left[-2], right[-1]))]


def _skip_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    rows = TensorType(x.shape[:-1], DType.FLOAT32)
    return [x, rows, rows, x]


def _embed_types(node: OnnxNode) -> Sequence[TensorType | None]:
    ids, table = required(node, 0).type, required(node, 2).type
    out = table.with_shape((*ids.shape, table.shape[1]))
    if node.op_type.startswith("Q"):
        out = out.with_dtype(required(node, 8).dtype)
    return [out, TensorType((ids.shape[0],), DType.INT32), out]


def _two_of_first(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    return [x, x]


def _gemm_types(node: OnnxNode) -> Sequence[TensorType | None]:
    a = required(node, 0).type
    if prod(a.shape) == 0 and len(a.shape) != 2:
        raise ModelFileError(f"{node.label} needs matrices")
    return matmul_types(node)


def _conv_types(node: OnnxNode) -> Sequence[TensorType | None]:
    return conv_types(node, last=False)


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    **{
        (MICROSOFT, name): same_as_first
        for name in (
            "Gelu",
            "BiasGelu",
            "FastGelu",
            "QuickGelu",
            "BiasAdd",
            "RotaryEmbedding",
        )
    },
    (MICROSOFT, "BiasDropout"): _two_of_first,
    (MICROSOFT, "FusedMatMul"): matmul_types,
    (MICROSOFT, "FusedMatMulActivation"): matmul_types,
    (MICROSOFT, "TransposeMatMul"): matmul_types,
    (MICROSOFT, "FusedGemm"): _gemm_types,
    (MICROSOFT, "GemmFastGelu"): _gemm_types,
    (MICROSOFT, "FusedConv"): _conv_types,
    (MICROSOFT, "SkipLayerNormalization"): _skip_types,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_types,
    (MICROSOFT, "SimplifiedLayerNormalization"): _two_of_first,
    ("", "SimplifiedLayerNormalization"): _two_of_first,
    (MICROSOFT, "EmbedLayerNormalization"): _embed_types,
    (MICROSOFT, "QEmbedLayerNormalization"): _embed_types,
    (MICROSOFT, "GroupNorm"): _two_of_first,
    (MICROSOFT, "SkipGroupNorm"): _two_of_first,
}
