"""Matches a term against the operators that make a tensor.

A match walks from the last operator to its operands and looks at nothing else, so its price does not grow
with the graph. Values inside of a match vanish with it; so nothing outside may read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isclose
from typing import NamedTuple

import numpy as np

from graph_ir.graph import Node, Value
from graph_ir.patterns.term import COMMUTATIVE, Apply, Either, Number, Term, Var

Argument = Value | float
# Constants of half-precision models carry their rounding.
_TOLERANCE = 2e-3


class Match(NamedTuple):
    """What a term's names stand for."""

    values: Mapping[str, Value]
    numbers: Mapping[str, float]
    nodes: Mapping[str, Node]
    inner: frozenset[Node]
    """Every node of the match, the last one included."""


_NOTHING = Match({}, {}, {}, frozenset())


_CASTS = frozenset({"cast", "copy"})


def plain(value: Value, producers: Mapping[Value, Node]) -> Value:
    """A tensor before it was widened or copied: a fused kernel reads it as it is."""
    node = producers.get(value)
    while node is not None and node.op in _CASTS:
        (source,) = node.inputs
        narrow, wide = source.type.dtype, value.type.dtype
        if narrow is not wide and not (
            narrow.is_float and wide.is_float and narrow.bits <= wide.bits
        ):
            break
        value, node = source, producers.get(source)
    return value


def is_cast(node: Node) -> bool:
    """Whether a node only rounds floats, or copies them to another layout."""
    return node.op in _CASTS and all(v.type.dtype.is_float for v in (*node.inputs, *node.outputs))


def number_of(argument: Argument) -> float | None:
    """The number that an operand is known to be."""
    if not isinstance(argument, Value):
        return float(argument)
    if argument.kind not in ("constant", "buffer") or argument.data is None:
        return None
    if argument.type.elements != 1 or not argument.type.dtype.is_float:
        return None
    return float(np.asarray(argument.data).reshape(-1)[0])


def arguments(node: Node) -> list[Argument]:
    """A node's operands, with the attribute `scalar` at its place."""
    found: list[Argument] = list(node.inputs)
    if "scalar" in node.attrs:
        found.insert(0 if node.attrs.get("scalar_first") else 1, node.attrs["scalar"])
    return found


def scaled_by(node: Node) -> tuple[Value | None, float]:
    """The tensor that a node multiplies or divides by a number, and the factor."""
    if node.op not in ("mul", "div"):
        return None, 1.0
    given = arguments(node)
    if len(given) != 2:
        return None, 1.0
    for source, other in (given, given[::-1]):
        number = number_of(other)
        if isinstance(source, Value) and number_of(source) is None and number:
            if node.op == "mul":
                return source, number
            return (source, 1 / number) if source is given[0] else (None, 1.0)
    return None, 1.0


class Matcher:
    """Matches terms in one graph."""

    def __init__(self, producers: Mapping[Value, Node]) -> None:
        self.producers = producers
        self._makers: dict[Node, frozenset[str]] = {}

    def matches(self, term: Apply, node: Node) -> Iterator[Match]:
        """All ways in which a node is the last operator of a term."""
        return self._apply(term, node, node.outputs[0], _NOTHING)

    def makers(self, node: Node) -> frozenset[str]:
        """Operators that make a node's operands, those behind casts included."""
        found = self._makers.get(node)
        if found is None:
            ops = set()
            for value in node.inputs:
                maker = self.producers.get(value)
                while maker is not None:
                    ops.add(maker.op)
                    behind = maker.inputs[0] if maker.op in _CASTS else None
                    maker = None if behind is None else self.producers.get(behind)
            found = self._makers[node] = frozenset(ops)
        return found

    def _term(self, term: Term, argument: Argument, match: Match) -> Iterator[Match]:
        if isinstance(term, Either):
            for option in term.options:
                yield from self._term(option, argument, match)
        elif isinstance(term, Number):
            yield from _number(term, argument, match)
        elif isinstance(argument, Value):
            if isinstance(term, Var):
                yield from self._var(term, argument, match)
            elif isinstance(term, Apply):
                yield from self._behind_casts(term, argument, match)

    def _var(self, term: Var, argument: Value, match: Match) -> Iterator[Match]:
        value = plain(argument, self.producers)
        known = match.values.get(term.name)
        if known is None:
            values = {**match.values, term.name: value}
            yield Match(values, match.numbers, match.nodes, match.inner)
        elif known is value:
            yield match

    def _behind_casts(self, term: Apply, value: Value, match: Match) -> Iterator[Match]:
        node = self.producers.get(value)
        casts: set[Node] = set()
        while node is not None and node.op not in term.ops:
            if not is_cast(node):
                return
            casts.add(node)
            (value,) = node.inputs
            node = self.producers.get(value)
        if node is not None:
            if casts:
                match = match._replace(inner=match.inner | casts)
            yield from self._apply(term, node, value, match)

    def _apply(self, term: Apply, node: Node, value: Value, match: Match) -> Iterator[Match]:
        if node.op not in term.ops or node.outputs[term.output : term.output + 1] != (value,):
            return
        if term.needs:
            makers = self.makers(node)
            if any(makers.isdisjoint(ops) for ops in term.needs):
                return
        if term.where is not None and not term.where(node):
            return
        nodes = {**match.nodes, term.name: node} if term.name else match.nodes
        match = Match(match.values, match.numbers, nodes, match.inner | {node})
        if not term.args:
            yield match
            return
        given = arguments(node)
        if len(given) != len(term.args):
            return
        yield from self._all(term.args, given, match)
        if len(given) == 2 and node.op in COMMUTATIVE:
            yield from self._all(term.args, given[::-1], match)

    def _all(self, terms: tuple[Term, ...], given: list[Argument], match: Match) -> Iterator[Match]:
        if not terms:
            yield match
            return
        for found in self._term(terms[0], given[0], match):
            yield from self._all(terms[1:], given[1:], found)


def _number(term: Number, argument: Argument, match: Match) -> Iterator[Match]:
    number = number_of(argument)
    if number is None:
        return
    if term.value is not None:
        if isclose(number, term.value, rel_tol=_TOLERANCE):
            yield match
    elif match.numbers.get(term.name, number) == number:
        yield match._replace(numbers={**match.numbers, term.name: number})
