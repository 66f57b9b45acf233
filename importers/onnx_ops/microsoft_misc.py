"""Small operators of onnxruntime (domain com.microsoft): fused functions, selections, checks.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.equation import bind
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import Emitter, broadcast_shape, known_ints, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_values import OnnxNode, dtype_of


@rule("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """softmax(x + bias) in one kernel."""
    x, bias = e.at(node, 0), e.at(node, 1)
    axis = node.attributes.get("axis", -1) % max(len(x.type.shape), 1)
    total = e.emit(node, "add", [x, bias], x.type, None, "sum")
    return [e.emit(node, "softmax", [total], x.type, {"axis": axis, "epilogue": True})]


@rule("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """One half of x + bias times the GELU of the other."""
    x, out = e.at(node, 0), e.result_type(node)
    total = e.add_bias(node, x, required(node, 1))
    axis = len(x.type.shape) - 1
    halves = e.emit_all(node, "split", [total], [out, out], {"axis": axis, "view": True}, "halves")
    gate = e.emit(node, "gelu", [halves[1]], out, None, "gate")
    return [e.emit(node, "mul", [halves[0], gate], out)]


@rule("ScaledSiLU", domain=MICROSOFT)
def scaled_silu(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """SiLU times a factor."""
    x = e.at(node, 0)
    value = e.emit(node, "silu", [x], x.type)
    if node.input(1) is not None:
        attrs = {"epilogue": True}
        value = e.emit(node, "mul", [value, e.at(node, 1)], x.type, attrs, "scale")
    return [value]


@rule("GatedAdd", domain=MICROSOFT)
def gated_add(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X + gate y."""
    x = e.at(node, 0)
    gated = e.emit(node, "mul", [e.at(node, 1), e.at(node, 2)], x.type, None, "gated")
    return [e.emit(node, "add", [x, gated], x.type)]


