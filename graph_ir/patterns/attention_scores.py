"""What happens between the two products of an attention, read from the softmax back to the queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from graph_ir.equation import Dim
from graph_ir.graph import Node, Value
from graph_ir.patterns.attention_mask import Mask, cuts
from graph_ir.patterns.match import is_cast, scaled_by
from graph_ir.patterns.rewrite import Replacement


@dataclass(frozen=True)
class Operand:
    """An operand of a batched product, and the order in which the product reads its dims."""

    value: Value
    perm: tuple[int, ...]
    """To [..., rows, contracted]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in that order."""
        return tuple(self.value.type.shape[p] for p in self.perm)


@dataclass(frozen=True)
class Product:
    """left[..., m, k] times right[..., n, k]."""

    left: Operand
    right: Operand
    perm: tuple[int, ...]
    """From [..., m, n] to the dims of the result."""


@dataclass(frozen=True)
class Scores:
    """How the operand of an attention's softmax is made."""

    query: Operand
    keys: Operand
    shape: tuple[int, ...]
    """Of the product of both."""
    scale: float = 1.0
    inside: float | None = None
    """The factor within a tanh that bounds the scores; `scale` is then the one outside of it."""
    masks: tuple[Mask, ...] = ()
    """In the order they are applied."""
    inner: frozenset[Node] = frozenset()


def product_of(node: Node) -> Product | None:
    """A node as a batched product of two matrices, if it is one."""
    if node.op not in ("matmul", "einsum") or len(node.inputs) != 2:
        return None
    if "equation" in node.attrs:
        return _einsum(node)
    left, right = (len(v.type.shape) for v in node.inputs)
    if min(left, right) < 2:
        return None
    swap = (*range(right - 2), right - 1, right - 2)
    return Product(
        Operand(node.inputs[0], tuple(range(left))),
        Operand(node.inputs[1], swap),
        tuple(range(len(node.outputs[0].type.shape))),
    )


def _einsum(node: Node) -> Product | None:
    (left, right), (made,) = node.equation.inputs, node.equation.outputs
    if not all(_is_matrix(dims) for dims in (left, right, made)):
        return None
    lead = [d for d in made if d in left and d in right]
    rows = [d for d in made if d in left and d not in right]
    columns = [d for d in made if d in right and d not in left]
    summed = [d for d in left if d in right and d not in made]
    if not len(rows) == len(columns) == len(summed) == 1:
        return None
    if not len(left) == len(right) == len(made) == len(lead) + 2:
        return None
    whole = [*lead, *rows, *columns]
    return Product(
        Operand(node.inputs[0], tuple(map(left.index, [*lead, *rows, *summed]))),
        Operand(node.inputs[1], tuple(map(right.index, [*lead, *columns, *summed]))),
        tuple(map(whole.index, made)),
    )


def _is_matrix(dims: tuple[Dim, ...]) -> bool:
    """Whether each dim is one name of its own."""
    return all(isinstance(d, tuple) and len(d) == 1 for d in dims) and len(set(dims)) == len(dims)


def scores_of(value: Value, r: Replacement) -> Iterator[Scores]:
    """All ways to read a tensor as scaled and masked products of queries and keys."""
    node = r.producers.get(value)
    if node is None:
        return
    for before in _before(node, value, r):
        yield replace(before, inner=before.inner | {node})


def _before(node: Node, value: Value, r: Replacement) -> Iterator[Scores]:
    shape = value.type.shape
    if node.op in ("matmul", "einsum"):
        product = product_of(node)
        if product is not None and product.perm == tuple(range(len(shape))):
            yield Scores(product.left, product.right, shape)
    elif _passes(node):
        yield from scores_of(node.inputs[0], r)
    elif node.op in ("mul", "div"):
        source, factor = scaled_by(node)
        for found in scores_of(source, r) if source is not None else ():
            # Behind a sum, a factor would scale the mask too; what is cut out stays so by a positive one.
            adds = any(m.how == "add" for m in found.masks)
            if factor == 1 or not found.masks or (factor > 0 and not adds):
                yield replace(found, scale=found.scale * factor)
    elif node.op == "tanh":
        for found in scores_of(node.inputs[0], r):
            if found.inside is None and not found.masks:
                yield replace(found, inside=found.scale, scale=1.0)
    elif node.op == "transpose" and _swaps(node):
        for found in scores_of(node.inputs[0], r):
            if not found.masks:
                yield replace(found, query=found.keys, keys=found.query, shape=shape)
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


def _swaps(node: Node) -> bool:
    """Whether a node transposes matrices: the scores of keys and queries in their other order."""
    *lead, first, second = node.attrs["perm"]
    return lead == list(range(len(lead))) and (first, second) == (len(lead) + 1, len(lead))


def _masked(scores: Value, mask: Mask, r: Replacement) -> Iterator[Scores]:
    if scores.type.shape == mask.scores:
        for found in scores_of(scores, r):
            yield replace(found, masks=(*found.masks, mask))
