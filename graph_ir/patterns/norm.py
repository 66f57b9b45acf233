"""Layer norm and RMS norm written out: a mean of squares, a root, a quotient; then weight and bias."""

from __future__ import annotations

from collections.abc import Callable
from math import isclose

from graph_ir.graph import Node, Value
from graph_ir.patterns.match import Match
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import (
    Apply,
    Either,
    Number,
    Term,
    Var,
    inverse_root,
    square,
    square_root,
)
from graph_ir.tensor_type import DType, TensorType

_X, _EPS = Var("x"), Number(name="eps")


def _last_axes(node: Node) -> bool:
    if not node.attrs.get("keepdims") or normalized_rank(node) == 0:
        return False
    return node.attrs.get("divisor") in (None, _averaged(node))


def _averaged(node: Node) -> int:
    """How many elements a reduction takes together."""
    (x,) = node.inputs
    return x.type.elements // max(node.outputs[0].type.elements, 1)


def normalized_rank(mean: Node) -> int:
    """How many of the last dims a mean is over; 0 if it is over others."""
    rank = len(mean.inputs[0].type.shape)
    axes = sorted(axis % rank for axis in mean.attrs.get("axes", range(rank)))
    return len(axes) if axes == list(range(rank - len(axes), rank)) else 0


def _mean(term: Term) -> Term:
    return Apply("reduce_mean", term, where=_last_axes)


_CENTRED = Apply("sub", _X, _mean(_X))


def _normalized(term: Term) -> Term:
    """A tensor over the root of its mean square, the tensor perhaps weighted before."""
    spread: Term = Apply("add", _mean(square(term)), _EPS)
    if term is _CENTRED:
        # The mean of squares without the square of the mean.
        variance = Apply("sub", _mean(square(_X)), square(_mean(_X)))
        spread = Either(spread, Apply("add", variance, _EPS))
    given = Either(term, Apply("mul", term, Var("weight")))
    return Either(
        Apply("div", given, square_root(spread)), Apply("mul", given, inverse_root(spread))
    )


_SPREAD = Apply("add", _mean(square(_CENTRED)), _EPS)
_GAIN = Apply("mul", inverse_root(_SPREAD), Var("weight"))
# x g + (bias - mean g) with g = weight / deviation: how TensorFlow writes a layer norm.
_FOLDED = Apply(
    "add",
    Apply("mul", _X, _GAIN),
    Apply("sub", Var("bias"), Apply("mul", _mean(_X), _GAIN)),
)


def _rank_of(match: Match) -> int:
    """The number of dims that all means of a match are over, 0 if they differ."""
    ranks = {normalized_rank(n) for n in match.inner if n.op == "reduce_mean"}
    return ranks.pop() if len(ranks) == 1 else 0


def _statistics(r: Replacement, op: str, x: Value, rank: int) -> list[tuple[str, TensorType]]:
    if not r.training:
        return []
    row = TensorType(x.type.shape[: len(x.type.shape) - rank], DType.FLOAT32)
    labels = ("mean", "inv_std") if op == "layer_norm" else ("inv_std",)
    return [(label, row) for label in labels]


def _finish(r: Replacement, op: str, match: Match, operands: list[Value]) -> bool:
    rank, x = _rank_of(match), match.values["x"]
    if rank == 0 or r.root.outputs[0].type.shape != x.type.shape:
        return False
    attrs = {"eps": match.numbers["eps"], "rank": rank}
    return r.finish(op, [x, *operands], attrs, _statistics(r, op, x, rank))


def _norm(op: str) -> Callable[[Match, Replacement], bool]:
    def build(match: Match, r: Replacement) -> bool:
        if "weight" not in match.values:
            return _finish(r, op, match, [])
        weight = _row(r, match.values["weight"], match.values["x"], _rank_of(match), "weight")
        return weight is not None and _finish(r, op, match, [weight])

    return build


