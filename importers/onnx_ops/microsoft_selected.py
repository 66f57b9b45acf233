"""onnxruntime's attention over keys that an indexer selects, and the indexer (domain com.microsoft).

Each query reads as many keys as the selection has room for, or as there are.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.equation import bind
from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.attention import append, emit_attention, from_heads
from importers.onnx_ops.emitter import Emitter, known_ints, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_ops.microsoft_caches import (
    emit_paged,
    first_part,
    heads_of,
    paged_types,
    turned,
    write_and_read,
)
from importers.onnx_ops.microsoft_recurrences import sequences, text
from importers.onnx_values import OnnxNode


def _most(node: OnnxNode, selected: int) -> int:
    """The keys that a query reads: those selected for it, perhaps with a window of its own."""
    count = required(node, selected).shape[-1]
    if text(node, "attention_mode", "selected_only") == "local_plus_selected":
        window = node.attributes.get("local_window_size", -1)
        return count + window if window >= 0 else 1 << 40
    return max(count, 1)


@rule("DynamicSparseAttention", domain=MICROSOFT)
def selected(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Over a cache [b, heads, t, d], or an auxiliary one of the same layout."""
    q, k, v = heads_of(e, node)
    q, k = turned(e, node, q, k, 11)
    total = known_ints(node.input(10))
    presents = [k, v]
    if node.input(3) is not None and node.input(4) is not None:
        caches = (e.at(node, 3), e.at(node, 4))
        if caches[0].type.shape == e.result_type(node, 1).shape:
            length = (total or (caches[0].type.shape[2],))[0]
            present_k, k = write_and_read(e, node, caches[0], k, length, "present_key")
            present_v, v = write_and_read(e, node, caches[1], v, length, "present_value")
            presents = [present_k, present_v]
        else:
            k = append(e, node, caches[0], k, "present_key")
            v = append(e, node, caches[1], v, "present_value")
            presents = [k, v]
    if text(node, "selected_kv_source", "main") == "auxiliary" and node.input(5) is not None:
        k = e.at(node, 5)
        v = e.at(node, 6) if node.input(6) is not None else k
    most = min(_most(node, 7), k.type.shape[2])
    operands = [
        q,
        first_part(e, node, k, 2, most, "keys"),
        first_part(e, node, v, 2, most, "values"),
    ]
    result = emit_attention(e, node, operands, causal=False, scale=node.attributes.get("scale"))
    return [from_heads(e, node, result, e.result_type(node).shape), *presents]


