"""MatMul, Gemm, Einsum."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod

from graph_ir.equation import bind
from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.emitter import Emitter, broadcast_shape, rule
from importers.onnx_values import OnnxNode


@rule("MatMul")
def matmul(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """`... m k, ... k n -> ... m n`; vectors get a dim of size 1, as in numpy."""
    return [emit_matmul(e, node, e.at(node, 0), e.at(node, 1))]


def emit_matmul(
    e: Emitter, node: OnnxNode, a: Value, b: Value, out: TensorType | None = None
) -> Value:
    """Emits a numpy-like matrix product of two values; its type is the node's unless given."""
    out = out or e.result_type(node)
    a_shape, b_shape = a.type.shape, b.type.shape
    if not a_shape or not b_shape:
        raise ModelFileError(f"{node.label} multiplies a scalar: MatMul needs vectors or matrices")
    if len(a_shape) == 1:
        a = e.reshape(node, a, (1, *a_shape), "row")
    if len(b_shape) == 1:
        b = e.reshape(node, b, (*b_shape, 1), "column")
    batch = broadcast_shape(a.type.shape[:-2], b.type.shape[:-2])
    shape = (*batch, a.type.shape[-2], b.type.shape[-1])
    result = e.emit(node, "matmul", [a, b], out.with_shape(shape))
    return e.reshape(node, result, out.shape, "result")


@rule("Gemm")
def gemm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Alpha A' B' + beta C. A weight stored as [n, k] makes it a linear layer."""
    trans_a, trans_b = (bool(node.attributes.get(k, 0)) for k in ("transA", "transB"))
    a, b, out = e.at(node, 0), e.at(node, 1), e.result_type(node)
    if trans_a:
        text = "k m, n k -> m n" if trans_b else "k m, k n -> m n"
        equation = bind(text, [a.type.shape, b.type.shape], [out.shape])
        result = e.emit(node, "einsum", [a, b], out, {"equation": equation})
    else:
        result = e.emit(node, "linear" if trans_b else "matmul", [a, b], out)
    result = e.scale(node, result, node.attributes.get("alpha", 1.0), "alpha")
    bias = node.input(2)
    beta = node.attributes.get("beta", 1.0)
    if bias is None or beta == 0:
        return [result]
    if len(bias.shape) == 1 and beta == 1:
        return [e.add_bias(node, result, bias)]
    addend = e.scale(node, e.operand(bias), beta, "beta")
    return [e.emit(node, "add", [result, addend], out, {"epilogue": True}, "bias")]


@rule("Einsum")
def einsum(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Three and more operands are combined two at a time, in the cheapest order."""
    text = node.attributes["equation"]
    text = (text.decode() if isinstance(text, bytes) else text).replace(" ", "")
    left, arrow, right = text.partition("->")
    operands = e.operands(node)
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ModelFileError(
            f"{node.label}: equation {text!r} does not fit {len(operands)} operands"
        )
    if len(operands) == 1 and arrow and terms[0] == right:
        return operands
    shapes = [v.type.shape for v in operands]
    terms, result = _without_ellipsis(terms, shapes, right)
    if not arrow:
        joined = "".join(terms)
        result = "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=False):
            sizes[letter] = max(size, sizes.get(letter, 0))
    out = e.result_type(node)
    parts = [
        _without_ones(e, node, term, value, sizes, f"operand{i}")
        for i, (term, value) in enumerate(zip(terms, operands, strict=True))
    ]
    while len(parts) > 2:
        parts = _combine_cheapest(e, node, parts, result, sizes)
    terms, operands = [t for t, _ in parts], [v for _, v in parts]
    equation = _bind(terms, result, operands, out.shape, node)
    return [e.emit(node, "einsum", operands, out, {"equation": equation})]


