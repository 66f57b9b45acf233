"""onnxruntime's fused attention operators (domain com.microsoft).

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.attention import append, emit_attention, from_heads, to_heads
from importers.onnx_ops.emitter import Emitter, known_ints, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_ops.microsoft_caches import write_and_read
from importers.onnx_values import OnnxNode, OnnxValue


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Query, key, value (or packed in one of several ways), bias, masks, past."""
    heads = node.attributes["num_heads"]
    q, k, v = _query_key_value(e, node, heads)
    if node.input(6) is not None and node.input(7) is not None:
        k = append(e, node, e.at(node, 6), k, "present_key")
        v = append(e, node, e.at(node, 7), v, "present_value")
    mask = [_as_mask(e, node, 5, q, k)] if node.input(5) is not None else []
    result = emit_attention(
        e,
        node,
        [q, k, v, *mask],
        causal=bool(node.attributes.get("unidirectional", 0)),
        scale=node.attributes.get("scale"),
    )
    return [from_heads(e, node, result, e.result_type(node).shape), k, v]


def _query_key_value(e: Emitter, node: OnnxNode, heads: int) -> tuple[Value, Value, Value]:
    query = e.at(node, 0)
    if len(query.type.shape) == 5:  # [b, s, heads, 3, d]
        b, s, _, _, d = query.type.shape
        flat = e.transpose(node, query, (3, 0, 2, 1, 4), "unpack")
        parts = _pieces(e, node, flat, 3, "packed")
        q, k, v = (e.reshape(node, p, (b, heads, s, d), f"part{i}") for i, p in enumerate(parts))
        return q, k, v
    biases = _bias_parts(e, node, query.type.shape[-1])
    query = _add(e, node, query, biases[0], "query_bias")
    q = to_heads(e, node, query, heads, "query")
    key = e.at(node, 1)
    if len(key.type.shape) == 5:  # [b, t, heads, 2, d]
        b, t, _, _, d = key.type.shape
        flat = e.transpose(node, key, (3, 0, 2, 1, 4), "unpack")
        parts = _pieces(e, node, flat, 2, "packed")
        k, v = (e.reshape(node, p, (b, heads, t, d), f"part{i}") for i, p in enumerate(parts))
        return q, k, v
    value = e.at(node, 2)
    if len(key.type.shape) == 4:  # [b, heads, t, d]: as a cache holds them
        return q, key, value
    k = to_heads(e, node, _add(e, node, key, biases[1], "key_bias"), heads, "key")
    v = to_heads(e, node, _add(e, node, value, biases[2], "value_bias"), heads, "value")
    return q, k, v


def _pieces(e: Emitter, node: OnnxNode, value: Value, count: int, label: str) -> Sequence[Value]:
    row = value.type.with_shape((1, *value.type.shape[1:]))
    return e.emit_all(node, "split", [value], [row] * count, {"axis": 0, "view": True}, label)


def _bias_parts(e: Emitter, node: OnnxNode, width: int) -> list[Value | None]:
    """The packed bias [(query, key, value)] apart."""
    if node.input(3) is None:
        return [None, None, None]
    bias = e.at(node, 3)
    rest = bias.type.shape[0] - 2 * width
    types = [bias.type.with_shape((n,)) for n in (width, width, rest)]
    return list(e.emit_all(node, "split", [bias], types, {"axis": 0, "view": True}, "biases"))


def _add(e: Emitter, node: OnnxNode, x: Value, bias: Value | None, label: str) -> Value:
    if bias is None:
        return x
    return e.emit(node, "add", [x, bias], x.type, None, label)


def _as_mask(e: Emitter, node: OnnxNode, index: int, q: Value, k: Value) -> Value:
    """A bias on the scores, cut to the keys that there are."""
    mask = e.at(node, index)
    shape = (*mask.type.shape[:-1], k.type.shape[2])
    if mask.type.shape == shape:
        return mask
    attrs = {"starts": (0,) * len(shape), "steps": (1,) * len(shape), "view": True}
    return e.emit(node, "slice", [mask], mask.type.with_shape(shape), attrs, "mask")


