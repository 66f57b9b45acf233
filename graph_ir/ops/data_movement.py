"""Operators that rearrange elements: reshape, transpose, split, concatenate, expand, pad; see `slicing` too.

With the attribute `view` set, the result aliases the operand and costs nothing; else it is a copy. An
uneven split or concatenation needs the whole dim; even ones are compound dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Dims, Equation
from graph_ir.evaluate import Array, product
from graph_ir.gradients import linear_gradient
from graph_ir.op_def import OpDef, register
from graph_ir.reshape import reshape_equation
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]
Types = Sequence[TensorType]


def _names(shape: Sequence[int]) -> tuple[list[Dim], dict[str, int]]:
    return [(f"i{i}",) for i in range(len(shape))], {f"i{i}": n for i, n in enumerate(shape)}


def _reshape(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    return reshape_equation(inputs[0].shape, outputs[0].shape)


def _transpose(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Attribute `perm`: result dim i is operand dim perm[i]."""
    dims, sizes = _names(inputs[0].shape)
    return Equation((tuple(dims),), (tuple(dims[p] for p in attrs["perm"]),), sizes, reduction=None)


def _expand(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Broadcasts dims of size 1, and new leading dims."""
    dims, sizes = _names(outputs[0].shape)
    shape = inputs[0].shape
    lead = len(dims) - len(shape)
    source = tuple(
        dims[lead + i] if n == outputs[0].shape[lead + i] else () for i, n in enumerate(shape)
    )
    return Equation((source,), (tuple(dims),), sizes, reduction=None)


def _one_axis(
    shape: Sequence[int], others: Sequence[Sequence[int]], parts: int, axis: int
) -> tuple[Dims, tuple[Dims, ...], dict[str, int], frozenset[str]]:
    """Dims of a tensor and of its pieces along `axis`."""
    dims, sizes = _names(shape)
    even = len({tuple(o) for o in others}) == 1 and shape[axis] == parts * others[0][axis]
    pieces: list[Dims] = []
    whole: list[Dim] = list(dims)
    fixed = set()
    if even:
        del sizes[f"i{axis}"]
        sizes |= {"part": parts, "within": others[0][axis]}
        whole[axis] = ("part", "within")
        fixed.add("part")
    else:
        fixed.add(f"i{axis}")
    for i, piece_shape in enumerate(others):
        piece: list[Dim] = list(dims)
        name = "within" if even else f"piece{i}"
        sizes[name] = piece_shape[axis]
        piece[axis] = (name,)
        if not even:
            fixed.add(name)
        pieces.append(tuple(piece))
    return tuple(whole), tuple(pieces), sizes, frozenset(fixed)


def _split(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Attribute `axis`; the results' sizes say where the cuts are."""
    axis = attrs["axis"] % len(inputs[0].shape)
    whole, pieces, sizes, fixed = _one_axis(
        inputs[0].shape, [t.shape for t in outputs], len(outputs), axis
    )
    return Equation((whole,), pieces, sizes, fixed, None)


def _concat(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Attribute `axis`."""
    axis = attrs["axis"] % len(outputs[0].shape)
    whole, pieces, sizes, fixed = _one_axis(
        outputs[0].shape, [t.shape for t in inputs], len(inputs), axis
    )
    return Equation(pieces, (whole,), sizes, fixed, None)


def changed_dims(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Dims whose size or positions change, or that the attribute `axes` names, are whole."""
    dims, sizes = _names(inputs[0].shape)
    result: list[Dim] = list(dims)
    fixed = {f"i{axis % len(dims)}" for axis in attrs.get("axes", ())}
    # A dim may keep its size and still be shifted (padded in front, cut behind) or reversed.
    fixed |= {f"i{i}" for i, n in enumerate(attrs.get("before", ())) if n}
    fixed |= {f"i{i}" for i, n in enumerate(attrs.get("starts", ())) if n}
    fixed |= {f"i{i}" for i, n in enumerate(attrs.get("steps", ())) if n != 1}
    for i, n in enumerate(outputs[0].shape):
        if n != inputs[0].shape[i]:
            result[i] = (f"o{i}",)
            sizes[f"o{i}"] = n
            fixed |= {f"i{i}", f"o{i}"}
    return Equation((tuple(dims),), (tuple(result),), sizes, frozenset(fixed), None)


def _slice_update_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Operands buffer and update: the same dims, but along `axis` the update is shorter.

    With the attribute `clipped` the buffer may be a part of a longer one: what falls outside is not written.
    """
    axis = attrs["axis"]
    dims, sizes = _names(inputs[0].shape)
    update = list(dims)
    update[axis] = ("u",)
    sizes["u"] = inputs[1].shape[axis]
    whole = tuple(dims)
    fixed = {"u"} if attrs.get("clipped") else {f"i{axis}", "u"}
    return Equation((whole, tuple(update)), (whole,), sizes, frozenset(fixed), None)


def _slice_update(node: Node, buffer: Array, update: Array) -> Array:
    axis, start, step = node.attrs["axis"], node.attrs["start"], node.attrs.get("step", 1)
    rows = start + step * np.arange(update.shape[axis])
    if node.attrs.get("clipped"):
        inside = np.flatnonzero((rows >= 0) & (rows < buffer.shape[axis]))
        rows, update = rows[inside], update.take(inside, axis=axis)
    result = buffer.copy()
    result[(*[slice(None)] * axis, rows)] = update
    return result


def _localize_slice_update(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    """Where the update starts, counted from the first row of a part of the buffer."""
    if name != f"i{node.attrs['axis']}":
        return {}
    return {"start": node.attrs["start"] - start}


def _slice_update_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """The update gets its slice of the gradient; the buffer's own gradient is what is left of it."""
    (grad,) = grads
    if grad is None:
        return [None, None]
    buffer, update = node.inputs
    axis, rank = node.attrs["axis"], len(buffer.type.shape)
    starts = tuple(node.attrs["start"] if i == axis else 0 for i in range(rank))
    results: list[Value | None] = [None, None]
    if b.needs(update):
        steps = tuple(node.attrs.get("step", 1) if i == axis else 1 for i in range(rank))
        attrs = {"starts": starts, "steps": steps, "view": True}
        results[1] = b.emit(node, "slice", [grad], [update.type], attrs, "grad_update")[0]
    if b.needs(buffer):
        (zeros,) = b.emit(node, "fill", [], [update.type], {"value": 0}, "zeros")
        results[0] = b.emit(node, "slice_update", [grad, zeros], [buffer.type], node.attrs, "grad")[
            0
        ]
    return results


def _rearrange(node: Node, x: Array) -> Array:
    return product(node.equation, {}, node.outputs[0].type.shape, x)


def _split_evaluate(node: Node, x: Array) -> tuple[Array, ...]:
    axis = node.attrs["axis"]
    cuts = np.cumsum([v.type.shape[axis] for v in node.outputs])[:-1]
    return tuple(np.split(x, cuts, axis=axis))


def _split_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if all(g is None for g in grads):
        return [None]
    pieces = []
    for grad, piece in zip(grads, node.outputs, strict=True):
        zeros = grad or b.emit(node, "fill", [], [piece.type], {"value": 0}, "zeros")[0]
        pieces.append(zeros)
    attrs = {"axis": node.attrs["axis"]}
    return b.emit(node, "concat", pieces, [node.inputs[0].type], attrs, "grad")


def _concat_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None] * len(node.inputs)
    attrs = {"axis": node.attrs["axis"], "view": True}
    return b.emit(node, "split", [grads[0]], [v.type for v in node.inputs], attrs, "grad")


def _pad(node: Node, x: Array) -> Array:
    """Attribute `before`: elements added in front of each dim (negative: cut off)."""
    shape = node.outputs[0].type.shape
    before = node.attrs.get("before", (0,) * len(shape))
    result = np.full(shape, node.attrs.get("value", 0), dtype=x.dtype)
    source, target = [], []
    for offset, n, m in zip(before, x.shape, shape, strict=True):
        low, high = max(0, -offset), min(n, m - offset)
        source.append(slice(low, high))
        target.append(slice(low + offset, high + offset))
    result[tuple(target)] = x[tuple(source)]
    return result


def _pad_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None]
    before = tuple(node.attrs.get("before", (0,) * len(node.outputs[0].type.shape)))
    old, new = node.inputs[0].type.shape, node.outputs[0].type.shape
    if all(k >= 0 and k + n <= m for k, n, m in zip(before, old, new, strict=True)):
        attrs: dict[str, Any] = {"starts": before, "view": True}
        return b.emit(node, "slice", [grads[0]], [node.inputs[0].type], attrs, "grad")
    # What the padding cut off gets zeros.
    attrs = {"before": tuple(-n for n in before)}
    return b.emit(node, "pad", [grads[0]], [node.inputs[0].type], attrs, "grad")


