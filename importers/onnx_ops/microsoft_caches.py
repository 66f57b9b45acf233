"""onnxruntime's attention over caches that are buffers: paged, sparse and one-token operators.

A buffer has room for all tokens; a step writes its own into it and reads those that are there. How many
these are is often data: `--value` can say it (`past_seqlens`, `total_sequence_length`), else the cache is
taken to be full.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.attention import append, emit_attention, from_heads, to_heads
from importers.onnx_ops.emitter import Emitter, known_ints, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_values import OnnxNode


def write_and_read(
    e: Emitter, node: OnnxNode, buffer: Value, new: Value, total: int, label: str, *, axis: int = 2
) -> tuple[Value, Value]:
    """Writes what is new behind what is there: (the buffer, its first `total` tokens)."""
    length, added = buffer.type.shape[axis], new.type.shape[axis]
    total = min(max(total, added), length)
    attrs = {"axis": axis, "start": total - added, "step": 1}
    written = e.emit(node, "slice_update", [buffer, new], buffer.type, attrs, label)
    return written, first_part(e, node, written, axis, total, f"{label}_seen")


def first_part(
    e: Emitter, node: OnnxNode, value: Value, axis: int, count: int, label: str
) -> Value:
    """The first `count` rows along a dim, as a view."""
    shape = value.type.shape
    if count >= shape[axis]:
        return value
    type_ = value.type.with_shape((*shape[:axis], count, *shape[axis + 1 :]))
    attrs = {"starts": (0,) * len(shape), "steps": (1,) * len(shape), "view": True}
    return e.emit(node, "slice", [value], type_, attrs, label)


def heads_of(e: Emitter, node: OnnxNode) -> tuple[Value, Value, Value]:
    """Query, key and value [b, heads, s, d] of operands [b, s, (h d)], or of one packed operand."""
    heads, groups = node.attributes["num_heads"], node.attributes["kv_num_heads"]
    query = e.at(node, 0)
    if node.input(1) is None:
        b, s, width = query.type.shape
        head = width // (heads + 2 * groups)
        types = [query.type.with_shape((b, s, n * head)) for n in (heads, groups, groups)]
        attrs = {"axis": 2, "view": True}
        query, key, value = e.emit_all(node, "split", [query], types, attrs, "packed")
    else:
        key, value = e.at(node, 1), e.at(node, 2)
    return (
        to_heads(e, node, query, heads, "query"),
        to_heads(e, node, key, groups, "key"),
        to_heads(e, node, value, groups, "value"),
    )


def turned(e: Emitter, node: OnnxNode, q: Value, k: Value, cosine: int) -> tuple[Value, Value]:
    """Query and key with rotary embedding, if the node asks for it."""
    if not node.attributes.get("do_rotary") or node.input(cosine) is None:
        return q, k
    tables = [e.at(node, cosine), e.at(node, cosine + 1)]
    return (
        e.emit(node, "rotary_embedding", [q, *tables], q.type, None, "rotary_query"),
        e.emit(node, "rotary_embedding", [k, *tables], k.type, None, "rotary_key"),
    )


@rule("SparseAttention", domain=MICROSOFT)
def sparse(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Each query sees only some blocks of the keys: on average the non-zero blocks of a row."""
    q, k, v = heads_of(e, node)
    q, k = turned(e, node, q, k, 9)
    length = required(node, 3).shape[2]
    total = (known_ints(node.input(7)) or (length,))[0]
    caches = (e.at(node, 3), e.at(node, 4))
    present_k, keys = write_and_read(e, node, caches[0], k, total, "present_key")
    present_v, values = write_and_read(e, node, caches[1], v, total, "present_value")
    rows, columns = required(node, 5).shape, required(node, 6).shape
    per_row = -(-columns[1] // max(rows[1] - 1, 1)) * node.attributes["sparse_block_size"]
    seen = min(per_row, keys.type.shape[2])
    operands = [
        q,
        first_part(e, node, keys, 2, seen, "key_blocks"),
        first_part(e, node, values, 2, seen, "value_blocks"),
    ]
    result = emit_attention(e, node, operands, causal=False, scale=node.attributes.get("scale"))
    return [from_heads(e, node, result, e.result_type(node).shape), present_k, present_v]


@rule("PagedAttention", domain=MICROSOFT)
def paged(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Tokens of several sequences in a row, over a cache in blocks, which the kernel reads in place."""
    return emit_paged(e, node, 8)


def emit_paged(
    e: Emitter, node: OnnxNode, cosine: int, most: int | None = None
) -> Sequence[Value | None]:
    """The same with rotary tables from operand `cosine` on, and at most `most` keys per query."""
    heads, groups = node.attributes["num_heads"], node.attributes["kv_num_heads"]
    batch, length, keys = _paged_sizes(node)
    query = e.at(node, 0)
    tokens, width = query.type.shape
    if node.input(1) is None:
        head = width // (heads + 2 * groups)
        types = [query.type.with_shape((tokens, n * head)) for n in (heads, groups, groups)]
        query, key, value = e.emit_all(
            node, "split", [query], types, {"axis": 1, "view": True}, "packed"
        )
    else:
        key, value = e.at(node, 1), e.at(node, 2)
    head = query.type.shape[1] // heads
    q = e.reshape(node, query, (batch, heads, length, head), "query_heads")
    k = e.reshape(node, key, (tokens, groups, key.type.shape[1] // groups), "key_heads")
    q, k = turned(e, node, q, k, cosine)
    seen, presents = [], []
    for name, new, index in (("key", k, 3), ("value", value, 4)):
        cache = e.at(node, index)
        blocks, block, *rest = cache.type.shape
        slots = e.reshape(node, cache, (blocks * block, *rest), f"{name}_slots")
        row = e.reshape(node, new, (tokens, *rest), f"new_{name}")
        written, part = write_and_read(e, node, slots, row, batch * keys, f"present_{name}", axis=0)
        presents.append(e.reshape(node, written, cache.type.shape, f"{name}_cache"))
        shape = (batch, groups, part.type.shape[0] // batch, rest[-1])
        whole = first_part(e, node, part, 0, shape[2] * batch, f"{name}_whole")
        visible = e.reshape(node, whole, shape, f"{name}_seen")
        seen.append(first_part(e, node, visible, 2, most or shape[2], f"{name}_picked"))
    causal = length > 1 and (most is None or most >= seen[0].type.shape[2])
    result = emit_attention(e, node, [q, *seen], causal=causal, scale=node.attributes.get("scale"))
    return [e.reshape(node, result, e.result_type(node).shape, "output"), *presents]


def _paged_sizes(node: OnnxNode) -> tuple[int, int, int]:
    """(sequences, new tokens of each, keys of each): tokens are shared out evenly."""
    tokens = required(node, 0).shape[0]
    batch = max(required(node, 5).type.elements - 1, 1)
    if tokens % batch:
        batch = 1
    length = tokens // batch
    block = required(node, 3).shape[1]
    past = known_ints(node.input(6))
    if past:
        return batch, length, sum(past) // len(past) + length
    return batch, length, max(required(node, 7).shape[-1] * block, length)


@rule("DecoderMaskedMultiHeadAttention", domain=MICROSOFT)
def one_token(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """One token's query over a cache, or over the keys of an encoder [b, heads, t, d]."""
    heads = node.attributes["num_heads"]
    q = to_heads(e, node, e.at(node, 0), heads, "query")
    if node.input(1) is not None and len(required(node, 1).shape) == 4:
        k, v = e.at(node, 1), e.at(node, 2)
        presents: list[Value | None] = [None, None]
    else:
        k = to_heads(e, node, e.at(node, 1), heads, "key")
        v = to_heads(e, node, e.at(node, 2), heads, "value")
        presents = [k, v]
        if node.input(5) is not None and node.attributes.get("past_present_share_buffer"):
            known = known_ints(node.input(7))
            total = known[0] + k.type.shape[2] if known else required(node, 5).shape[2]
            presents[0], k = write_and_read(e, node, e.at(node, 5), k, total, "present_key")
            presents[1], v = write_and_read(e, node, e.at(node, 6), v, total, "present_value")
        elif node.input(5) is not None:
            k = append(e, node, e.at(node, 5), k, "present_key")
            v = append(e, node, e.at(node, 6), v, "present_value")
            presents = [k, v]
    result = emit_attention(e, node, [q, k, v], causal=False, scale=node.attributes.get("scale"))
    return [from_heads(e, node, result, e.result_type(node).shape), *presents]


@rule("PackedMultiHeadAttention", domain=MICROSOFT)
def packed_multi_head(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Tokens of several sequences in a row, without padding; each sees its own sequence."""
    heads, out = node.attributes["num_heads"], e.result_type(node)
    batch = required(node, 4).shape[0]
    tokens = out.shape[0]
    batch = batch if batch and tokens % batch == 0 else 1
    parts: Sequence[Value] = [e.operand(v) for v in node.inputs[:3] if v is not None]
    if len(parts) == 1:
        packed = e.reshape(node, parts[0], (tokens, 3 * out.shape[1]), "flat")
        types = [packed.type.with_shape((tokens, out.shape[1]))] * 3
        attrs = {"axis": 1, "view": True}
        parts = e.emit_all(node, "split", [packed], types, attrs, "packed")
    q, k, v = (
        e.reshape(node, p, (batch, heads, tokens // batch, p.type.shape[1] // heads), f"heads{i}")
        for i, p in enumerate(parts)
    )
    result = emit_attention(e, node, [q, k, v], causal=False, scale=node.attributes.get("scale"))
    return [e.reshape(node, result, out.shape, "output")]


def _sparse_types(node: OnnxNode) -> Sequence[TensorType | None]:
    heads, groups = node.attributes.get("num_heads", 0), node.attributes.get("kv_num_heads", 0)
    x, key, value = required(node, 0).type, required(node, 3).type, required(node, 4).type
    if min(heads, groups) < 1 or len(x.shape) != 3 or len(key.shape) != 4:
        raise ModelFileError(f"{node.label} needs num_heads, kv_num_heads, a 3-D query and caches")
    return [x.with_shape((*x.shape[:2], heads * key.shape[3])), key, value]


def paged_types(node: OnnxNode) -> Sequence[TensorType | None]:
    """Types of the result and of both caches."""
    heads, groups = node.attributes.get("num_heads", 0), node.attributes.get("kv_num_heads", 0)
    x, key, value = required(node, 0).type, required(node, 3).type, required(node, 4).type
    if min(heads, groups) < 1 or len(x.shape) != 2 or min(len(key.shape), len(value.shape)) != 4:
        raise ModelFileError(f"{node.label} needs num_heads, kv_num_heads, a 2-D query and caches")
    width = x.shape[1] * heads // (heads + 2 * groups) if node.input(1) is None else x.shape[1]
    return [x.with_shape((x.shape[0], width)), key, value]


def _one_token_types(node: OnnxNode) -> Sequence[TensorType | None]:
    heads, x = node.attributes.get("num_heads", 0), required(node, 0).type
    if heads < 1 or len(x.shape) != 3:
        raise ModelFileError(f"{node.label} needs num_heads and a 3-D query")
    b, s, width = x.shape
    past = node.input(5)
    if past is None:
        cache = x.with_shape((b, heads, s, width // heads))
    elif node.attributes.get("past_present_share_buffer"):
        cache = past.type
    else:
        cache = past.type.with_shape((b, heads, past.shape[2] + s, width // heads))
    return [x, cache, cache]


def _packed_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, value = required(node, 0).type, node.input(2)
    if len(x.shape) == 4:
        return [x.with_shape((x.shape[0], x.shape[1] * x.shape[3]))]
    return [x.with_shape((x.shape[0], value.shape[1] if value is not None else x.shape[1]))]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, "SparseAttention"): _sparse_types,
    (MICROSOFT, "PagedAttention"): paged_types,
    (MICROSOFT, "DecoderMaskedMultiHeadAttention"): _one_token_types,
    (MICROSOFT, "PackedMultiHeadAttention"): _packed_types,
}
