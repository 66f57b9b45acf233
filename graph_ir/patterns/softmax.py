"""Softmax and its logarithm written out: exponentials over their sum."""

from __future__ import annotations

from graph_ir.graph import Node
from graph_ir.patterns.match import Match
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import Apply, Either, Term, Var

_X = Var("x")


def _axis(node: Node) -> int | None:
    rank = len(node.inputs[0].type.shape)
    axes = [axis % rank for axis in node.attrs.get("axes", range(rank))]
    return axes[0] if len(axes) == 1 and node.attrs.get("keepdims") else None


def _reduce(op: str, term: Term) -> Term:
    return Apply(op, term, where=lambda node: _axis(node) is not None)


# Subtracting the maximum changes nothing but the range of the exponentials.
_SHIFTED = Either(Apply("sub", _X, _reduce("reduce_max", _X)), _X)
_POWERS = Apply("exp", _SHIFTED)
_TOTAL = _reduce("reduce_sum", _POWERS)


def _over_axis(op: str) -> Pattern:
    def build(match: Match, r: Replacement) -> bool:
        axes = {_axis(n) for n in match.inner if n.op in ("reduce_max", "reduce_sum")}
        x = match.values["x"]
        if len(axes) != 1 or r.root.outputs[0].type.shape != x.type.shape:
            return False
        return r.finish(op, [x], {"axis": axes.pop()})

    if op == "softmax":
        term: Term = Apply("div", _POWERS, _TOTAL)
    else:
        term = Apply("sub", _SHIFTED, Apply("log", _TOTAL))
    return Pattern(op, term, build)


def _log(match: Match, r: Replacement) -> bool:
    softmax = match.nodes["softmax"]
    return r.finish("log_softmax", softmax.inputs, softmax.attrs)


def _exp(match: Match, r: Replacement) -> bool:
    logarithm = match.nodes["log_softmax"]
    return r.finish("softmax", logarithm.inputs, logarithm.attrs)


PATTERNS = (
    Pattern("power of log softmax", Apply("exp", Apply("log_softmax", name="log_softmax")), _exp),
    _over_axis("softmax"),
    _over_axis("log_softmax"),
    Pattern("log of softmax", Apply("log", Apply("softmax", name="softmax")), _log),
)
