"""Operands of an attention as its kernels read them: [batch, heads, tokens, width], each element once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from graph_ir.graph import Node, Value
from graph_ir.patterns.layout import (
    Layout,
    contiguous,
    expanded,
    reshaped,
    shape_of,
    way_from,
)
from graph_ir.patterns.match import plain, scaled_by
from graph_ir.patterns.rewrite import Replacement


class Step(NamedTuple):
    """A tensor, and where its elements lie in the tensor that a chain of rearrangements began with."""

    value: Value
    layout: Layout
    factor: float = 1.0
    """The number that scales it."""


def chain_to(value: Value, r: Replacement, *, scaled: bool = False) -> list[Step]:
    """The rearrangements that end in a value, its source first.

    Args:
        value: the last one.
        r: knows what makes each value.
        scaled: go through products with a number that are there for this attention alone.
    """
    found = [plain(value, r.producers)]
    makers: list[tuple[Node, float]] = []
    while (node := r.producers.get(found[-1])) is not None:
        source, number = None, 1.0
        if node.op in ("reshape", "transpose", "expand") and "equation" not in node.attrs:
            source = node.inputs[0]
        elif scaled and found[-1].type.dtype.is_float and r.read_once(found[-1]):
            source, number = scaled_by(node)
        if source is None:
            break
        makers.append((node, number))
        found.append(plain(source, r.producers))
    steps = [Step(found[-1], contiguous(found[-1].type.shape))]
    factor = 1.0
    for (node, number), made in zip(reversed(makers), reversed(found[:-1]), strict=True):
        layout = _after(node, steps[-1].layout, made.type.shape)
        if layout is None:
            # A copy in an order that the source does not have: another source.
            steps, layout, factor = [], contiguous(made.type.shape), 1.0
        else:
            factor *= number
        steps.append(Step(made, layout, factor))
    return steps


def _after(node: Node, layout: Layout, shape: Sequence[int]) -> Layout | None:
    if node.op == "transpose":
        return tuple(layout[p] for p in node.attrs["perm"])
    if node.op == "expand":
        return expanded(layout, shape)
    return reshaped(layout, shape) if node.op == "reshape" else layout


def arranged(
    steps: Sequence[Step], change: Callable[[Layout], Layout | None], label: str, r: Replacement
) -> Value | None:
    """The last value of a chain in another arrangement, by views alone.

    Args:
        steps: the chain.
        change: says the wanted layout from the last value's.
        label: names what is emitted.
        r: emits views, where no value of the chain is as wanted.

    Returns:
        The value, or None if the elements cannot be had in that arrangement.
    """
    wanted = change(steps[-1].layout)
    if wanted is None:
        return None
    shape = shape_of(wanted)
    for step in reversed(steps):
        if step.factor == 1 and step.layout == wanted and step.value.type.shape == shape:
            return step.value
    source = steps[0].value
    way = way_from(source.type.shape, wanted)
    if way is None:
        return None
    cut, perm = way
    value = r.view(source, cut, f"{label}_parts")
    if perm != tuple(range(len(perm))):
        made = value.type.with_shape(tuple(cut[p] for p in perm))
        value = r.emit(label, "transpose", [value], made, {"perm": perm, "view": True})
    return r.view(value, shape, f"{label}_view")
