"""Rotary position embedding written out: x cos + rotate(x) sin, where halves or pairs are rotated."""

from __future__ import annotations

from graph_ir.graph import Node, Value
from graph_ir.patterns.match import Match
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import Apply, Either, Term, Var

_X = Var("x")


def _slice(second: bool, paired: bool) -> Term:
    """One half of the last dim: a run, or every other element."""

    def where(node: Node) -> bool:
        shape = node.inputs[0].type.shape
        half, lead = shape[-1] // 2, [0] * (len(shape) - 1)
        starts = (*lead, (1 if paired else half) if second else 0)
        steps = (*[1] * len(lead), 2 if paired else 1)
        return (
            node.outputs[0].type.shape == (*shape[:-1], half)
            and shape[-1] == 2 * half
            and tuple(node.attrs.get("starts", (0,) * len(shape))) == starts
            and tuple(node.attrs.get("steps", (1,) * len(shape))) == steps
        )

    return Apply("slice", _X, where=where)


def _half(second: bool) -> Term:
    def where(node: Node) -> bool:
        return len({v.type.shape for v in node.outputs}) == 1 and _last(node)

    split = Apply("split", _X, where=where, output=int(second))
    return Either(_slice(second, paired=False), split)


def _paired(second: bool) -> Term:
    """Every other element, or one of the two in each row of pairs."""

    def picks(node: Node) -> bool:
        shape = node.inputs[0].type.shape
        starts = (*[0] * (len(shape) - 1), int(second))
        return (
            shape[-1] == 2
            and node.outputs[0].type.shape == (*shape[:-1], 1)
            and tuple(node.attrs.get("starts", (0,) * len(shape))) == starts
        )

    rows = Apply("reshape", _X, where=lambda n: _splits_pairs(n.inputs[0], n.outputs[0]))
    picked = Apply("slice", rows, where=picks)
    column = Apply("reshape", picked, where=lambda n: _is_apart(n.inputs[0], n.outputs[0]))
    return Either(_slice(second, paired=True), column)


def _splits_pairs(flat: Value, wide: Value) -> bool:
    *lead, width = flat.type.shape
    return wide.type.shape == (*lead, width // 2, 2)


def _last(node: Node) -> bool:
    """Whether two halves are cut from, or put together along, the last dim."""
    rank = len(node.inputs[0].type.shape)
    return int(node.attrs["axis"]) % rank == rank - 1 and len(node.inputs) + len(node.outputs) == 3


def _column(term: Term) -> Term:
    """Each element as a row of its own."""
    return Apply("reshape", term, where=lambda n: _is_apart(n.outputs[0], n.inputs[0]))


def _is_apart(wide: Value, flat: Value) -> bool:
    return wide.type.shape == (*flat.type.shape, 1)


def _joins_pairs(node: Node) -> bool:
    given, made = node.inputs[0].type.shape, node.outputs[0].type.shape
    return given[-1] == 2 and made == (*given[:-2], 2 * given[-2])


_HALVES = Apply("concat", Apply("neg", _half(second=True)), _half(second=False), where=_last)
_PAIRS = Apply(
    "reshape",
    Apply(
        "concat",
        _column(Apply("neg", _slice(second=True, paired=True))),
        _column(_slice(second=False, paired=True)),
        where=_last,
    ),
    where=_joins_pairs,
)


def _rotary(rotate: str, rotated: Term) -> Pattern:
    def build(match: Match, r: Replacement) -> bool:
        x, cos, sin = (match.values[k] for k in ("x", "cos", "sin"))
        if x.type.shape != r.root.outputs[0].type.shape or r.trains(cos) or r.trains(sin):
            return False
        return r.finish("rotary_embedding", [x, cos, sin], {"rotate": rotate})

    term = Apply("add", Apply("mul", _X, Var("cos")), Apply("mul", rotated, Var("sin")))
    return Pattern(f"rotary embedding by {rotate}", term, build)


def _turned_parts(rotate: str, first: Term, second: Term) -> Pattern:
    """The two parts turned on their own, by tables of half the width, and put together."""

    def build(match: Match, r: Replacement) -> bool:
        x, cos, sin = (match.values[k] for k in ("x", "cos", "sin"))
        shape = x.type.shape
        if shape != r.root.outputs[0].type.shape or r.trains(cos) or r.trains(sin):
            return False
        if any(t.type.shape[-1:] != (shape[-1] // 2,) for t in (cos, sin)):
            return False
        return r.finish("rotary_embedding", [x, cos, sin], {"rotate": rotate})

    cos, sin = Var("cos"), Var("sin")
    turned = (
        Apply("sub", Apply("mul", first, cos), Apply("mul", second, sin)),
        Apply("add", Apply("mul", second, cos), Apply("mul", first, sin)),
    )
    if rotate == "pairs":
        joined = Apply("concat", *map(_column, turned), where=_last)
        term = Apply("reshape", joined, where=_joins_pairs)
    else:
        term = Apply("concat", *turned, where=_last)
    return Pattern(f"rotary embedding of {rotate}", term, build)


PATTERNS = (
    _rotary("halves", _HALVES),
    _rotary("pairs", _PAIRS),
    _turned_parts("halves", _half(second=False), _half(second=True)),
    _turned_parts("pairs", _paired(second=False), _paired(second=True)),
)
