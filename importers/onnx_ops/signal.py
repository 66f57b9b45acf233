"""Signals, strings, pictures, detection, and the preview domain's optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.emitter import Emitter, known_ints, required, rule
from importers.onnx_values import OnnxNode

_TRAINING = "ai.onnx.preview.training"
# Operator -> (FLOPs are its record's, state tensors per parameter).
_OPTIMIZERS: Mapping[str, int] = {"Adagrad": 1, "Adam": 2, "Momentum": 1}


@rule("DFT")
def dft(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A Fourier transform along one axis."""
    x, out = e.at(node, 0), e.result_type(node)
    rank = len(x.type.shape)
    given = known_ints(node.input(2))
    axis = (
        given[0] if given else node.attributes.get("axis", 1 if node.version < 20 else -2)
    ) % rank
    points = max(x.type.shape[axis], out.shape[axis])
    return [e.emit(node, "fft", [x], out, {"points": points, "rows": min(axis, 1)})]


@rule("STFT")
def stft(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A Fourier transform per frame; frames overlap, and a window may weigh them."""
    x, out = e.at(node, 0), e.result_type(node)
    window = node.input(2)
    length = known_ints(node.input(3))
    points = window.shape[0] if window is not None and window.shape else 2 * (out.shape[-2] - 1)
    points = length[0] if length else points
    operands = [x, e.operand(window)] if window is not None else [x]
    return [e.emit(node, "fft", operands, out, {"points": max(points, 1)})]


@rule("Det")
def det(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """One number per matrix."""
    return [e.emit(node, "determinant", [e.at(node, 0)], e.result_type(node))]


@rule("MelWeightMatrix")
def mel(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A matrix that is computed from a few numbers and written once."""
    return [e.emit(node, "fill", [], e.result_type(node))]


@rule("NonMaxSuppression")
def non_max_suppression(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Scores are sorted per class, then boxes are compared with those kept before."""
    boxes, scores, out = e.at(node, 0), e.at(node, 1), e.result_type(node)
    types = [scores.type, scores.type.with_dtype(DType.INT64)]
    attrs = {"axis": -1, "descending": True}
    _, order = e.emit_all(node, "sort", [scores], types, attrs, "sort")
    return [e.emit(node, "gather_nd", [boxes, order], out)]


@rule(
    "ImageDecoder",
    "RegexFullMatch",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "TfIdfVectorizer",
)
def by_bytes(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Text and pictures: what is done depends on the data, only what is moved can be said."""
    operands = e.operands(node)
    present = [i for i, v in enumerate(node.outputs) if v is not None]
    types = [e.result_type(node, i) for i in present]
    results = e.emit_all(node, "gather_nd", (operands * 2)[:2], types)
    found = dict(zip(present, results, strict=True))
    return [found.get(i) for i in range(len(node.outputs))]


@rule(*_OPTIMIZERS, domain=_TRAINING)
def optimizer(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Operands rate, step, parameters, gradients, states; results parameters, states."""
    count = (len(node.inputs) - 2) // (2 + _OPTIMIZERS[node.op_type])
    results: list[Value | None] = [None] * len(node.outputs)
    for i in range(count):
        operands = [e.at(node, 2 + i + k * count) for k in range(2 + _OPTIMIZERS[node.op_type])]
        places = [i + k * count for k in range(1 + _OPTIMIZERS[node.op_type])]
        types = [e.result_type(node, p) for p in places]
        op = "adamw" if node.op_type == "Adam" else "sgd"
        new = e.emit_all(node, op, operands, types, None, str(i))
        for place, value in zip(places, new, strict=True):
            results[place] = value
    return results


def _suppression_types(node: OnnxNode) -> Sequence[TensorType | None]:
    scores = required(node, 1).type
    most = known_ints(node.input(2))
    if len(scores.shape) != 3 or (node.input(2) is not None and most is None):
        return [None]
    batch, classes, boxes = scores.shape
    kept = batch * classes * min(boxes, most[0] if most else 0)
    return [TensorType((kept, 3), DType.INT64)]


def _optimizer_types(node: OnnxNode) -> Sequence[TensorType | None]:
    states = _OPTIMIZERS[node.op_type]
    count = (len(node.inputs) - 2) // (2 + states)
    kept = [required(node, 2 + i) for i in range(count)]
    return [v.type for v in kept] * (1 + states)


def _mel_types(node: OnnxNode) -> Sequence[TensorType | None]:
    bins, length = known_ints(node.input(0)), known_ints(node.input(1))
    if bins is None or length is None:
        return [None]
    return [TensorType((length[0] // 2 + 1, bins[0]), DType.FLOAT32)]


def _tfidf_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    width = max(node.attributes.get("ngram_indexes", [0]), default=0) + 1
    rows = x.shape[:-1] if len(x.shape) > 1 else ()
    return [TensorType((*rows, width) if prod(x.shape) or rows else (width,), DType.FLOAT32)]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    ("", "NonMaxSuppression"): _suppression_types,
    ("", "MelWeightMatrix"): _mel_types,
    ("", "TfIdfVectorizer"): _tfidf_types,
    **{(_TRAINING, name): _optimizer_types for name in _OPTIMIZERS},
}
