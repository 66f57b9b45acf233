"""Quantisation: numbers to integers with scales, and back.

`quantize` and `dequantize` read x, a scale and, optionally, a zero point. A scale is one number, a
vector along the attribute `axis`, or has one element per block along `axis`. `apply_scales` is the
rescaling that a kernel on low-bit weights does while it computes: it reads the scales, wherever
they belong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Equation
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Types = Sequence[TensorType]
Grads = Sequence["Value | None"]


def _scaled(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`... c ..., c -> ... c ...`, or with blocks `... (c b) ..., ... c ... -> ... (c b) ...`."""
    shape = inputs[0].shape
    axis = attrs.get("axis", 1) % max(len(shape), 1)
    dims: list[Dim] = [(f"i{i}",) for i in range(len(shape))]
    sizes = {f"i{i}": n for i, n in enumerate(shape)}
    fixed: set[str] = set()
    blocks = next((t.shape[axis] for t in inputs[1:] if len(t.shape) == len(shape) > 1), 0)
    if blocks and shape[axis] % blocks == 0 and blocks < shape[axis]:
        del sizes[f"i{axis}"]
        sizes |= {"blocks": blocks, "within": shape[axis] // blocks}
        dims[axis] = ("blocks", "within")
    scales = [_scale_dims(t.shape, dims, axis, sizes, fixed, j) for j, t in enumerate(inputs[1:])]
    x = tuple(dims)
    return Equation((x, *scales), (x,) * len(outputs), sizes, frozenset(fixed), None)


def _scale_dims(
    scale: Sequence[int],
    dims: Sequence[Dim],
    axis: int,
    sizes: dict[str, int],
    fixed: set[str],
    operand: int,
) -> tuple[Dim, ...]:
    def own(i: int, n: int) -> Dim:
        if n == 1:
            return ()
        name = f"s{operand}_{i}"
        sizes[name] = n
        fixed.add(name)
        return (name,)

    if len(scale) == 1 and len(dims) > 0 and sizes.get(f"i{axis}") == scale[0]:
        return ((f"i{axis}",),)
    if len(scale) == len(dims):
        if "blocks" in sizes and scale[axis] == sizes["blocks"]:
            return tuple(
                ("blocks",) if i == axis else d if sizes.get(d[0]) == n else own(i, n)
                for i, (d, n) in enumerate(zip(dims, scale, strict=True))
            )
        return tuple(
            d if len(d) == 1 and sizes.get(d[0]) == n else own(i, n)
            for i, (d, n) in enumerate(zip(dims, scale, strict=True))
        )
    return tuple(own(i, n) for i, n in enumerate(scale))


def _per_element(node: Node, scale: Array, x: Array) -> Array:
    axis = node.attrs.get("axis", 1) % max(x.ndim, 1)
    if scale.ndim == 1 and scale.size > 1:
        return scale.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    if scale.ndim == x.ndim and scale.shape != x.shape:
        return np.repeat(scale, x.shape[axis] // scale.shape[axis], axis=axis)
    return scale


def _quantize(node: Node, x: Array, scale: Array, zero: Array | None = None) -> Array:
    levels = np.round(x / _per_element(node, scale, x))
    if zero is not None:
        levels = levels + _per_element(node, zero, x).astype(np.float64)
    dtype = node.outputs[0].type.dtype
    low = 0 if dtype.label.startswith("u") else -(2 ** (dtype.bits - 1))
    return np.clip(levels, low, low + 2**dtype.bits - 1)


def _dequantize(node: Node, x: Array, scale: Array, zero: Array | None = None) -> Array:
    wide = x.astype(np.float64)
    centred = wide if zero is None else wide - _per_element(node, zero, x)
    return np.asarray(centred * _per_element(node, scale, x))


def _straight_through(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """Rounding has no slope; the gradient passes (Bengio et al. 2013, arXiv 1308.3432)."""
    grad = grads[0]
    if grad is None or not node.inputs[0].type.dtype.is_float:
        return [None] * len(node.inputs)
    passed = b.emit(node, "cast", [grad], [node.inputs[0].type], label="grad")
    return [*passed, *[None] * (len(node.inputs) - 1)]


def _with_scales(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`..., scales -> ...`: the scales are read whole."""
    dims: tuple[Dim, ...] = tuple((f"i{i}",) for i in range(len(outputs[0].shape)))
    sizes = {f"i{i}": n for i, n in enumerate(outputs[0].shape)}
    fixed: set[str] = set()
    tables = []
    for j, t in enumerate(inputs[1:]):
        names = [f"s{j}_{i}" for i in range(len(t.shape))]
        sizes |= dict(zip(names, t.shape, strict=True))
        fixed.update(names)
        tables.append(tuple((n,) for n in names))
    return Equation((dims, *tables), (dims,), sizes, frozenset(fixed), None)


def _scales_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    return [grads[0], *[None] * (len(node.inputs) - 1)]


def _threshold_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`... c ..., c t -> ... c ...`: every element meets all thresholds of its channel.

    Counts of some of the thresholds add up, so `t` is summed over.
    """
    shape, table = inputs[0].shape, inputs[1].shape
    axis = attrs.get("axis", 1) % max(len(shape), 1)
    dims: tuple[Dim, ...] = tuple((f"i{i}",) for i in range(len(shape)))
    sizes = {f"i{i}": n for i, n in enumerate(shape)} | {"t": table[-1]}
    channel: Dim = dims[axis] if table[0] == shape[axis] and table[0] > 1 else ()
    return Equation((dims, (channel, ("t",))), (dims,), sizes)


def _threshold_flops(node: Node) -> int:
    """A comparison and a sum per element and threshold."""
    return 2 * node.inputs[0].type.elements * node.inputs[1].type.shape[-1]


def _count_thresholds(node: Node, x: Array, table: Array) -> Array:
    axis = node.attrs.get("axis", 1) % x.ndim
    last = np.moveaxis(x, axis, -1)
    count = (last[..., None] >= table).sum(axis=-1)
    return np.asarray(np.moveaxis(count, -1, axis), dtype=x.dtype)


register(
    # Blott et al. 2018 (FINN-R, arXiv 1809.04570), section 4.2.1: activations as counted thresholds.
    OpDef(
        "count_thresholds",
        "elementwise",
        _threshold_equation,
        flops=_threshold_flops,
        evaluate=_count_thresholds,
    ),
    # Quotient, rounding, shift, two limits.
    OpDef(
        "quantize",
        "elementwise",
        _scaled,
        flops=5,
        gradient=_straight_through,
        evaluate=_quantize,
    ),
    # Shift and product.
    OpDef(
        "dequantize",
        "elementwise",
        _scaled,
        flops=2,
        gradient=_straight_through,
        evaluate=_dequantize,
    ),
    OpDef("apply_scales", "elementwise", _with_scales, flops=1, gradient=_scales_gradient),
)