@rule("GemmFloat8", domain=MICROSOFT)
def gemm_float8(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A product of 8-bit floats, an addend, and scales for both and for the result."""
    a, b, out = e.at(node, 0), e.at(node, 1), e.result_type(node)
    left = "k m" if node.attributes.get("transA") else "m k"
    right = "n k" if node.attributes.get("transB") else "k n"
    equation = bind(f"{left}, {right} -> m n", [a.type.shape, b.type.shape], [out.shape])
    value = e.emit(node, "einsum", [a, b], out, {"equation": equation})
    scales = [e.operand(v) for v in node.inputs[3:6] if v is not None]
    if scales:
        attrs = {"epilogue": True}
        value = e.emit(node, "apply_scales", [value, *scales], out, attrs, "scales")
    return [e.add_bias(node, value, node.input(2))]


@rule("ExpandDims", domain=MICROSOFT)
def expand_dims(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A dim of size 1 more."""
    return [e.reshape(node, e.at(node, 0), e.result_type(node).shape)]


@rule("Inverse", domain=MICROSOFT)
def inverse(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Each matrix inverted: what a product of two such matrices costs (2 n^3 operations by LU)."""
    x = e.at(node, 0)
    return [e.emit(node, "matmul", [x, x], x.type)]


@rule("CDist", domain=MICROSOFT)
def cdist(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Distances of all pairs of rows a[m, k], b[n, k]: a product, and the rows' squares."""
    return [e.emit(node, "linear", [e.at(node, 0), e.at(node, 1)], e.result_type(node))]


@rule("ComplexMul", "ComplexMulConj", "MulInteger", domain=MICROSOFT)
def product(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Element by element."""
    second = 2 if node.op_type == "MulInteger" else 1
    return [e.emit(node, "mul", [e.at(node, 0), e.at(node, second)], e.result_type(node))]


@rule("NGramRepeatBlock", domain=MICROSOFT)
def ngram_block(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Scores, of which some are struck out."""
    scores = e.at(node, 1)
    return [e.emit(node, "copy", [scores], scores.type)]


@rule("IsAllFinite", domain=MICROSOFT)
def all_finite(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Reads every tensor, writes one bit."""
    found: Value | None = None
    for i, x in enumerate(e.operands(node)):
        flags = e.emit(node, "isinf", [x], x.type.with_dtype(DType.BOOL), None, f"infinite{i}")
        attrs = {"axes": tuple(range(len(x.type.shape))), "keepdims": False, "epilogue": True}
        one = e.emit(node, "reduce_max", [flags], TensorType((), DType.BOOL), attrs, f"any{i}")
        if found is not None:
            one = e.emit(node, "logical_or", [found, one], one.type, None, f"all{i}")
        found = one
    return [found]


@rule("RelativePositionBias", domain=MICROSOFT)
def position_bias(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A bias per head and distance, spread over all pairs of positions."""
    table, out = e.at(node, 0), e.result_type(node)
    return [e.emit(node, "expand", [_spread(e, node, table, out)], out)]


def _spread(e: Emitter, node: OnnxNode, table: Value, out: TensorType) -> Value:
    row = table.type.with_shape((1, out.shape[1], 1, 1))
    attrs = {"starts": (0, 0), "steps": (1, 1), "view": True}
    first = e.emit(node, "slice", [table], table.type.with_shape((1, out.shape[1])), attrs, "row")
    return e.reshape(node, first, row.shape, "row_view")


@rule("TorchEmbedding", domain=MICROSOFT)
def torch_embedding(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Rows of a table."""
    return [
        e.emit(node, "gather", [e.at(node, 0), e.at(node, 1)], e.result_type(node), {"axis": 0})
    ]


def _half_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    return [x.with_shape((*x.shape[:-1], x.shape[-1] // 2))]


def _gemm_types(node: OnnxNode) -> Sequence[TensorType | None]:
    a, b = required(node, 0).shape, required(node, 1).shape
    m = a[1] if node.attributes.get("transA") else a[0]
    n = b[0] if node.attributes.get("transB") else b[1]
    return [TensorType((m, n), dtype_of(node.attributes.get("dtype", 1)))]


def _expand_dims_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, axis = required(node, 0).type, known_ints(node.input(1))
    if not axis:
        return [None]
    place = axis[0] + len(x.shape) + 1 if axis[0] < 0 else axis[0]
    return [x.with_shape((*x.shape[:place], 1, *x.shape[place:]))]


def _cdist_types(node: OnnxNode) -> Sequence[TensorType | None]:
    a, b = required(node, 0).type, required(node, 1).type
    return [a.with_shape((a.shape[0], b.shape[0]))]


def _product_types(node: OnnxNode) -> Sequence[TensorType | None]:
    second = 2 if node.op_type == "MulInteger" else 1
    a, b = required(node, 0).type, required(node, second).type
    dtype = DType.INT32 if node.op_type == "MulInteger" else a.dtype
    return [TensorType(broadcast_shape(a.shape, b.shape), dtype)]


def _position_types(node: OnnxNode) -> Sequence[TensorType | None]:
    table = required(node, 0).type
    rows, columns = known_ints(node.input(1)), known_ints(node.input(2))
    if not rows or not columns:
        return [None]
    return [table.with_shape((1, table.shape[1], rows[0], columns[0]))]


def _embedding_types(node: OnnxNode) -> Sequence[TensorType | None]:
    table = required(node, 0).type
    return [table.with_shape((*required(node, 1).shape, *table.shape[1:]))]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, name): types
    for name, types in {
        **dict.fromkeys(("BiasSoftmax", "ScaledSiLU", "GatedAdd", "Inverse"), same_as_first),
        **dict.fromkeys(("ComplexMul", "ComplexMulConj", "MulInteger"), _product_types),
        "BiasSplitGelu": _half_types,
        "GemmFloat8": _gemm_types,
        "ExpandDims": _expand_dims_types,
        "CDist": _cdist_types,
        "NGramRepeatBlock": lambda node: [required(node, 1).type],
        "IsAllFinite": lambda node: [TensorType((), DType.BOOL)],
        "RelativePositionBias": _position_types,
        "TorchEmbedding": _embedding_types,
    }.items()
}
