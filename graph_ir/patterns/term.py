"""How a pattern is written down: a term over operators, numbers and free values.

`Apply("mul", Var("x"), Apply("sigmoid", Var("x")))` is x sigmoid(x). A free value that occurs twice is the
same tensor twice. What frontends vary freely is no part of a term: the order of a sum's or a product's
operands, whether a number is an attribute or a constant, and casts between float types in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graph_ir.graph import Node


class Term:
    """A description of how a tensor is computed."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Var(Term):
    """Any tensor; the name tells occurrences apart."""

    name: str


@dataclass(frozen=True, slots=True)
class Number(Term):
    """A number: a given one, or any, which the name then stands for."""

    value: float | None = None
    name: str = ""


class Apply(Term):
    """An operator's first result (or another one)."""

    __slots__ = ("args", "name", "needs", "ops", "output", "where")

    def __init__(
        self,
        op: str,
        *args: Term,
        name: str = "",
        where: Callable[[Node], bool] | None = None,
        output: int = 0,
    ) -> None:
        """Describes one operator.

        Args:
            op: the operator, or several that will do, separated by spaces.
            args: its operands with a number at its place; none at all stands for any operands.
            name: what the found node is called in the match.
            where: what else must hold of the node.
            output: which of its results is meant.
        """
        self.ops = frozenset(op.split())
        self.args = args
        self.name = name
        self.where = where
        self.output = output
        self.needs = tuple(found for a in args if (found := roots(a)))
        """Operators that must be among those that make the operands: one of each set."""


class Either(Term):
    """One of several terms."""

    __slots__ = ("options",)

    def __init__(self, *options: Term) -> None:
        self.options = options


COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum"})


def endings(term: Term) -> list[Apply]:
    """The last operators that a term can have."""
    if isinstance(term, Either):
        return [end for option in term.options for end in endings(option)]
    return [term] if isinstance(term, Apply) else []


def roots(term: Term) -> frozenset[str]:
    """The names of the operators that a term can end in; none if it can be any tensor or number."""
    if isinstance(term, Either):
        each = [roots(option) for option in term.options]
        return frozenset().union(*each) if all(each) else frozenset()
    return term.ops if isinstance(term, Apply) else frozenset()


def product(a: Term, b: Term, c: Term) -> Term:
    """The product of three, in any order."""
    orders = {(p[0], frozenset(p[1:])): p for p in permutations((a, b, c))}
    return Either(*(Apply("mul", p, Apply("mul", q, r)) for p, q, r in orders.values()))


def times(a: Term, number: float) -> Term:
    """A tensor times a number, or divided by its inverse."""
    return Either(Apply("mul", a, Number(number)), Apply("div", a, Number(1 / number)))


def square(a: Term) -> Term:
    """The square of a, as a power or as a product."""
    return Either(Apply("pow", a, Number(2)), Apply("mul", a, a))


def square_root(a: Term) -> Term:
    """The root of a, as an operator or as a power."""
    return Either(Apply("sqrt", a), Apply("pow", a, Number(0.5)))


def inverse_root(a: Term) -> Term:
    """1 over the root of a, in any of its spellings."""
    root = square_root(a)
    return Either(
        Apply("rsqrt", a),
        Apply("reciprocal", root),
        Apply("div", Number(1), root),
        Apply("pow", a, Number(-0.5)),
    )
