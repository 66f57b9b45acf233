"""onnxruntime's mixtures of experts, MoE and QMoE (domain com.microsoft).

Rows are routed evenly: of `rows * k` choices each expert gets its share. With fewer choices than experts
only as many experts as choices are read, as in a decode step.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_values import OnnxNode, OnnxValue

_ACTIVATIONS: Mapping[str, str] = {
    "relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "swiglu": "silu",
    "identity": "",
}


@dataclass(frozen=True)
class _Layer:
    """One product of every expert: its weight, scales and bias in the file."""

    name: str
    weight: OnnxValue
    scales: OnnxValue | None
    bias: OnnxValue | None
    bits: int | None


@rule("MoE", domain=MICROSOFT)
def moe(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Rows, router, then weight and bias of the first, the second and perhaps a third product."""
    layers = [
        _Layer(f"fc{i + 1}", w, None, node.input(3 + 2 * i), None)
        for i in range(3)
        if (w := node.input(2 + 2 * i)) is not None
    ]
    return _mixture(e, node, layers)


@rule("QMoE", domain=MICROSOFT)
def quantized_moe(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The same with scales between weights and biases; weights count their true bits."""
    common = node.attributes.get("expert_weight_bits", 4)
    layers = [
        _Layer(
            name := f"fc{i + 1}",
            w,
            node.input(3 + 3 * i),
            node.input(4 + 3 * i),
            node.attributes.get(f"{name}_expert_weight_bits") or common,
        )
        for i in range(3)
        if (w := node.input(2 + 3 * i)) is not None
    ]
    return _mixture(e, node, layers)


def _mixture(e: Emitter, node: OnnxNode, layers: Sequence[_Layer]) -> Sequence[Value | None]:
    if len(layers) < 2:
        raise ModelFileError(f"{node.label} needs the weights of two products")
    x, chosen = e.at(node, 0), node.attributes.get("k", 1)
    hidden = x.type.shape[-1]
    tokens = x.type.elements // max(hidden, 1)
    router = e.at(node, 1)
    experts = layers[0].weight.shape[0]
    if not 1 <= chosen <= experts:
        raise ModelFileError(f"{node.label} picks {chosen} of {experts} experts")
    probabilities = e.emit(node, "softmax", [router], router.type, {"axis": 1}, "router")
    top = router.type.with_shape((tokens, chosen))
    types = [top, top.with_dtype(DType.INT32)]
    scores, index = e.emit_all(node, "topk", [probabilities], types, {"axis": 1}, "choice")
    rows = tokens * chosen
    flat = e.reshape(node, x, (tokens, hidden), "rows")
    numbers = index.type.with_shape((rows,))
    by_token = e.reshape(node, index, (rows,), "by_token")
    _, order = e.emit_all(node, "sort", [by_token], [numbers] * 2, {"axis": 0}, "order")
    token = e.emit(node, "floor_divide", [order], numbers, {"scalar": chosen}, "token")
    sent = flat.type.with_shape((rows, hidden))
    sorted_rows = e.emit(node, "gather", [flat, token], sent, {"axis": 0}, "dispatch")
    pieces: list[Value] = []
    share, more = divmod(rows, experts)
    row = expert = 0
    for count, each in ((more, share + 1), (experts - more, share)):
        if count and each:
            tag = f"share{each}." if more and share else ""
            part = _part(e, node, sorted_rows, row, count * each, f"{tag}rows")
            pieces.append(_experts(e, node, layers, part, expert, count, tag))
            row, expert = row + count * each, expert + count
    done = pieces[0]
    if len(pieces) > 1:
        done = e.emit(node, "concat", pieces, sent, {"axis": 0}, "all")
    every = [
        e.emit(node, "fill", [], numbers, {"start": 0, "step": 1}, f"every{i}") for i in (0, 1)
    ]
    back = e.emit(node, "scatter_nd", [every[0], order, every[1]], numbers, None, "back")
    returned = e.emit(node, "gather", [done, back], sent, {"axis": 0}, "return")
    weight = e.reshape(node, scores, (rows, 1), "scores")
    weighted = e.emit(node, "mul", [returned, weight], sent, {"epilogue": True}, "weighted")
    split = e.reshape(node, weighted, (tokens, chosen, hidden), "choices")
    summed = flat.type.with_shape((tokens, hidden))
    total = e.emit(
        node, "reduce_sum", [split], summed, {"axes": (1,), "keepdims": False}, "combine"
    )
    return [e.reshape(node, total, x.type.shape, "result")]


def _experts(
    e: Emitter,
    node: OnnxNode,
    layers: Sequence[_Layer],
    rows: Value,
    first: int,
    count: int,
    tag: str,
) -> Value:
    """The products of `count` experts from `first` on, over equal shares of the rows."""
    up, down, *gate = layers
    inner = _inner_width(node, up, down)
    value = _product(e, node, up, rows, first, count, tag)
    kind = node.attributes.get("activation_type", b"relu")
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if kind not in _ACTIVATIONS:
        raise ModelFileError(f"{node.label}: activation {kind!r} does not exist")
    other: Value | None = None
    if value.type.shape[1] == 2 * inner:
        halves = [value.type.with_shape((value.type.shape[0], inner))] * 2
        attrs = {"axis": 1, "view": True}
        value, other = e.emit_all(node, "split", [value], halves, attrs, f"{tag}halves")
    elif gate:
        other = _product(e, node, gate[0], rows, first, count, tag)
    if op := _ACTIVATIONS[kind]:
        value = e.emit(node, op, [value], value.type, None, f"{tag}activation")
    if other is not None:
        value = e.emit(node, "mul", [value, other], value.type, None, f"{tag}gated")
    return _product(e, node, down, value, first, count, tag)


def _inner_width(node: OnnxNode, up: _Layer, down: _Layer) -> int:
    width = down.weight.shape[2]
    return width * _numbers_per_byte(node, down)


def _numbers_per_byte(node: OnnxNode, layer: _Layer) -> int:
    if layer.bits is None or layer.weight.dtype.bits != 8 or layer.bits == 8:
        return 1
    if layer.bits not in (2, 4):
        raise ModelFileError(f"{node.label} has weights of {layer.bits} bits: 2, 4 or 8 are read")
    return 8 // layer.bits


def _product(
    e: Emitter, node: OnnxNode, layer: _Layer, rows: Value, first: int, count: int, tag: str
) -> Value:
    """Rows sorted by expert times each expert's own weight [n, k]."""
    label = f"{tag}{layer.name}"
    weight = _weight(e, node, layer)
    every, wide, deep = weight.type.shape
    if deep != rows.type.shape[1]:
        raise ModelFileError(
            f"{node.label}: {layer.name} does not fit (weights {list(weight.type.shape)} for rows of "
            f"{rows.type.shape[1]})"
        )
    attrs = {"perm": (0, 2, 1), "view": True}
    turned = weight.type.with_shape((every, deep, wide))
    weight = e.emit(node, "transpose", [weight], turned, attrs, f"{label}.turned")
    weight = _part(e, node, weight, first, count, f"{label}.experts")
    out = rows.type.with_shape((rows.type.shape[0], wide))
    value = e.emit(node, "grouped_matmul", [rows, weight], out, None, label)
    if layer.scales is not None:
        scales = _part(e, node, e.operand(layer.scales), first, count, f"{label}.own_scales")
        value = e.emit(
            node, "apply_scales", [value, scales], out, {"epilogue": True}, f"{label}.scales"
        )
    if layer.bias is not None:
        bias = _part(e, node, e.operand(layer.bias), first, count, f"{label}.own_bias")
        grouped = (count, out.shape[0] // count, out.shape[1])
        three = e.reshape(node, value, grouped, f"{label}.by_expert")
        column = e.reshape(node, bias, (count, 1, out.shape[1]), f"{label}.bias_view")
        three = e.emit(
            node, "add", [three, column], three.type, {"epilogue": True}, f"{label}.bias"
        )
        value = e.reshape(node, three, out.shape, f"{label}.result")
    return value


def _weight(e: Emitter, node: OnnxNode, layer: _Layer) -> Value:
    per_byte = _numbers_per_byte(node, layer)
    kind = "parameter" if layer.weight.origin == "weight" else None
    if layer.bits is None or (per_byte == 1 and layer.weight.dtype.bits != 8):
        return e.operand(layer.weight, kind)  # type: ignore[arg-type]
    scheme = node.attributes.get("quant_type", b"int")
    scheme = scheme.decode() if isinstance(scheme, bytes) else scheme
    if scheme == "int":
        dtype = DType.parse(f"uint{layer.bits}")
    else:
        dtype = DType.FLOAT4_E2M1 if "fp4" in scheme else layer.weight.dtype
    *outer, last = layer.weight.shape
    packed = OnnxValue(layer.weight.name, TensorType((*outer, last * per_byte), dtype), "weight")
    found = e.shared(layer.weight)
    if found is None:
        found = e.operand(packed, "parameter")
        e.define(layer.weight, found)
    return found


def _part(e: Emitter, node: OnnxNode, value: Value, start: int, count: int, label: str) -> Value:
    """`count` rows of a value from `start` on: a view."""
    if count == value.type.shape[0]:
        return value
    rank = len(value.type.shape)
    attrs = {"starts": (start, *[0] * (rank - 1)), "steps": (1,) * rank, "view": True}
    type_ = value.type.with_shape((count, *value.type.shape[1:]))
    return e.emit(node, "slice", [value], type_, attrs, label)


def _types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, weight = required(node, 0).type, required(node, 2).type
    if len(x.shape) not in (2, 3) or len(weight.shape) != 3:
        raise ModelFileError(
            f"{node.label}: operands {list(x.shape)}, {list(weight.shape)} do not fit"
        )
    return same_as_first(node)


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, "MoE"): _types,
    (MICROSOFT, "QMoE"): _types,
}