@rule("GroupQueryAttention", domain=MICROSOFT)
def group_query(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Causal attention with fewer key and value heads; rotary embedding on request."""
    heads, groups = node.attributes["num_heads"], node.attributes["kv_num_heads"]
    query = e.at(node, 0)
    b, s, width = query.type.shape
    if node.input(1) is None:
        head = width // (heads + 2 * groups)
        types = [query.type.with_shape((b, s, n * head)) for n in (heads, groups, groups)]
        attrs = {"axis": 2, "view": True}
        query, key, value = e.emit_all(node, "split", [query], types, attrs, "packed")
    else:
        key, value = e.at(node, 1), e.at(node, 2)
    q = to_heads(e, node, query, heads, "query")
    k = to_heads(e, node, key, groups, "key")
    v = to_heads(e, node, value, groups, "value")
    if node.attributes.get("do_rotary") and node.input(7) is not None:
        tables = [e.at(node, 7), e.at(node, 8)]
        q = e.emit(node, "rotary_embedding", [q, *tables], q.type, None, "rotary_query")
        k = e.emit(node, "rotary_embedding", [k, *tables], k.type, None, "rotary_key")
    presents = (k, v)
    total = known_ints(node.input(6))
    past = node.input(3)
    if past is not None and total and _is_buffer(past, total[0]):
        present_k, k = write_and_read(e, node, e.at(node, 3), k, total[0], "present_key")
        present_v, v = write_and_read(e, node, e.at(node, 4), v, total[0], "present_value")
        presents = (present_k, present_v)
    elif past is not None and node.input(4) is not None:
        k = append(e, node, e.at(node, 3), k, "present_key")
        v = append(e, node, e.at(node, 4), v, "present_value")
        presents = (k, v)
    result = emit_attention(e, node, [q, k, v], causal=True, scale=node.attributes.get("scale"))
    return [from_heads(e, node, result, e.result_type(node).shape), *presents]


@rule("Attention", domain=MICROSOFT)
def attention(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The projection of x[b, s, i] by one weight [i, q + k + v], then attention."""
    x, weight = e.at(node, 0), e.at(node, 1)
    widths = widths_of(node)
    packed_type = x.type.with_shape((*x.type.shape[:2], sum(widths)))
    packed = e.emit(node, "matmul", [x, weight], packed_type, None, "projection")
    packed = e.add_bias(node, packed, node.input(2))
    return _attend(e, node, packed, widths, node.input(4))


@rule("QAttention", domain=MICROSOFT)
def quantized_attention(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The same with an integer projection, whose sums become floats before the bias."""
    x, weight = e.at(node, 0), e.at(node, 1)
    widths = widths_of(node)
    out = e.result_type(node).with_shape((*x.type.shape[:2], sum(widths)))
    wide = out.with_dtype(DType.INT32)
    sums = e.emit(node, "matmul", [x, weight], wide, None, "projection")
    attrs = {"axis": -1, "epilogue": True}
    packed = e.emit(node, "dequantize", [sums, e.at(node, 4)], out, attrs, "dequantize")
    packed = e.emit(node, "mul", [packed, e.at(node, 3)], out, {"epilogue": True}, "scale")
    packed = e.add_bias(node, packed, node.input(2))
    return _attend(e, node, packed, widths, node.input(8))


def _attend(
    e: Emitter,
    node: OnnxNode,
    packed: Value,
    widths: tuple[int, int, int],
    past: OnnxValue | None,
) -> Sequence[Value | None]:
    """Attention over packed[b, s, q + k + v], behind a cache [2, b, heads, t, d]."""
    heads = node.attributes["num_heads"]
    b, s, _ = packed.type.shape
    types = [packed.type.with_shape((b, s, n)) for n in widths]
    parts = e.emit_all(node, "split", [packed], types, {"axis": 2, "view": True}, "packed")
    q, k, v = (
        to_heads(e, node, part, heads, name)
        for part, name in zip(parts, ("query", "key", "value"), strict=True)
    )
    if past is not None:
        cache = e.operand(past)
        halves = [cache.type.with_shape((1, *cache.type.shape[1:]))] * 2
        kept = e.emit_all(node, "split", [cache], halves, {"axis": 0, "view": True}, "past")
        old_k, old_v = (
            e.reshape(node, p, cache.type.shape[1:], f"past{i}") for i, p in enumerate(kept)
        )
        k = append(e, node, old_k, k, "present_key")
        v = append(e, node, old_v, v, "present_value")
    result = emit_attention(
        e,
        node,
        [q, k, v],
        causal=bool(node.attributes.get("unidirectional", 0)),
        scale=node.attributes.get("scale"),
    )
    out = from_heads(e, node, result, e.result_type(node).shape)
    present: Value | None = None
    if node.output(1) is not None:
        type_ = e.result_type(node, 1)
        pair = [e.reshape(node, t, (1, *t.type.shape), f"present{i}") for i, t in enumerate((k, v))]
        present = e.emit(node, "concat", pair, type_, {"axis": 0}, "present")
    return [out, present]


def widths_of(node: OnnxNode) -> tuple[int, int, int]:
    """How wide query, key and value are in one packed projection."""
    sizes = node.attributes.get("qkv_hidden_sizes")
    if sizes:
        return (sizes[0], sizes[1], sizes[2])
    width = required(node, 1).shape[-1]
    return (width // 3,) * 3


def _mha_types(node: OnnxNode) -> Sequence[TensorType | None]:
    heads = node.attributes.get("num_heads", 0)
    query, key, value = required(node, 0), node.input(1), node.input(2)
    if heads < 1:
        raise ModelFileError(f"{node.label} has no num_heads")
    if len(query.shape) == 5:
        b, s, h, _, d = query.shape
        keys, out = s, h * d
    elif key is None:
        raise ModelFileError(f"{node.label} has neither a packed operand nor keys")
    else:
        b, s, out = query.shape
        d = out // heads
        keys = key.shape[2] if len(key.shape) == 4 else key.shape[1]
        if value is not None and len(value.shape) in (3, 4):
            out = value.shape[2] if len(value.shape) == 3 else value.shape[1] * value.shape[3]
    past = node.input(6)
    keys += past.shape[2] if past is not None else 0
    x = query.type
    return [
        x.with_shape((b, s, out)),
        x.with_shape((b, heads, keys, d)),
        x.with_shape((b, heads, keys, out // heads)),
    ]


def _gqa_types(node: OnnxNode) -> Sequence[TensorType | None]:
    heads, groups = node.attributes.get("num_heads", 0), node.attributes.get("kv_num_heads", 0)
    x = required(node, 0).type
    if min(heads, groups) < 1 or len(x.shape) != 3:
        raise ModelFileError(f"{node.label} needs num_heads, kv_num_heads and a 3-D query")
    b, s, width = x.shape
    packed = node.input(1) is None
    head = width // (heads + 2 * groups) if packed else width // heads
    past = node.input(3)
    keys = s + (past.shape[2] if past is not None else 0)
    total = known_ints(node.input(6))
    if total and past is not None and _is_buffer(past, total[0]):
        keys = past.shape[2]
    cache = x.with_shape((b, groups, keys, head))
    return [x.with_shape((b, s, heads * head)), cache, cache]


def _is_buffer(past: OnnxValue, total: int) -> bool:
    """Whether the cache is a buffer for all tokens, into which this step writes."""
    return past.shape[2] >= total


def _attention_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    widths = widths_of(node)
    heads = node.attributes.get("num_heads", 0)
    if heads < 1 or len(x.shape) != 3:
        raise ModelFileError(f"{node.label} needs num_heads and a 3-D operand")
    b, s, _ = x.shape
    quantized = node.op_type == "QAttention"
    past = node.input(8 if quantized else 4)
    keys = s + (past.shape[3] if past is not None else 0)
    if quantized:
        x = x.with_dtype(required(node, 3).dtype)
    return [
        x.with_shape((b, s, widths[2])),
        x.with_shape((2, b, heads, keys, widths[1] // heads)),
    ]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, "MultiHeadAttention"): _mha_types,
    (MICROSOFT, "GroupQueryAttention"): _gqa_types,
    (MICROSOFT, "Attention"): _attention_types,
    (MICROSOFT, "QAttention"): _attention_types,
}
