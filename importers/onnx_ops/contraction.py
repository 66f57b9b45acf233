"""MatMul, Gemm, Einsum."""

from __future__ import annotations

from collections.abc import Sequence

from graph_ir.equation import bind
from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from importers.onnx_ops.emitter import Emitter, rule
from importers.onnx_values import OnnxNode


@rule("MatMul")
def matmul(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """`... m k, ... k n -> ... m n`; vectors get a dim of size 1, as in numpy."""
    return [emit_matmul(e, node, e.at(node, 0), e.at(node, 1))]


def emit_matmul(e: Emitter, node: OnnxNode, a: Value, b: Value) -> Value:
    """Emits a numpy-like matrix product of two values."""
    out = e.result_type(node)
    a_shape, b_shape = a.type.shape, b.type.shape
    if not a_shape or not b_shape:
        raise ModelFileError(f"{node.label} multiplies a scalar: MatMul needs vectors or matrices")
    if len(a_shape) == 1:
        a = e.reshape(node, a, (1, *a_shape), "row")
    if len(b_shape) == 1:
        b = e.reshape(node, b, (*b_shape, 1), "column")
    batch = max(a.type.shape[:-2], b.type.shape[:-2], key=len)
    full = out.shape if min(len(a_shape), len(b_shape)) > 1 else None
    shape = full or (*_batch(a, b, batch), a.type.shape[-2], b.type.shape[-1])
    result = e.emit(node, "matmul", [a, b], out.with_shape(shape))
    return e.reshape(node, result, out.shape, "result")


def _batch(a: Value, b: Value, longer: Sequence[int]) -> tuple[int, ...]:
    """Batch dims of a product where one side is a vector: those of the other side."""
    return tuple(longer)


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
    """The operator graph's own notation; three and more operands are contracted left to right."""
    text = node.attributes["equation"]
    text = (text.decode() if isinstance(text, bytes) else text).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    operands = e.operands(node)
    if len(terms) != len(operands) or not all(terms):
        raise ModelFileError(
            f"{node.label}: equation {text!r} does not fit {len(operands)} operands"
        )
    shapes = [v.type.shape for v in operands]
    terms, spelled = _without_ellipsis(terms, shapes, right)
    if not arrow:
        joined = "".join(terms)
        spelled = "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    out = e.result_type(node)
    value, term = operands[0], terms[0]
    sizes = {c: n for t, s in zip(terms, shapes, strict=True) for c, n in zip(t, s, strict=False)}
    for step, (other, other_term) in enumerate(zip(operands[1:], terms[1:], strict=True)):
        last = step == len(operands) - 2
        later = set("".join(terms[step + 2 :]) + spelled)
        kept = (
            spelled if last else "".join(c for c in dict.fromkeys(term + other_term) if c in later)
        )
        shape = tuple(sizes[c] for c in kept)
        equation = _bind([term, other_term], kept, [value, other], shape, node)
        label = "" if last else f"step{step}"
        value = e.emit(
            node, "einsum", [value, other], out.with_shape(shape), {"equation": equation}, label
        )
        term = kept
    if len(operands) == 1:
        equation = _bind([term], spelled, [value], out.shape, node)
        value = e.emit(node, "einsum", [value], out, {"equation": equation})
    return [value]


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
