"""onnxruntime's attention operators that project their operand themselves, apart from `Attention`.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.attention import append, emit_attention, from_heads, to_heads
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import Emitter, known_ints, known_number, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_ops.microsoft_attention import widths_of
from importers.onnx_ops.microsoft_caches import first_part, write_and_read
from importers.onnx_ops.microsoft_recurrences import sequences
from importers.onnx_ops.quantized import requantize
from importers.onnx_values import OnnxNode

Heads = tuple[Value, Value, Value]


def _split_heads(
    e: Emitter, node: OnnxNode, packed: Value, widths: Sequence[int], batch: int | None = None
) -> Heads:
    """packed[b, s, q + k + v], or with tokens in a row, as three of [b, heads, s, d]."""
    heads = node.attributes["num_heads"]
    axis = len(packed.type.shape) - 1
    types = [packed.type.with_shape((*packed.type.shape[:-1], n)) for n in widths]
    parts = e.emit_all(node, "split", [packed], types, {"axis": axis, "view": True}, "packed")
    found = []
    for part, name in zip(parts, ("query", "key", "value"), strict=True):
        if batch is not None:
            tokens, width = part.type.shape
            part = e.reshape(node, part, (batch, tokens // batch, width), f"{name}_rows")
        found.append(to_heads(e, node, part, heads, name))
    return found[0], found[1], found[2]


def _projected(e: Emitter, node: OnnxNode, weight: int, bias: int, label: str = "") -> Value:
    x, matrix = e.at(node, 0), e.at(node, weight)
    type_ = x.type.with_shape((*x.type.shape[:-1], matrix.type.shape[1]))
    packed = e.emit(node, "matmul", [x, matrix], type_, None, f"{label}projection")
    return e.add_bias(node, packed, node.input(bias))


@rule("DecoderMaskedSelfAttention", domain=MICROSOFT)
def one_token(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """One token behind a cache [2, b, heads, t, d], which may be a buffer for all tokens."""
    q, k, v = _split_heads(e, node, _projected(e, node, 1, 2), widths_of(node))
    past = e.at(node, 4)
    pair_type = k.type.with_shape((2, *k.type.shape))
    rows = [e.reshape(node, x, (1, *x.type.shape), f"row{i}") for i, x in enumerate((k, v))]
    pair = e.emit(node, "concat", rows, pair_type, {"axis": 0}, "new")
    if node.attributes.get("past_present_share_buffer"):
        known = known_ints(node.input(6))
        total = known[0] + 1 if known else past.type.shape[3]
        present, seen = write_and_read(e, node, past, pair, total, "present", axis=3)
    else:
        shape = (*past.type.shape[:3], past.type.shape[3] + 1, past.type.shape[4])
        type_ = past.type.with_shape(shape)
        present = seen = e.emit(node, "concat", [past, pair], type_, {"axis": 3}, "present")
    halves = [seen.type.with_shape((1, *seen.type.shape[1:]))] * 2
    parts = e.emit_all(node, "split", [seen], halves, {"axis": 0, "view": True}, "cache")
    k, v = (e.reshape(node, p, p.type.shape[1:], f"cache{i}") for i, p in enumerate(parts))
    result = emit_attention(e, node, [q, k, v], causal=False, scale=node.attributes.get("scale"))
    return [from_heads(e, node, result, e.result_type(node).shape), present]


@rule("PackedAttention", domain=MICROSOFT)
def packed(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Tokens of several sequences in a row, without padding; each sees its own sequence."""
    tokens = required(node, 0).shape[0]
    batch = sequences(tokens, required(node, 3).shape[0])
    heads = _split_heads(e, node, _projected(e, node, 1, 2), widths_of(node), batch)
    result = emit_attention(e, node, heads, causal=False, scale=node.attributes.get("scale"))
    rows = e.transpose(node, result, (0, 2, 1, 3), "output_transpose")
    return [e.reshape(node, rows, e.result_type(node).shape, "output")]


