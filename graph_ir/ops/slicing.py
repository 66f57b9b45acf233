"""Slices: some elements of every dim, from a start on, in steps.

A slice that takes one of a dim's equal runs, or every n-th element of it, reads a compound dim; any other
needs the whole dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Equation
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.ops.data_movement import changed_dims, result_bytes
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]
Types = Sequence[TensorType]

_SLICE = (("starts", 0), ("steps", 1))


def _sliced(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """A dim is compound where a slice takes one of its equal runs, or every n-th element of it.

    So gate and up of one fused width keep a common name, one behind the other or in turn.
    """
    equation = changed_dims(inputs, outputs, attrs)
    operand, result = list(equation.inputs[0]), list(equation.outputs[0])
    sizes, fixed = dict(equation.sizes), set(equation.replicated)
    for i, (n, m) in enumerate(zip(inputs[0].shape, outputs[0].shape, strict=True)):
        count, within = max(n, m) // max(min(n, m), 1), min(n, m)
        way = _run_or_stride(attrs, i, count, within)
        if way is None or max(n, m) != count * within or within < 2 or count < 2:
            continue
        for name in (f"i{i}", f"o{i}"):
            del sizes[name]
            fixed.remove(name)
        sizes |= {f"w{i}": within, f"c{i}": count}
        fixed.add(f"c{i}")
        compound = (f"c{i}", f"w{i}") if way == "run" else (f"w{i}", f"c{i}")
        operand[i], result[i] = (compound, (f"w{i}",)) if n > m else ((f"w{i}",), compound)
    return Equation((tuple(operand),), (tuple(result),), sizes, frozenset(fixed), None)


def _run_or_stride(attrs: Mapping[str, Any], dim: int, count: int, within: int) -> str | None:
    """Whether a slice of a dim is one of `count` runs, or every `count`-th element; None: neither."""
    start, step = (attrs[key][dim] if key in attrs else usual for key, usual in _SLICE)
    if step == 1 and start % within == 0:
        return "run"
    return "stride" if step == count and 0 <= start < step else None


def _localize_slice(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    """Where a run starts among those of a device, each of which is shorter."""
    dim = int(name[1:])
    starts = list(node.attrs.get("starts", ()))
    if name[0] != "w" or not starts or node.attrs.get("steps", (1,) * len(starts))[dim] != 1:
        return {}
    starts[dim] = starts[dim] // node.equation.sizes[name] * (stop - start)
    return {"starts": tuple(starts)}


def _slices(node: Node) -> tuple[slice, ...]:
    """Attributes `starts`, `steps` per dim; the result's shape says how many are taken."""
    shape = node.outputs[0].type.shape
    starts = node.attrs.get("starts", (0,) * len(shape))
    steps = node.attrs.get("steps", (1,) * len(shape))
    found = []
    for start, step, n in zip(starts, steps, shape, strict=True):
        stop = start + step * n
        found.append(slice(start, None if stop < 0 else stop, step))
    return tuple(found)


def _slice_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None]
    return b.emit(node, "slice_backward", [grads[0]], [node.inputs[0].type], node.attrs)


def _slice_backward(node: Node, dy: Array) -> Array:
    shape = node.outputs[0].type.shape
    result = np.zeros(shape, dtype=dy.dtype)
    starts = node.attrs.get("starts", (0,) * len(shape))
    steps = node.attrs.get("steps", (1,) * len(shape))
    where = []
    for start, step, n in zip(starts, steps, dy.shape, strict=True):
        stop = start + step * n
        where.append(slice(start, None if stop < 0 else stop, step))
    result[tuple(where)] = dy
    return result


register(
    OpDef(
        "slice",
        "data_movement",
        _sliced,
        flops=0,
        engine="copy",
        gradient=_slice_gradient,
        evaluate=lambda node, x: x[_slices(node)],
        linear="jointly",
        localize=_localize_slice,
        bytes_read=result_bytes,
        view_of=0,
    ),
    # Zeros with the gradient of a slice written into them.
    OpDef(
        "slice_backward",
        "data_movement",
        _sliced,
        flops=0,
        engine="copy",
        evaluate=_slice_backward,
        linear="jointly",
        localize=_localize_slice,
    ),
)
