"""Another batch in place of one that is fixed in the file.

Exporters write the batch of their example into Reshape targets, Expand targets and constants. Every value
that grows with the batch therefore keeps the type that it has in the file as well: where the two differ
is the batch, and a target that was meant for the file's batch can be read for the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from math import prod
from operator import mul

from graph_ir.tensor_type import TensorType
from importers.onnx_values import OnnxNode, OnnxValue


def is_batched(node: OnnxNode) -> bool:
    """Whether an operand grows with the batch."""
    return any(value is not None and value.in_file is not None for value in node.inputs)


def at_file_batch(node: OnnxNode) -> OnnxNode:
    """The node with its operands as the file means them."""
    inputs = [
        replace(v, type=v.in_file, in_file=None) if v is not None and v.in_file is not None else v
        for v in node.inputs
    ]
    return replace(node, inputs=inputs, outputs=[])


def rescaled(
    value: OnnxValue, target: Sequence[int], fixed: int, *, reshape: bool
) -> tuple[int, ...] | None:
    """The shape for the new batch of a result that has shape `target` in the file.

    Args:
        value: the operand, which grows with the batch.
        target: shape of the result with the file's batch.
        fixed: the file's batch.
        reshape: whether elements keep their order; else dims are right-aligned (Expand).

    Returns:
        The shape, or None if the batch cannot be found in it.
    """
    if value.in_file is None:
        return tuple(target)
    old, new = value.in_file.shape, value.shape
    axis = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    ratio = Fraction(new[axis], old[axis]) if old[axis] else Fraction(1)
    if not reshape:
        place = len(target) - len(old) + axis
        return _scaled(target, place, ratio) if target[place] == old[axis] else tuple(target)
    found = _place(old, axis, target, fixed)
    return None if found is None else _scaled(target, found, ratio)


def _place(old: Sequence[int], axis: int, target: Sequence[int], fixed: int) -> int | None:
    """Which dim of a reshape's result takes up the batch that dim `axis` of the operand has."""
    before, end = prod(old[:axis]), prod(old[: axis + 1])
    passed = 1
    first: int | None = None
    for place, size in enumerate(target):
        if passed >= before and first is None:
            first = place
        # Among the dims that the old one becomes, the one with the batch's own size.
        if before <= passed <= end and passed * size <= end and size == fixed:
            return place
        # The batch as the inner part of a merged dim: [s, b, e] -> [(s b), e].
        if passed < before and passed * size == end and old[axis] > 1:
            return place
        passed *= size
    if first is None or prod(target[:first]) != before:
        return None
    # A batch of 1 merges with a neighbour: with the dim before it where those after stay whole
    # ([s, 1, h, d] -> [s, (h d)]), else with the one after ([s, 1, (h d)] -> [s, h, d]).
    whole = set(accumulate(old[axis + 1 :], mul))
    return first - 1 if first > 0 and old[axis] == 1 and target[first] in whole else first


def seen_in_file(
    node: OnnxNode, types: Sequence[TensorType | None], batch: int
) -> list[TensorType | None] | None:
    """Guesses what results are in the file, from what they are with the new batch.

    A reshape is read backwards; other operators keep the batch in the dim where their operand has it.
    """
    value = next((v for v in node.inputs if v is not None and v.in_file is not None), None)
    new = types[0]
    if value is None or value.in_file is None or new is None:
        return None
    if node.op_type == "Reshape" and not node.domain:
        backwards = replace(value, type=value.in_file, in_file=value.type)
        shape = rescaled(backwards, new.shape, batch, reshape=True)
        return None if shape is None else [new.with_shape(shape)]
    pairs = zip(value.in_file.shape, value.shape, strict=True)
    axis = next(i for i, (a, b) in enumerate(pairs) if a != b)

    def guess(type_: TensorType | None) -> TensorType | None:
        if type_ is None or len(type_.shape) <= axis or type_.shape[axis] != value.shape[axis]:
            return type_
        old = value.in_file.shape[axis] if value.in_file else type_.shape[axis]
        return type_.with_shape((*type_.shape[:axis], old, *type_.shape[axis + 1 :]))

    return [guess(t) for t in types]


def _scaled(shape: Sequence[int], place: int, ratio: Fraction) -> tuple[int, ...] | None:
    size = shape[place] * ratio
    if size.denominator != 1:
        return None
    return (*shape[:place], int(size), *shape[place + 1 :])


def widened_operands(
    node: OnnxNode, fixed: int, batch: int
) -> Iterator[tuple[OnnxNode, OnnxValue, OnnxValue]]:
    """Ways to give the new batch to one operand that has the file's: (node, old operand, new one)."""
    for index, value in enumerate(node.inputs):
        if value is None or value.in_file is not None or value.sequence is not None:
            continue
        for axis, size in enumerate(value.shape):
            if size != fixed:
                continue
            shape = (*value.shape[:axis], batch, *value.shape[axis + 1 :])
            wide = OnnxValue(
                f"{value.name}.batch", value.type.with_shape(shape), in_file=value.type
            )
            inputs = [*node.inputs[:index], wide, *node.inputs[index + 1 :]]
            yield replace(node, inputs=inputs), value, wide


def widening(node: OnnxNode, value: OnnxValue, wide: OnnxValue, fixed: int) -> OnnxNode:
    """The operator that gives an operand the new batch: repeated rows, or a constant written anew."""
    return OnnxNode(
        wide.name,
        "",
        "Expand" if fixed == 1 else "ConstantOfShape",
        node.version,
        {},
        [value],
        [wide],
        node.module,
        node.count,
    )


def file_types(
    types: Sequence[TensorType | None], in_file: Sequence[TensorType | None] | None
) -> list[TensorType | None]:
    """Per result the type in the file, where it differs from the one with the new batch."""
    if in_file is None:
        return [None] * len(types)
    return [
        old if old is not None and new is not None and old.shape != new.shape else None
        for new, old in zip(types, in_file, strict=True)
    ]
