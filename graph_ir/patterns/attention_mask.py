"""Masks between the two products of an attention: what is added to the scores, and what is cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_ir.evaluate import Array
from graph_ir.graph import Value
from graph_ir.ops.attention import window_share
from graph_ir.patterns.known import MOST_ELEMENTS, UnknownContentError
from graph_ir.patterns.layout import Layout, expanded, narrow, reshaped, shape_of
from graph_ir.patterns.match import number_of, plain
from graph_ir.patterns.operand import arranged, chain_to
from graph_ir.patterns.rewrite import Replacement
from graph_ir.tensor_type import DType, TensorType

# Below this, exp of a score is zero even beside the largest scores in half precision.
_CUT = -1e4
# Operators that put two masks of a kind together.
_JOINED = {
    "add": ("add",),
    "keep": ("logical_and", "bitwise_and"),
    "drop": ("logical_or", "bitwise_or"),
}


class Band(NamedTuple):
    """What a mask leaves: by default everything."""

    causal: bool = False
    window: int | None = None
    """How many keys a query sees at most, those up to its own position."""


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
) -> tuple[Value | None, Band] | None:
    """One mask that does what several do, first ones first.

    Args:
        masks: in the order they are applied.
        r: where helpers are emitted.
        full: [batch, heads, queries, keys].

    Returns:
        The mask, or None, and the band that the others leave; None if they cannot be put into one.
    """
    total: Value | None = None
    fill: Value | None = None
    causal = False
    window: int | None = None
    for mask in (part for given in masks for part in _parts(given, full, r)):
        band = band_of(mask, full, r)
        if band is not None:
            causal |= band.causal
            window = min((w for w in (window, band.window) if w is not None), default=None)
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
    return total, Band(causal, window)


def _parts(given: Mask, full: tuple[int, ...], r: Replacement) -> list[Mask]:
    """A mask, or those that it was put together from, if one of them is known."""
    mask = simplest(given, r)
    node = r.producers.get(plain(mask.value, r.producers))
    if node is None or node.op not in _JOINED[mask.how] or len(node.inputs) != 2:
        return [mask]
    if r.known.is_known(mask.value):
        return [mask]
    parts = [p for v in node.inputs for p in _parts(replace(mask, value=v), full, r)]
    return parts if any(band_of(p, full, r) is not None for p in parts) else [mask]


def band_attrs(band: Band, queries: int, keys: int) -> dict[str, object]:
    """The attributes that tell a fused attention of a band."""
    attrs: dict[str, object] = {"causal": band.causal}
    if band.window is not None:
        share = window_share(queries, keys, band.window)
        attrs |= {"window": band.window, "causal_share": share}
    return attrs


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


def band_of(mask: Mask, full: tuple[int, ...], r: Replacement) -> Band | None:
    """Which keys a mask leaves to each query, if it is known to leave a band up to the query's position."""
    value = mask.value
    s, t = full[-2:]
    rows, columns = (1, 1, *value.type.shape)[-2:]
    if r.trains(value) or rows not in (1, s) or columns not in (1, t):
        return None
    lead = [np.arange(n) for n in value.type.shape[:-2]]
    most = MOST_ELEMENTS // max(prod(map(len, lead)) * columns, 1)
    for chosen in (_spread(rows, 2), _spread(rows, max(most, 2))):
        index = (*lead, chosen, np.arange(columns))[-len(value.type.shape) :]
        try:
            table = r.known.at(value, index if value.type.shape else ())
        except UnknownContentError:
            return None
        kept = _kept(mask.how, table)
        found = (
            None if kept is None else _band(kept.reshape(-1, len(chosen), columns), chosen, s, t)
        )
        if found is None:
            return None
    # Weights that were left out of a file are all one number.
    return None if found == Band() and value.kind == "parameter" else found


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Positions among `count`, the last one always."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _kept(how: str, table: Array) -> Array | None:
    """True where scores stay; None if they are changed in other ways."""
    if how != "add":
        return np.asarray(table.astype(bool) == (how == "keep"))
    kept = table == 0
    return np.asarray(kept) if np.all(kept | (table <= _CUT)) else None


def _band(kept: Array, rows: Array, s: int, t: int) -> Band | None:
    """The band that rows [tables, some rows, columns] of a mask are part of."""
    if kept.all():
        return Band()
    if kept.shape[-1] != t or (len(rows) < 2 and s > 1):
        return None
    last = rows[:, None] + max(t - s, 0)
    columns = np.arange(t)
    window = int(kept[0, -1].sum())
    seen = columns <= last
    if window < t:
        seen &= columns > last - window
    if not np.all(kept == seen):
        return None
    return Band(True, window if window < t else None)
