"""Rotary position embedding written out: x cos + rotate(x) sin."""

from __future__ import annotations

from graph_ir.graph import Node
from graph_ir.patterns.match import Match
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import Apply, Either, Term, Var

_X = Var("x")


def _half(second: bool) -> Term:
    """The first or the second half of the last dim."""

    def where(node: Node) -> bool:
        shape = node.inputs[0].type.shape
        half = shape[-1] // 2
        starts = (*[0] * (len(shape) - 1), half if second else 0)
        return (
            node.outputs[0].type.shape == (*shape[:-1], half)
            and shape[-1] == 2 * half
            and tuple(node.attrs.get("starts", starts)) == starts
            and all(step == 1 for step in node.attrs.get("steps", ()))
        )

    def split(node: Node) -> bool:
        shape = node.inputs[0].type.shape
        return len({v.type.shape for v in node.outputs}) == 1 and _last(node, len(shape))

    return Either(
        Apply("slice", _X, where=where), Apply("split", _X, where=split, output=int(second))
    )


def _last(node: Node, rank: int) -> bool:
    return int(node.attrs["axis"]) % rank == rank - 1 and len(node.outputs) in (1, 2)


_ROTATED = Apply(
    "concat",
    Apply("neg", _half(second=True)),
    _half(second=False),
    where=lambda node: _last(node, len(node.outputs[0].type.shape)),
)


def _rotary(match: Match, r: Replacement) -> bool:
    x, cos, sin = (match.values[k] for k in ("x", "cos", "sin"))
    if x.type.shape != r.root.outputs[0].type.shape or r.trains(cos) or r.trains(sin):
        return False
    return r.finish("rotary_embedding", [x, cos, sin], {"rotate": "half"})


PATTERNS = (
    Pattern(
        "rotary embedding",
        Apply("add", Apply("mul", _X, Var("cos")), Apply("mul", _ROTATED, Var("sin"))),
        _rotary,
    ),
)