@rule("DecoderAttention", domain=MICROSOFT)
def decoder(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Query[s, b, h] over keys[t, b, h]; flags say whether these are the query's own, or cached."""
    heads = node.attributes["num_heads"]
    query, weight = e.at(node, 0), e.at(node, 2)
    static, cached = (bool(known_number(node.input(i))) for i in (8, 9))
    s, b, width = query.type.shape
    bias = e.at(node, 4)
    types = [bias.type.with_shape((n,)) for n in (width, bias.type.shape[0] - width)]
    own, others = e.emit_all(node, "split", [bias], types, {"axis": 0, "view": True}, "biases")
    q = e.emit(node, "matmul", [query, weight], query.type, None, "query")
    q = _by_head(
        e, node, e.emit(node, "add", [q, own], q.type, {"epilogue": True}, "q"), heads, "q"
    )
    if static and cached and node.input(6) is not None and node.input(7) is not None:
        k, v = e.at(node, 6), e.at(node, 7)
    else:
        source = e.at(node, 1) if static else query
        packed_type = source.type.with_shape((*source.type.shape[:2], 2 * width))
        pair = e.emit(node, "matmul", [source, e.at(node, 3)], packed_type, None, "key_value")
        pair = e.emit(
            node, "add", [pair, others], packed_type, {"epilogue": True}, "key_value_bias"
        )
        half = [packed_type.with_shape((*source.type.shape[:2], width))] * 2
        parts = e.emit_all(node, "split", [pair], half, {"axis": 2, "view": True}, "halves")
        k, v = (_by_head(e, node, p, heads, f"kv{i}") for i, p in enumerate(parts))
        if cached and node.input(6) is not None and node.input(7) is not None:
            k = append(e, node, e.at(node, 6), k, "new_key_cache")
            v = append(e, node, e.at(node, 7), v, "new_value_cache")
    result = emit_attention(e, node, [q, k, v], causal=False, scale=None)
    rows = e.transpose(node, result, (2, 0, 1, 3), "output_transpose")
    return [e.reshape(node, rows, (s, b, width), "output"), k, v]


def _by_head(e: Emitter, node: OnnxNode, x: Value, heads: int, label: str) -> Value:
    """[s, b, (h d)] -> [b, h, s, d]."""
    s, b, width = x.type.shape
    split = e.reshape(node, x, (s, b, heads, width // heads), f"{label}_heads")
    return e.transpose(node, split, (1, 2, 0, 3), f"{label}_transpose")


@rule("LongformerAttention", domain=MICROSOFT)
def longformer(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A window of 2 W keys per query, and a second projection for tokens that see everything.

    How many those are the data decides: their share of the scores, small by design, is left out.
    """
    local = _projected(e, node, 1, 2)
    _projected(e, node, 4, 5, "global_")
    return [_windowed(e, node, local)]


@rule("QOrderedLongformerAttention", domain=MICROSOFT)
def ordered_longformer(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The same in 8-bit integers."""
    local = _integer_projection(e, node, 2, 4, 6)
    _integer_projection(e, node, 8, 10, 11, "global_")
    return [_windowed(e, node, local)]


def _windowed(e: Emitter, node: OnnxNode, local: Value) -> Value:
    width = local.type.shape[2] // 3
    q, k, v = _split_heads(e, node, local, (width,) * 3)
    seen = min(2 * node.attributes["window"], k.type.shape[2])
    operands = [
        q,
        first_part(e, node, k, 2, seen, "key_window"),
        first_part(e, node, v, 2, seen, "value_window"),
    ]
    result = emit_attention(e, node, operands, causal=False, scale=None)
    return from_heads(e, node, result, e.result_type(node).shape)


def _integer_projection(
    e: Emitter, node: OnnxNode, weight: int, bias: int, scale: int, label: str = ""
) -> Value:
    """int8 x times int8 weight, its sums back to int8."""
    x, matrix = e.at(node, 0), e.at(node, weight)
    out = x.type.with_shape((*x.type.shape[:2], matrix.type.shape[1]))
    wide = out.with_dtype(DType.INT32)
    sums = e.emit(node, "matmul", [x, matrix], wide, None, f"{label}projection{weight}")
    operands = [sums, e.at(node, bias)]
    sums = e.emit(node, "add", operands, wide, {"epilogue": True}, f"{label}bias{bias}")
    attrs = {"axis": -1, "epilogue": True}
    return e.emit(
        node, "quantize", [sums, e.at(node, scale)], out, attrs, f"{label}requantize{scale}"
    )


@rule("QOrderedAttention", domain=MICROSOFT)
def ordered(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Three integer projections, attention in 8-bit integers, behind a cache [2, b, heads, t, d]."""
    heads = node.attributes["num_heads"]
    q, k, v = (
        to_heads(e, node, _integer_projection(e, node, 5 + i, 11 + i, 2 + i), heads, f"part{i}")
        for i in range(3)
    )
    if node.input(18) is not None:
        past = e.at(node, 18)
        halves = [past.type.with_shape((1, *past.type.shape[1:]))] * 2
        parts = e.emit_all(node, "split", [past], halves, {"axis": 0, "view": True}, "past")
        old_k, old_v = (
            e.reshape(node, p, p.type.shape[1:], f"past{i}") for i, p in enumerate(parts)
        )
        k, v = append(e, node, old_k, k, "present_key"), append(e, node, old_v, v, "present_value")
    causal = bool(node.attributes.get("unidirectional", 0))
    result = emit_attention(e, node, [q, k, v], causal=causal, scale=None)
    out = from_heads(e, node, result, e.result_type(node).shape)
    return [requantize(e, node, out, out.type, scale=16, axis=-1)]


def _one_token_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, past, widths = required(node, 0).type, required(node, 4).type, widths_of(node)
    if len(past.shape) != 5 or len(x.shape) != 3:
        raise ModelFileError(f"{node.label} needs a 3-D operand and a cache of 5 dims")
    grown = past.with_shape((*past.shape[:3], past.shape[3] + x.shape[1], past.shape[4]))
    shared = node.attributes.get("past_present_share_buffer")
    return [x.with_shape((*x.shape[:2], widths[2])), past if shared else grown]


def _packed_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    return [x.with_shape((x.shape[0], widths_of(node)[2]))]


def _decoder_types(node: OnnxNode) -> Sequence[TensorType | None]:
    query, key, cache = required(node, 0).type, required(node, 1), node.input(6)
    heads = node.attributes.get("num_heads", 0)
    if heads < 1 or len(query.shape) != 3:
        raise ModelFileError(f"{node.label} needs num_heads and a 3-D query")
    static, cached = (bool(known_number(node.input(i))) for i in (8, 9))
    s, b, width = query.shape
    length = key.shape[0] if static else s
    if cached and cache is not None:
        length = cache.shape[2] + (0 if static else s)
    kept = query.with_shape((b, heads, length, width // heads))
    return [query, kept, kept]


def _ordered_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    return [x.with_shape((*x.shape[:2], required(node, 7).shape[1]))]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, "DecoderMaskedSelfAttention"): _one_token_types,
    (MICROSOFT, "PackedAttention"): _packed_types,
    (MICROSOFT, "DecoderAttention"): _decoder_types,
    (MICROSOFT, "LongformerAttention"): same_as_first,
    (MICROSOFT, "QOrderedLongformerAttention"): same_as_first,
    (MICROSOFT, "QOrderedAttention"): _ordered_types,
}