def _without_ones(
    e: Emitter, node: OnnxNode, term: str, value: Value, sizes: dict[str, int], label: str
) -> tuple[str, Value]:
    """Drops dims of size 1 that are broadcast."""
    shape = value.type.shape
    kept = [i for i, n in enumerate(shape) if n > 1 or i >= len(term) or sizes[term[i]] == 1]
    flat = e.reshape(node, value, [shape[i] for i in kept], label)
    return "".join(term[i] for i in kept if i < len(term)), flat


_MOST_COMPARED = 12
"""Operands among which the cheapest pair is looked for; no real equation has more."""


def _combine_cheapest(
    e: Emitter,
    node: OnnxNode,
    parts: list[tuple[str, Value]],
    result: str,
    sizes: dict[str, int],
) -> list[tuple[str, Value]]:
    """Replaces that pair of operands by its product after which least work is left."""

    def after(i: int, j: int) -> tuple[str, str]:
        both = "".join(dict.fromkeys(parts[i][0] + parts[j][0]))
        rest = "".join(t for k, (t, _) in enumerate(parts) if k not in (i, j))
        return both, "".join(c for c in both if c in rest + result)

    def work(pair: tuple[int, int]) -> tuple[int, int]:
        both, kept = after(*pair)
        rest = "".join(t for k, (t, _) in enumerate(parts) if k not in pair)
        now = prod(sizes[c] for c in both) * (2 if len(kept) < len(both) else 1)
        return now + 2 * prod(sizes[c] for c in set(kept + rest)), now

    pair = min(combinations(range(min(len(parts), _MOST_COMPARED)), 2), key=work)
    both, kept = after(*pair)
    (term_a, a), (term_b, b) = (parts[k] for k in pair)
    type_ = e.result_type(node).with_shape(tuple(sizes[c] for c in kept))
    label = f"step{len(parts)}"
    if kept == both:
        views = [
            _aligned(e, node, v, t, kept, f"{label}.{i}")
            for i, (t, v) in enumerate(((term_a, a), (term_b, b)))
        ]
        value = e.emit(node, "mul", views, type_, None, label)
    else:
        equation = _bind([term_a, term_b], kept, [a, b], type_.shape, node)
        value = e.emit(node, "einsum", [a, b], type_, {"equation": equation}, label)
    rest = [part for k, part in enumerate(parts) if k not in pair]
    return [(kept, value), *rest]


def _aligned(e: Emitter, node: OnnxNode, value: Value, term: str, kept: str, label: str) -> Value:
    """The value with its dims in the order of `kept`, and ones for the letters it lacks."""
    order = sorted(range(len(term)), key=lambda i: kept.index(term[i]))
    moved = e.transpose(node, value, order, f"{label}.transpose")
    sizes = dict(zip((term[i] for i in order), moved.type.shape, strict=True))
    return e.reshape(node, moved, [sizes.get(c, 1) for c in kept], f"{label}.view")


def _bind(  # type: ignore[no-untyped-def]
    terms: Sequence[str],
    result: str,
    operands: Sequence[Value],
    shape: Sequence[int],
    node: OnnxNode,
):
    text = f"{', '.join(' '.join(t) for t in terms)} -> {' '.join(result)}"
    try:
        return bind(text, [v.type.shape for v in operands], [tuple(shape)])
    except ValueError as error:
        raise ModelFileError(f"{node.label}: {error}") from None


def _without_ellipsis(
    terms: Sequence[str], shapes: Sequence[Sequence[int]], result: str
) -> tuple[list[str], str]:
    """Replaces '...' by letters that the equation does not use."""
    used = set("".join(terms))
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if c not in used]
    widths = [len(s) - len(t) + 3 for t, s in zip(terms, shapes, strict=True) if "..." in t]
    letters = "".join(spare[: max(widths, default=0)])
    spelled = []
    for term, shape in zip(terms, shapes, strict=True):
        width = len(shape) - len(term) + 3
        spelled.append(term.replace("...", letters[len(letters) - width :] if width else ""))
    return spelled, result.replace("...", letters)
