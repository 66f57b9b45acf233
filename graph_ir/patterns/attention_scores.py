"""What happens between the two products of an attention, read from the softmax back to the queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from graph_ir.graph import Node, Value
from graph_ir.patterns.attention_mask import Mask, cuts
from graph_ir.patterns.match import arguments, is_cast, number_of
from graph_ir.patterns.rewrite import Replacement


@dataclass(frozen=True)
class Scores:
    """How the operand of an attention's softmax is made."""

    query: Value
    keys: Value
    """Transposed: [..., width, tokens]."""
    shape: tuple[int, ...]
    """Of the product of both."""
    scale: float = 1.0
    masks: tuple[Mask, ...] = ()
    """In the order they are applied."""
    inner: frozenset[Node] = frozenset()


def scores_of(value: Value, r: Replacement) -> Iterator[Scores]:
    """All ways to read a tensor as scaled and masked products of queries and keys."""
    node = r.producers.get(value)
    if node is None:
        return
    for before in _before(node, value, r):
        yield replace(before, inner=before.inner | {node})


def _before(node: Node, value: Value, r: Replacement) -> Iterator[Scores]:
    shape = value.type.shape
    if node.op == "matmul" and "equation" not in node.attrs:
        yield Scores(node.inputs[0], node.inputs[1], shape)
    elif _passes(node):
        yield from scores_of(node.inputs[0], r)
    elif node.op in ("mul", "div"):
        source, factor = scaled_by(node)
        for found in scores_of(source, r) if source is not None else ():
            # Behind a sum, a factor would scale the mask too; what is cut out stays so by a positive one.
            adds = any(m.how == "add" for m in found.masks)
            if factor == 1 or not found.masks or (factor > 0 and not adds):
                yield replace(found, scale=found.scale * factor)
    elif node.op == "add" and len(node.inputs) == 2:
        left, right = node.inputs
        for scores, mask in ((left, right), (right, left)):
            if scores.type.shape == shape:
                yield from _masked(scores, Mask("add", mask, shape), r)
    elif node.op == "where" and len(node.inputs) == 3:
        condition, yes, no = node.inputs
        if cuts(no, r):
            yield from _masked(yes, Mask("keep", condition, shape, no), r)
        if cuts(yes, r):
            yield from _masked(no, Mask("drop", condition, shape, yes), r)


def _passes(node: Node) -> bool:
    """Whether a node only rounds or copies scores, or joins or splits dims of batch and heads."""
    if node.op != "reshape":
        return is_cast(node)
    return node.inputs[0].type.shape[-2:] == node.outputs[0].type.shape[-2:]


def _masked(scores: Value, mask: Mask, r: Replacement) -> Iterator[Scores]:
    if scores.type.shape == mask.scores and not r.trains(mask.value):
        for found in scores_of(scores, r):
            yield replace(found, masks=(*found.masks, mask))


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