@rule("SparsePagedAttention", domain=MICROSOFT)
def selected_paged(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Over a cache in blocks."""
    return emit_paged(e, node, 14, _most(node, 9))


@rule("SparseAttentionIndexer", "PackedSparseAttentionIndexer", domain=MICROSOFT)
def indexer(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Scores of every query head with every key (of a block of tokens), summed; the highest are kept."""
    query, out = e.at(node, 0), e.result_type(node)
    width = required(node, 2).shape[-1]
    state_index = 12 if node.op_type.startswith("Packed") else 7
    results = [v.type if v is not None else None for v in node.outputs]
    keys_type = e.type_of(
        results[2 if state_index == 12 else 1] or required(node, state_index).type
    )
    batch = keys_type.shape[0]
    if state_index == 12:
        batch = sequences(query.type.shape[0], batch)
    tokens = query.type.elements // query.type.shape[-1] // batch
    heads = query.type.shape[-1] // width - (1 if node.input(1) is None else 0)
    keys = e.at(node, state_index)
    count = max(keys_type.shape[1] // _ratio(node, state_index), 1)
    own = first_part(e, node, keys, 0, batch, "keys_of_sequences")
    if own.type.shape[1] < count:
        own = e.emit(node, "pad", [own], own.type.with_shape((batch, count, width)), None, "keys")
    own = first_part(e, node, own, 1, count, "blocks")
    flat = first_part(e, node, query, len(query.type.shape) - 1, heads * width, "queries")
    q = e.reshape(node, flat, (batch, tokens, heads, width), "heads")
    scores_type = q.type.with_shape((batch, tokens, heads, count))
    equation = bind(
        "b s h d, b t d -> b s h t", [q.type.shape, own.type.shape], [scores_type.shape]
    )
    scores = e.emit(node, "einsum", [q, own], scores_type, {"equation": equation}, "scores")
    scores = e.emit(node, "relu", [scores], scores_type, {"epilogue": True}, "positive")
    summed = q.type.with_shape((batch, tokens, count))
    total = e.emit(node, "reduce_sum", [scores], summed, {"axes": (2,), "keepdims": False}, "sum")
    chosen = min(out.shape[-1], count)
    types = [summed.with_shape((batch, tokens, chosen))] * 2
    _, index = e.emit_all(
        node, "topk", [total], [types[0], types[1].with_dtype(DType.INT32)], {"axis": 2}, "choice"
    )
    first = e.emit(node, "gather_nd", [index, index], out, None, "indices")
    rest = [
        e.emit(node, "fill", [], e.result_type(node, i), None, f"state{i}") if type_ else None
        for i, type_ in enumerate(results)
        if i
    ]
    return [first, *rest]


def _ratio(node: OnnxNode, state_index: int) -> int:
    """Tokens per key of the cache: blocks are pooled while scoring, unless they are kept pooled."""
    pooled = state_index == 12 or text(node, "policy_mode", "qsa") == "csa"
    return 1 if pooled else node.attributes["compress_ratio"]


def _selected_types(node: OnnxNode) -> Sequence[TensorType | None]:
    heads, groups = node.attributes.get("num_heads", 0), node.attributes.get("kv_num_heads", 0)
    x, past, total = required(node, 0).type, node.input(3), known_ints(node.input(10))
    if min(heads, groups) < 1 or len(x.shape) != 3:
        raise ModelFileError(f"{node.label} needs num_heads, kv_num_heads and a 3-D query")
    b, s, width = x.shape
    head = width // (heads + 2 * groups) if node.input(1) is None else width // heads
    length = s if past is None else past.shape[2]
    if past is not None and total and total[0] > length:
        length = past.shape[2] + s
    cache = x.with_shape((b, groups, length, head))
    return [x.with_shape((b, s, heads * head)), cache, cache]


def _capacity(node: OnnxNode) -> int:
    attributes = node.attributes
    if text(node, "policy_mode", "qsa") == "csa":
        return int(attributes["index_topk"])
    return int(attributes["token_budget"] + attributes["compress_ratio"] - 1)


def _indexer_types(node: OnnxNode) -> Sequence[TensorType | None]:
    query, past, ratio = (
        required(node, 0),
        required(node, 7).type,
        node.attributes["compress_ratio"],
    )
    b, s = query.shape[:2]
    chosen = TensorType((b, s, _capacity(node)), DType.INT32)
    buffer = node.input(13)
    if node.input(12) is not None:
        return [chosen, past, buffer.type if buffer is not None else None]
    if text(node, "policy_mode", "qsa") == "qsa":
        return [chosen, past.with_shape((b, past.shape[1] + s, past.shape[2]))]
    pending = (buffer.shape[2] if buffer is not None else 0) + s
    kept = past.with_shape((b, past.shape[1] + pending // ratio, past.shape[2]))
    rest = past.with_shape((2, b, pending % ratio + ratio - 1, 2 * past.shape[2]))
    return [chosen, kept, rest]


def _packed_indexer_types(node: OnnxNode) -> Sequence[TensorType | None]:
    tokens = required(node, 0).shape[0]
    ints = TensorType((tokens, _capacity(node)), DType.INT32)
    states = [v.type if (v := node.input(i)) is not None else None for i in (12, 13, 14, 15)]
    slots, keys = node.attributes.get("state_update_capacity", 0), required(node, 12).type
    update = keys.with_shape((keys.shape[0], slots, keys.shape[2]))
    return [ints, ints.with_shape((tokens,)), *states, update]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, "DynamicSparseAttention"): _selected_types,
    (MICROSOFT, "SparsePagedAttention"): paged_types,
    (MICROSOFT, "SparseAttentionIndexer"): _indexer_types,
    (MICROSOFT, "PackedSparseAttentionIndexer"): _packed_indexer_types,
}
