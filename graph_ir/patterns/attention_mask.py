"""Masks between the two products of an attention: what is added to the scores, and what is cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graph_ir.graph import Value
from graph_ir.patterns.layout import Layout, expanded, narrow, reshaped, shape_of
from graph_ir.patterns.match import number_of, plain
from graph_ir.patterns.operand import arranged, chain_to
from graph_ir.patterns.rewrite import Replacement
from graph_ir.tensor_type import DType, TensorType

# Below this, exp of a score is zero even beside the largest scores in half precision.
_CUT = -1e4


@dataclass(frozen=True)
class Mask:
    """One step that masks scores."""

    how: Literal["add", "keep", "drop"]
    """Added to the scores; or true where scores are kept, or where they are dropped."""
    value: Value
    scores: tuple[int, ...]
    """Shape of the scores that it broadcasts to."""
    fill: Value | None = None
    """What dropped scores become."""


def mask_of(value: Value, scores: tuple[int, ...]) -> Mask:
    """The mask operand of a fused attention: added, or true where scores are kept."""
    return Mask("keep" if value.type.dtype is DType.BOOL else "add", value, scores)


def cuts(value: Value, r: Replacement) -> bool:
    """Whether a score of this value leaves nothing after the softmax."""
    number = number_of(value)
    maker = r.producers.get(value)
    if number is None and maker is not None and maker.op == "fill":
        number = float(maker.attrs.get("value", 0))
    return number is not None and number <= _CUT and value.type.elements == 1


def combine(
    masks: Sequence[Mask], r: Replacement, full: tuple[int, int, int, int]
) -> tuple[Value | None, bool] | None:
    """One mask that does what several do, first ones first.

    Args:
        masks: in the order they are applied.
        r: where helpers are emitted.
        full: [batch, heads, queries, keys].

    Returns:
        The mask, or None, and whether it is the causal one; None if they cannot be put into one.
    """
    total: Value | None = None
    fill: Value | None = None
    causal = False
    for given in masks:
        mask = simplest(given, r)
        if is_causal(mask, full):
            causal = True
            continue
        value = _four_dims(mask, r, full)
        if value is None:
            return None
        if mask.how == "drop":
            value = r.emit("kept", "logical_not", [value], value.type)
        if total is None:
            total, fill = value, mask.fill
            continue
        shape = _both(total.type.shape, value.type.shape)
        if shape is None:
            return None
        both = [total, value]
        if mask.how == "add" and total.type.dtype is not DType.BOOL:
            total = r.emit("mask", "add", both, total.type.with_shape(shape))
        elif mask.how != "add" and total.type.dtype is DType.BOOL:
            total = r.emit("mask", "logical_and", both, total.type.with_shape(shape))
        else:
            kept, added = both if mask.how == "add" else reversed(both)
            filler = fill if mask.how == "add" else mask.fill
            if filler is None:
                return None
            made = TensorType(shape, added.type.dtype)
            total = r.emit("mask", "where", [kept, added, filler], made)
    return total, causal


def _both(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that two masks broadcast to."""
    try:
        return np.broadcast_shapes(one, other)
    except ValueError:
        return None


def simplest(mask: Mask, r: Replacement) -> Mask:
    """A mask by the condition that it was made of: added zeros keep, and what is not dropped is kept."""
    node = r.producers.get(plain(mask.value, r.producers))
    if node is None:
        return mask
    if mask.how == "add":
        if node.op != "where" or len(node.inputs) != 3:
            return mask
        condition, yes, no = node.inputs
        if number_of(yes) == 0 and cuts(no, r):
            return simplest(Mask("keep", condition, mask.scores, no), r)
        if number_of(no) == 0 and cuts(yes, r):
            return simplest(Mask("drop", condition, mask.scores, yes), r)
        return mask
    if node.op in ("logical_not", "bitwise_not") and node.inputs[0].type.dtype is DType.BOOL:
        other: Literal["keep", "drop"] = "drop" if mask.how == "keep" else "keep"
        return simplest(Mask(other, node.inputs[0], mask.scores, mask.fill), r)
    return mask


def _four_dims(mask: Mask, r: Replacement, full: tuple[int, int, int, int]) -> Value | None:
    """A mask as it broadcasts to [batch, heads, queries, keys], without what repeats in it.

    Its batch may be an inner factor of the whole: the windows of an image, whose images share a mask.
    """

    def change(layout: Layout) -> Layout | None:
        lead = (*mask.scores[:-2], *shape_of(layout)[-2:])
        split = reshaped(expanded(layout, lead), (*full[:2], *lead[-2:]))
        if split is None:
            return None
        batch, *rest = split
        return (narrow(batch, leading=True), *(d if narrow(d) else () for d in rest))

    steps = chain_to(mask.value, r)
    return arranged(steps, change, "mask_view", r)


def is_causal(mask: Mask, full: tuple[int, ...]) -> bool:
    """Whether a mask is known to hide exactly what comes after each query."""
    data, (s, t) = mask.value.data, full[-2:]
    if data is None or mask.value.kind not in ("constant", "buffer"):
        return False
    table = np.asarray(data)
    if table.shape[-2:] != (s, t) or s < 2:
        return False
    table = table.reshape(-1, s, t)
    seen = np.tril(np.ones((s, t), dtype=bool), max(t - s, 0))
    if mask.how == "add":
        return bool(np.all(table[:, seen] == 0) and np.all(table[:, ~seen] <= _CUT))
    return bool(np.all(table.astype(bool) == (seen if mask.how == "keep" else ~seen)))
