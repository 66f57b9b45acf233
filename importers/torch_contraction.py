"""aten's products in graph_ir's words: linear, matmul, convolution, attention, grouped experts, losses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.equation import Equation, bind
from graph_ir.errors import UnknownOperatorError
from graph_ir.graph import Value
from importers.torch_call import Call, is_tensor
from importers.torch_movement import as_shape, slice_value

Rule = Callable[[Call], Any]


def with_bias(call: Call, product: Value, bias: Value) -> Value:
    """Adds a bias; kernels do it while the product is still in registers (attribute `epilogue`)."""
    return call.emit("add", [product, bias], [product.type], {"epilogue": True}, "add_bias")[0]


def _linear(call: Call) -> Value:
    product = call.one("linear", [call.value("input"), call.value("weight")])
    return with_bias(call, product, call.value("bias")) if is_tensor(call["bias"]) else product


def _matmul(first: str, second: str) -> Rule:
    def rule(call: Call) -> Value:
        left, right = call.value(first), call.value(second)
        # Vectors become matrices of one row or one column, for free.
        if len(left.type.shape) == 1:
            left = as_shape(call, left, (1, *left.type.shape), "row")
        if len(right.type.shape) == 1:
            right = as_shape(call, right, (*right.type.shape, 1), "column")
        batch = max(left.type.shape[:-2], right.type.shape[:-2], key=len)
        shape = call.type.shape
        wide = (*shape[: len(batch)], left.type.shape[-2], right.type.shape[-1])
        (product,) = call.emit("matmul", [left, right], [call.type.with_shape(wide)])
        return as_shape(call, product, shape)

    return rule


def _outer(call: Call) -> Value:
    left, right = call.value("self"), call.value("vec2")
    column = as_shape(call, left, (*left.type.shape, 1))
    return call.one("mul", [column, right])


def _matmul_added(first: str, second: str) -> Rule:
    """`addmm`, `baddbmm`: beta * self + alpha * product."""

    def rule(call: Call) -> Value:
        (product,) = call.emit("matmul", [call.value(first), call.value(second)])
        if call["alpha"] not in (None, 1):
            (product,) = call.emit(
                "mul", [product], attrs={"scalar": call["alpha"]}, suffix="alpha"
            )
        if call["beta"] == 0:
            return product
        bias = call.value("self")
        if call["beta"] not in (None, 1):
            (bias,) = call.emit("mul", [bias], [bias.type], {"scalar": call["beta"]}, "beta")
        return with_bias(call, product, bias)

    return rule


def _einsum(call: Call) -> Value:
    """An einsum is an equation already; three operands or more are multiplied pair by pair, as torch does."""
    operands = call.sequence("tensors")
    terms, result = einsum_names(str(call["equation"]), [len(v.type.shape) for v in operands])
    sizes = {
        n: s
        for t, v in zip(terms, operands, strict=True)
        for n, s in zip(t, v.type.shape, strict=True)
    }
    while len(operands) > 2:
        wanted = {n for t in (*terms[2:], result) for n in t}
        kept = [n for n in dict.fromkeys((*terms[0], *terms[1])) if n in wanted]
        shape = call.type.with_shape(tuple(sizes[n] for n in kept))
        equation = _spell(terms[:2], kept, operands[:2], shape.shape)
        (pair,) = call.emit("einsum", operands[:2], [shape], {"equation": equation})
        operands, terms = [pair, *operands[2:]], [kept, *terms[2:]]
    return call.one("einsum", operands, equation=_spell(terms, result, operands, call.type.shape))


def einsum_names(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Dim names of each operand and of the result; an ellipsis becomes `batch0`, `batch1`, ..."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = re.sub(r"[^A-Za-z]", "", left)
        dots = "..." if "..." in left else ""
        right = dots + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    hidden = [rank - len(t.replace("...", "")) for rank, t in zip(ranks, terms, strict=True)]
    batch = [f"batch{i}" for i in range(max(hidden))]

    def names(term: str, rank: int) -> list[str]:
        found: list[str] = []
        for part in re.findall(r"\.\.\.|[A-Za-z]", term):
            found += batch[len(batch) - rank :] if part == "..." else [part]
        return found

    return [names(t, r) for t, r in zip(terms, hidden, strict=True)], names(right, len(batch))


def _spell(
    terms: Sequence[Sequence[str]],
    result: Sequence[str],
    operands: Sequence[Value],
    shape: tuple[int, ...],
) -> Equation:
    text = f"{', '.join(' '.join(t) for t in terms)} -> {' '.join(result)}"
    return bind(text, [v.type.shape for v in operands], [shape])


def _grouped_matmul(data: str, weights: str) -> Rule:
    """Rows sorted by expert times each expert's own matrix, the rows balanced over the experts.

    x[s, k], w[e, k, n] -> [s, n]. With fewer rows than experts only as many experts as rows are read. If
    the rows do not divide evenly, the first experts take one row more.
    """

    def rule(call: Call) -> Value:
        x, w = call.value(data), call.value(weights)
        if len(x.type.shape) == len(w.type.shape) == 3:
            return call.one("matmul", [x, w])
        rows, experts, width = x.type.shape[0], w.type.shape[0], w.type.shape[2]
        if len(x.type.shape) != 2 or len(w.type.shape) != 3:
            raise UnknownOperatorError(
                f"{call.node.name}: grouped product of {x.type} and {w.type} has no rule: add that form to "
                f"_grouped_matmul in importers/torch_contraction.py"
            )
        share, more = divmod(rows, experts)
        groups = [(more, share + 1), (experts - more, share)]
        pieces: list[Value] = []
        row = expert = 0
        for count, each in groups:
            if not count or not each:
                continue
            part = slice_value(call, x, 0, row, count * each, suffix="rows")
            own = slice_value(call, w, 0, expert, count, suffix="experts")
            out = x.type.with_shape((count * each, width))
            pieces += call.emit("grouped_matmul", [part, own], [out])
            row, expert = row + count * each, expert + count
        return pieces[0] if len(pieces) == 1 else call.one("concat", pieces, axis=0)

    return rule


def per_dim(given: Any, rank: int, default: int) -> tuple[int, ...]:
    """One number per spatial dim: `given`, repeated if it is a single one."""
    if given is None or (isinstance(given, list | tuple) and not given):
        return (default,) * rank
    if isinstance(given, int):
        return (given,) * rank
    values = tuple(int(v) for v in given)
    return values * rank if len(values) == 1 else values


def _convolution(transposed: bool) -> Rule:
    def rule(call: Call) -> Value:
        x, weight = call.value("input"), call.value("weight")
        rank = len(weight.type.shape) - 2
        batched = len(x.type.shape) == rank + 2
        if not batched:
            x = as_shape(call, x, (1, *x.type.shape), "batch")
        dilation = per_dim(call["dilation"], rank, 1)
        attrs = {
            "stride": per_dim(call["stride"], rank, 1),
            "padding": _padding(call["padding"], weight.type.shape[2:], dilation),
            "dilation": dilation,
            "groups": int(call["groups"] or 1),
        }
        out = call.type if batched else call.type.with_shape((1, *call.type.shape))
        record = "conv_transpose" if transposed or call["transposed"] else "conv"
        (product,) = call.emit(record, [x, weight], [out], attrs)
        if is_tensor(call["bias"]):
            bias = call.value("bias")
            column = as_shape(call, bias, (*bias.type.shape, *[1] * rank), "bias_column")
            product = with_bias(call, product, column)
        return as_shape(call, product, call.type.shape)

    return rule


def _padding(given: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Zeros before the first element; `same` puts the odd one behind."""
    if given == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    return (0,) * len(kernel) if given == "valid" else per_dim(given, len(kernel), 0)


RULES: Mapping[str, Rule] = {
    "aten.linear": _linear,
    "aten.matmul": _matmul("self", "other"),
    "aten.__matmul__": _matmul("self", "other"),
    "aten.mm": _matmul("self", "mat2"),
    "aten.bmm": _matmul("self", "mat2"),
    "aten.mv": _matmul("self", "vec"),
    "aten.dot": _matmul("self", "tensor"),
    "aten.vdot": _matmul("self", "other"),
    "aten.outer": _outer,
    "aten.addmm": _matmul_added("mat1", "mat2"),
    "aten.baddbmm": _matmul_added("batch1", "batch2"),
    "aten.einsum": _einsum,
    "aten._grouped_mm": _grouped_matmul("self", "mat2"),
    "transformers.grouped_mm_fallback": _grouped_matmul("input", "weight"),
    **{f"aten.conv{n}d": _convolution(transposed=False) for n in (1, 2, 3)},
    **{f"aten.conv_transpose{n}d": _convolution(transposed=True) for n in (1, 2, 3)},
    "aten.convolution": _convolution(transposed=False),
}
"""Rules by aten name."""