def _whole_matrices(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """The same dims, of which the last two count positions."""
    dims, sizes = _names(inputs[0].shape)
    fixed = frozenset(name for dim in dims[-2:] for name in dim)
    return Equation((tuple(dims),), (tuple(dims),), sizes, fixed, None)


def _triangle(node: Node, x: Array) -> Array:
    cut = np.triu if node.attrs.get("upper") else np.tril
    return cut(x, node.attrs.get("diagonal", 0))


def _triangle_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None]
    return b.emit(node, "triangle", [grads[0]], [grads[0].type], node.attrs, "grad")


def result_bytes(node: Node) -> int:
    """A slice or a broadcast reads only what it delivers, and never more than there is."""
    return min(node.inputs[0].type.bytes, sum(v.type.bytes for v in node.outputs))


register(
    OpDef(
        "reshape",
        "data_movement",
        _reshape,
        flops=0,
        engine="copy",
        gradient=linear_gradient,
        evaluate=lambda node, x: x.reshape(node.outputs[0].type.shape),
        linear="jointly",
        view_of=0,
    ),
    OpDef(
        "transpose",
        "data_movement",
        _transpose,
        flops=0,
        engine="copy",
        gradient=linear_gradient,
        evaluate=_rearrange,
        linear="jointly",
        view_of=0,
    ),
    OpDef(
        "expand",
        "data_movement",
        _expand,
        flops=0,
        engine="copy",
        gradient=linear_gradient,
        evaluate=_rearrange,
        linear="jointly",
        view_of=0,
    ),
    OpDef(
        "split",
        "data_movement",
        _split,
        flops=0,
        engine="copy",
        gradient=_split_gradient,
        evaluate=_split_evaluate,
        linear="jointly",
        view_of=0,
    ),
    # The same tensor, through which no gradient flows.
    OpDef(
        "detach",
        "data_movement",
        _reshape,
        flops=0,
        engine="copy",
        evaluate=lambda node, x: x,
        linear="jointly",
        view_of=0,
    ),
    # buffer, update -> the buffer with the update written at `start`, every `step`, along `axis`, in place.
    OpDef(
        "slice_update",
        "data_movement",
        _slice_update_equation,
        flops=0,
        engine="copy",
        gradient=_slice_update_gradient,
        evaluate=_slice_update,
        bytes_read=lambda node: node.inputs[1].type.bytes,
        bytes_written=lambda node: node.inputs[1].type.bytes,
        in_place=0,
        localize=_localize_slice_update,
    ),
    OpDef(
        "concat",
        "data_movement",
        _concat,
        flops=0,
        engine="copy",
        gradient=_concat_gradient,
        evaluate=lambda node, *xs: np.concatenate(xs, axis=node.attrs["axis"]),
        linear="jointly",
    ),
    OpDef(
        "pad",
        "data_movement",
        changed_dims,
        flops=0,
        engine="copy",
        gradient=_pad_gradient,
        evaluate=_pad,
        bytes_read=result_bytes,
    ),
    # The lower or (attribute `upper`) upper triangle of the last two dims, from `diagonal` on, and zeros.
    OpDef(
        "triangle",
        "elementwise",
        _whole_matrices,
        flops=1,
        gradient=_triangle_gradient,
        evaluate=_triangle,
        linear="jointly",
    ),
    # Attribute `axes`: the dims that are flipped, rolled or otherwise permuted as a whole.
    OpDef(
        "flip",
        "data_movement",
        changed_dims,
        flops=0,
        engine="copy",
        gradient=linear_gradient,
        evaluate=lambda node, x: np.flip(x, node.attrs["axes"]),
        linear="jointly",
    ),
)


def _flattened(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """A flat part of a tensor: no dim of it is a dim of the whole."""
    dims, sizes = _names(inputs[0].shape)
    sizes["part"] = outputs[0].shape[0]
    return Equation((tuple(dims),), ((("part",),),), sizes, frozenset(sizes), None)


register(
    # A device's own contiguous part of a tensor that is stored flat and split (ZeRO, FSDP).
    OpDef(
        "own_part",
        "data_movement",
        _flattened,
        flops=0,
        engine="copy",
        bytes_read=result_bytes,
        view_of=0,
    ),
)