def _mean_of_sum(match: Match, r: Replacement) -> bool:
    total, factor = match.nodes["sum"], match.numbers["factor"]
    if r.root.op == "div":
        factor = 1 / factor
    if not isclose(factor * _averaged(total), 1, rel_tol=1e-6) or "equation" in total.attrs:
        return False
    return r.finish("reduce_mean", total.inputs, total.attrs)


def _folded_layer_norm(match: Match, r: Replacement) -> bool:
    x, rank = match.values["x"], _rank_of(match)
    weights = [_row(r, match.values[k], x, rank, k) for k in ("weight", "bias")]
    found = [w for w in weights if w is not None]
    return len(found) == 2 and _finish(r, "layer_norm", match, found)


def _row(r: Replacement, weight: Value, x: Value, rank: int, label: str) -> Value | None:
    """A weight of the shape that is normalised; it may come with leading dims of size 1."""
    shape = x.type.shape[len(x.type.shape) - rank :]
    given = weight.type.shape
    if given[len(given) - rank :] != shape or any(n != 1 for n in given[: len(given) - rank]):
        return None
    return r.view(weight, shape, label)


def _absorb(operands: int, label: str) -> Pattern:
    """A product with a row is a norm's weight, a sum with one its bias."""

    def build(match: Match, r: Replacement) -> bool:
        norm = match.nodes["norm"]
        row = _row(r, match.values["w"], norm.inputs[0], norm.attrs.get("rank", 1), label)
        return row is not None and _again(r, norm, [*norm.inputs, row])

    ops = "layer_norm rms_norm" if operands == 1 else "layer_norm"
    norm = Apply(ops, name="norm", where=lambda node: len(node.inputs) == operands)
    op = "mul" if operands == 1 else "add"
    return Pattern(f"norm {label}", Apply(op, norm, Var("w")), build)


def _again(r: Replacement, norm: Node, operands: list[Value]) -> bool:
    labels = ("mean", "inv_std") if norm.op == "layer_norm" else ("inv_std",)
    types = [v.type for v in norm.outputs[1:]]
    attrs = {k: v for k, v in norm.attrs.items() if k != "equation"}
    return r.finish(norm.op, operands, attrs, list(zip(labels, types, strict=False)))


def _narrowed(match: Match, r: Replacement) -> bool:
    """A norm that computes in a wide type and rounds its result is one kernel."""
    norm, made = match.nodes["norm"], r.root.outputs[0].type.dtype
    if not made.is_float or made.bits > norm.outputs[0].type.dtype.bits:
        return False
    return _again(r, norm, list(norm.inputs))


def _kept_dims(match: Match, r: Replacement) -> bool:
    """Dims of size 1 put back behind a reduction."""
    node = match.nodes["reduction"]
    (x,) = node.inputs
    axes = tuple(
        axis % len(x.type.shape) for axis in node.attrs.get("axes", range(len(x.type.shape)))
    )
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.type.shape))
    if node.attrs.get("keepdims") or "equation" in node.attrs:
        return False
    if r.root.outputs[0].type.shape != kept or r.root.outputs[0].type.elements == 1:
        return False
    return r.finish(node.op, [x], {**node.attrs, "axes": axes, "keepdims": True})


PATTERNS = (
    Pattern(
        "reduction that keeps its dims",
        Apply("reshape", Apply("reduce_mean reduce_sum reduce_max", name="reduction")),
        _kept_dims,
    ),
    Pattern(
        "mean as a sum",
        Either(
            *(
                Apply(op, Apply("reduce_sum", name="sum"), Number(name="factor"))
                for op in ("mul", "div")
            )
        ),
        _mean_of_sum,
    ),
    Pattern("layer norm", _normalized(_CENTRED), _norm("layer_norm")),
    Pattern("RMS norm", _normalized(_X), _norm("rms_norm")),
    Pattern("folded layer norm", _FOLDED, _folded_layer_norm),
    _absorb(1, "weight"),
    _absorb(2, "bias"),
    Pattern("rounded norm", Apply("cast", Apply("layer_norm rms_norm", name="norm")), _narrowed),
)
