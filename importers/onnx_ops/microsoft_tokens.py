"""onnxruntime's operators on rows of tokens (domain com.microsoft): paddings, positions, hashes, texts.

Hashes, tokenizers and decoders' bookkeeping do integer work that the data decides: they cost what they move.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.attention import to_heads
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import Emitter, known_ints, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_ops.microsoft_recurrences import sequences
from importers.onnx_ops.signal import by_bytes
from importers.onnx_values import OnnxNode

rule(
    "BifurcationDetector",
    "DynamicTimeWarping",
    "MurmurHash3",
    "NGramHashMapping",
    "RemovePadding",
    "RestorePadding",
    "Tokenizer",
    "VarlenNGramHashMapping",
    domain=MICROSOFT,
)(by_bytes)


@rule("MRotaryEmbedding", domain=MICROSOFT)
def rotary_of_three(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Rotary embedding by three positions per token (time, height, width)."""
    return [e.emit(node, "rotary_embedding", e.operands(node), e.result_type(node))]


@rule("GemmaRotaryEmbedding", domain=MICROSOFT)
def rotary_of_both(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Angles [b, s, d]; query and key, and both with their halves turned."""
    angles = e.at(node, 0)
    b, s, d = angles.type.shape
    results: list[Value | None] = []
    tables = []
    for op in ("cos", "sin"):
        table = e.emit(node, op, [angles], angles.type, None, op)
        tables.append(e.reshape(node, table, (b, 1, s, d), f"{op}_view"))
    for i, name in ((1, "query"), (3, "key")):
        x, turned = e.at(node, i), e.at(node, i + 1)
        one = e.emit(node, "mul", [x, tables[0]], x.type, None, f"{name}_cos")
        two = e.emit(node, "mul", [turned, tables[1]], x.type, None, f"{name}_sin")
        results.append(e.emit(node, "add", [one, two], x.type, None, name))
    return results


@rule("WordConvEmbedding", domain=MICROSOFT)
def word_embedding(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Words of characters, whose vectors pass windows [filters, 1, window, width]; the largest stay."""
    words, weight, table = e.at(node, 0), e.at(node, 1), e.at(node, 3)
    out = e.result_type(node)
    count, length = words.type.elements // words.type.shape[-1], words.type.shape[-1]
    width, window = table.type.shape[1], weight.type.shape[2]
    looked_up = table.type.with_shape((*words.type.shape, width))
    rows = e.emit(node, "gather", [table, words], looked_up, {"axis": 0}, "characters")
    image = e.reshape(node, rows, (count, 1, length, width), "image")
    places = max(length - window + 1, 1)
    found = out.with_shape((count, weight.type.shape[0], places, 1))
    attrs = {"stride": (1, 1), "dilation": (1, 1), "padding": (0, 0), "groups": 1}
    sums = e.emit(node, "conv", [image, weight], found, attrs)
    sums = e.add_bias(node, sums, node.input(2), channel=1)
    sums = e.emit(node, "tanh", [sums], sums.type, {"epilogue": True}, "activation")
    best = found.with_shape((count, weight.type.shape[0]))
    most = e.emit(node, "reduce_max", [sums], best, {"axes": (2, 3), "keepdims": False}, "largest")
    return [e.reshape(node, most, out.shape, "words")]


@rule("GatedRelativePositionBias", domain=MICROSOFT)
def gated_bias(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A bias per head and pair of positions, times a gate that each query computes."""
    heads, out = node.attributes["num_heads"], e.result_type(node)
    x = e.add_bias(node, e.at(node, 0), node.input(1))
    if len(x.type.shape) == 2:
        # Without padding: as many rows as the padded bias has cannot be told apart.
        rows = sequences(x.type.shape[0], out.shape[0])
        x = e.reshape(node, x, (rows, x.type.shape[0] // rows, x.type.shape[1]), "rows")
    q = to_heads(e, node, x, heads, "query")
    weight = e.at(node, 3)
    b, h, s, _ = q.type.shape
    width = weight.type.shape[1]
    gates = e.emit(node, "matmul", [q, weight], q.type.with_shape((b, h, s, width)), None, "gates")
    gates = e.add_bias(node, gates, node.input(4))
    halves = e.reshape(node, gates, (b, h, s, 2, width // 2), "halves")
    summed = q.type.with_shape((b, h, s, 2))
    sums = e.emit(node, "reduce_sum", [halves], summed, {"axes": (4,), "keepdims": False}, "sums")
    opened = e.emit(node, "sigmoid", [sums], summed, None, "open")
    column = [q.type.with_shape((b, h, s, 1))] * 2
    u, r = e.emit_all(node, "split", [opened], column, {"axis": 3, "view": True}, "gate_parts")
    scaled = e.emit(node, "mul", [r, e.at(node, 5)], r.type, None, "scaled")
    gate = e.emit(node, "mul", [u, scaled], u.type, None, "gate")
    full = q.type.with_shape((b, h, s, out.shape[3]))
    result = e.emit(node, "mul", [gate, e.at(node, 2)], full, None, "bias")
    return [result if full.shape == out.shape else e.emit(node, "gather_nd", [result, gate], out)]


def _bias_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, bias, offsets = required(node, 0).type, required(node, 2), node.input(6)
    batch = offsets.shape[0] if offsets is not None else x.shape[0]
    return [x.with_shape((batch, *bias.shape[1:]))]


def _removed_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, counts = required(node, 0).type, known_ints(node.input(1))
    if counts is None:
        return [None]
    ints = TensorType(x.shape[:2], required(node, 1).dtype)
    cumulated, longest = ints.with_shape((x.shape[0] + 1,)), ints.with_shape((1,))
    return [x.with_shape((sum(counts), x.shape[2])), ints, cumulated, longest]


def _restored_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, offsets = required(node, 0).type, required(node, 1)
    return [x.with_shape((*offsets.shape, x.shape[1]))]


def _pair_types(node: OnnxNode) -> Sequence[TensorType | None]:
    return [required(node, 1).type, required(node, 3).type]


def _hash_types(node: OnnxNode) -> Sequence[TensorType | None]:
    positive = node.attributes.get("positive", 1)
    return [required(node, 0).type.with_dtype(DType.UINT32 if positive else DType.INT32)]


def _ngram_types(node: OnnxNode) -> Sequence[TensorType | None]:
    ids, shifts = required(node, 0).type, node.attributes["max_ngram_size"] - 1
    heads = shifts * node.attributes["n_head_per_ngram"]
    packed = node.op_type.startswith("Varlen")
    rows = required(node, 3).shape[0] - 1 if packed else ids.shape[0]
    kept = ids.with_shape((rows, shifts))
    slots = node.attributes.get("state_update_capacity", 0)
    segments, update = kept.with_dtype(DType.INT32), ids.with_shape((rows, slots, shifts))
    return [ids.with_shape((*ids.shape, heads)), kept, segments, update]


def _word_types(node: OnnxNode) -> Sequence[TensorType | None]:
    words, weight = required(node, 0), required(node, 1).type
    return [weight.with_shape((*words.shape[:-1], weight.shape[0]))]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, name): types
    for name, types in {
        "GatedRelativePositionBias": _bias_types,
        "GemmaRotaryEmbedding": _pair_types,
        "MRotaryEmbedding": same_as_first,
        "MurmurHash3": _hash_types,
        "NGramHashMapping": _ngram_types,
        "RemovePadding": _removed_types,
        "RestorePadding": _restored_types,
        "VarlenNGramHashMapping": _ngram_types,
        "WordConvEmbedding": _word_types,
    }.items()
}
