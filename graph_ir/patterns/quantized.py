"""Products of dequantised operands, which kernels compute on the stored integers and rescale afterwards.

A scale that belongs to whole rows or columns of the result can wait until the sums are there, so the
product itself reads few bits and runs on the integer or fp8 engine. Where only the weight is quantised, the
product reads its few bits and computes in the other operand's type.

What only moves dequantised elements, or picks the largest of them, moves the stored ones; and a tensor that
is dequantised and quantised again with the same scale is the one that was stored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graph_ir.graph import Node, Value
from graph_ir.patterns.match import Match, plain
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import Apply
from graph_ir.tensor_type import DType, TensorType


class _Operand(NamedTuple):
    """A dequantised operand."""

    stored: Value
    scale: Value
    zeros: tuple[Value, ...]
    """The zero point, unless it is known to be zero."""
    axis: int | None
    """Dim of the result along which the scale lies, or None if it is one number."""
    separable: bool
    """Whether the scale can be taken out of the sums."""


def _operand(node: Node, index: int, r: Replacement) -> _Operand | None:
    maker = r.producers.get(plain(node.inputs[index], r.producers))
    if maker is None or maker.op != "dequantize":
        return None
    stored, scale, *zeros = maker.inputs
    zeros = [z for z in zeros if z.data is None or np.any(z.data)]
    if scale.type.elements == 1:
        return _Operand(stored, scale, tuple(zeros), None, True)
    axis = maker.attrs.get("axis", 1) % len(stored.type.shape)
    along = node.equation.inputs[index][axis]
    (result,) = node.equation.outputs
    whole = scale.type.shape == (stored.type.shape[axis],) and along in result
    return _Operand(stored, scale, tuple(zeros), result.index(along) if whole else None, whole)


def _product(match: Match, r: Replacement) -> bool:
    node = match.nodes["product"]
    # A gradient passes straight through the rounding; the fused form has none.
    if r.training or len(node.inputs) != 2:
        return False
    operands = [_operand(node, i, r) for i in (0, 1)]
    found = [o for o in operands if o is not None]
    if not found:
        return False
    inputs = [o.stored if o else v for o, v in zip(operands, node.inputs, strict=True)]
    made = node.outputs[0].type
    sums = made.with_dtype(DType.INT32 if all(_is_int(v) for v in inputs) else made.dtype)
    total = product = r.emit("rescaled", node.op, inputs, sums, node.attrs)
    epilogue = {"epilogue": True}
    if any(o.zeros or not o.separable for o in found):
        # The kernel corrects its sums by the zero points, or rescales every block as it goes.
        tables = [v for o in found for v in (o.scale, *o.zeros)]
        return r.finish("apply_scales", [total, *tables], epilogue, telling=product)
    for i, operand in enumerate(found):
        attrs = {"axis": operand.axis or 0, **epilogue}
        if i == len(found) - 1:
            return r.finish("dequantize", [total, operand.scale], attrs, telling=product)
        total = r.emit("scaled", "dequantize", [total, operand.scale], _float(made), attrs)
    return False


def _is_int(value: Value) -> bool:
    return value.type.dtype.kind == "int"


def _float(made: TensorType) -> TensorType:
    return made if made.dtype.is_float else made.with_dtype(DType.FLOAT32)


def _moved(match: Match, r: Replacement) -> bool:
    node = match.nodes["move"]
    maker = r.producers.get(node.inputs[0])
    if r.training or maker is None or maker.op != "dequantize" or len(node.outputs) != 1:
        return False
    stored, scale, *zeros = maker.inputs
    axis = maker.attrs.get("axis", 1)
    if scale.type.elements != 1:
        # Only a permutation keeps a scale per row or column one along a single dim.
        if node.op != "transpose" or len(scale.type.shape) != 1:
            return False
        axis = tuple(node.attrs["perm"]).index(axis % len(stored.type.shape))
    made = node.outputs[0].type
    narrow = made.with_dtype(stored.type.dtype)
    moved = r.emit("stored", node.op, [stored, *node.inputs[1:]], narrow, node.attrs)
    attrs = {**maker.attrs, "axis": axis}
    return r.finish("dequantize", [moved, scale, *zeros], attrs, telling=moved)


def _requantised(match: Match, r: Replacement) -> bool:
    node = match.nodes["quantize"]
    maker = r.producers.get(node.inputs[0])
    if r.training or maker is None or maker.op != "dequantize":
        return False
    stored, *old = maker.inputs
    new = node.inputs[1:]
    same = len(old) == len(new) and all(map(_equal, old, new))
    if not same or stored.type != node.outputs[0].type:
        return False
    return r.finish("reshape", [stored], {"view": True})


def _equal(one: Value, other: Value) -> bool:
    if one.data is None or other.data is None:
        return one is other
    return np.array_equal(one.data, other.data)


PATTERNS = (
    Pattern(
        "moved dequantised elements",
        Apply("reshape transpose slice expand flip gather max_pool", name="move"),
        _moved,
    ),
    Pattern("quantised as before", Apply("quantize", name="quantize"), _requantised),
    Pattern(
        "product of dequantised operands",
        Apply("matmul linear conv einsum", name="product"),
        _product,
    ),
)
