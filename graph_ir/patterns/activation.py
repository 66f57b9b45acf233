"""Activations written out: GELU by erf and by tanh, sigmoid, SiLU, hard swish, softplus, Mish."""

from __future__ import annotations

from collections.abc import Iterable
from math import pi, sqrt

from graph_ir.graph import Node
from graph_ir.patterns.match import Match
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import Apply, Either, Number, Term, Var, product, square, times

_X = Var("x")
_HALF, _ONE = Number(0.5), Number(1)

_ERF = Apply("erf", times(_X, 1 / sqrt(2)))
_GELU = (
    product(_X, _HALF, Apply("add", _ERF, _ONE)),
    Apply("mul", _X, Apply("add", Apply("mul", _ERF, _HALF), _HALF)),
    Apply("div", Apply("mul", _X, Apply("add", _ERF, _ONE)), Number(2)),
)

# sqrt(2/pi) (x + 0.044715 x³), Hendrycks and Gimpel 2016, arXiv 1606.08415.
_CUBE = Either(Apply("pow", _X, Number(3)), Apply("mul", _X, square(_X)))
_CUBIC = Number(0.044715)
_INNER = Either(
    times(Apply("add", _X, Apply("mul", _CUBE, _CUBIC)), sqrt(2 / pi)),
    product(
        _X,
        Number(sqrt(2 / pi)),
        Apply("add", Either(product(_X, _X, _CUBIC), Apply("mul", square(_X), _CUBIC)), _ONE),
    ),
)
_TANH_GELU = product(_X, _HALF, Apply("add", Apply("tanh", _INNER), _ONE))


def _clamped(term: Term, low: float, high: float) -> Term:
    def within(node: Node) -> bool:
        return node.attrs.get("min") == low and node.attrs.get("max") == high

    return Apply("clamp", term, where=within)


def _limits(low: float, high: float) -> Term:
    return _clamped(Apply("add", _X, Number(3)), low, high)


def _shifted(slope: float, shift: float, low: float, high: float) -> Term:
    return _clamped(Apply("add", times(_X, slope), Number(shift)), low, high)


_RELU6 = _limits(0, 6)
_HARD_SIGMOID = (times(_RELU6, 1 / 6), _shifted(1 / 6, 0.5, 0, 1))
_HARD_SWISH = (
    Apply("mul", _X, Apply("hardsigmoid", _X)),
    times(Apply("mul", _X, _RELU6), 1 / 6),
)
_SOFTPLUS = (
    Apply("log1p", Apply("exp", _X)),
    Apply("log", Apply("add", Apply("exp", _X), _ONE)),
    # Far above zero it is x: exp would overflow.
    Apply("where", Apply("greater", _X, Number(name="far")), _X, Apply("softplus", _X)),
)
_DECAY = Apply("add", Apply("exp", Apply("neg", _X)), _ONE)

_SIGMOID = (
    Apply("reciprocal", _DECAY),
    Apply("div", _ONE, _DECAY),
    Apply("mul", Apply("sigmoid", _X), _ONE),
)


def _unary(op: str, terms: Iterable[Term]) -> Pattern:
    """A function of one tensor, element by element."""

    def build(match: Match, r: Replacement) -> bool:
        x = match.values["x"]
        return x.type.shape == r.root.outputs[0].type.shape and r.finish(op, [x])

    return Pattern(op, Either(*terms), build)


def _steep_silu(match: Match, r: Replacement) -> bool:
    """X sigmoid(a x), the quick GELU with a = 1.702 (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return r.finish("silu", [match.values["x"]], {"alpha": match.numbers["a"]})


PATTERNS = (
    Pattern(
        "steep SiLU",
        Apply("mul", _X, Apply("sigmoid", Apply("mul", _X, Number(name="a")))),
        _steep_silu,
    ),
    _unary("sigmoid", _SIGMOID),
    _unary("hardsigmoid", _HARD_SIGMOID),
    _unary("gelu", _GELU),
    _unary("gelu_tanh", (_TANH_GELU,)),
    _unary("silu", (Apply("mul", _X, Apply("sigmoid", _X)), Apply("div", _X, _DECAY))),
    _unary("hardswish", _HARD_SWISH),
    _unary("softplus", _SOFTPLUS),
    _unary("mish", (Apply("mul", _X, Apply("tanh", Apply("softplus", _X))),)),
)
