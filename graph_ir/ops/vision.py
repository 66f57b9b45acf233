"""Image operators besides convolution and pooling: resampling, and norms across channels.

`interpolate` mixes neighbouring elements of its first operand; attribute `mode` is 'nearest',
'linear' or 'cubic'. Further operands (sampling positions) are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Equation
from graph_ir.errors import OpboundError
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]
Types = Sequence[TensorType]

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


def _resampled(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Dims that keep their size pass, unless positions are given by data; the others are whole."""
    source, result = inputs[0].shape, outputs[0].shape
    by_data = len(inputs) > 1
    sizes: dict[str, int] = {}
    fixed: set[str] = set()

    def dims(shape: Sequence[int], tag: str) -> tuple[Dim, ...]:
        found: list[Dim] = []
        for i, n in enumerate(shape):
            passes = not by_data and len(source) == len(result) and source[i] == result[i]
            name = f"i{i}" if passes else f"{tag}{i}"
            sizes[name] = n
            if not passes:
                fixed.add(name)
            found.append((name,))
        return tuple(found)

    operands = (
        dims(source, "a"),
        *(_own(t, f"p{j}_", sizes, fixed) for j, t in enumerate(inputs[1:])),
    )
    return Equation(operands, (dims(result, "r"),), sizes, frozenset(fixed), None)


def _own(t: TensorType, tag: str, sizes: dict[str, int], fixed: set[str]) -> tuple[Dim, ...]:
    names = [f"{tag}{i}" for i in range(len(t.shape))]
    sizes.update(zip(names, t.shape, strict=True))
    fixed.update(names)
    return tuple((n,) for n in names)


def _mixing_flops(node: Node) -> int:
    """Per element of the larger image: a product and a sum per tap, taps^dims taps."""
    source, result = node.inputs[0].type, node.outputs[0].type
    changed = sum(a != b for a, b in zip(source.shape, result.shape, strict=False))
    taps = _TAPS[node.attrs.get("mode", "nearest")]
    if taps == 1:
        return 0
    mixed: int = 2 * taps ** max(changed, 1) - 1
    return max(source.elements, result.elements) * mixed


def _matrix(size: int, target: int, mode: str) -> Array:
    """How much each source element counts for each result element: [target, size]."""
    if mode == "nearest":
        index = np.minimum((np.arange(target) * size) // target, size - 1)
        return np.asarray(np.eye(size)[index])
    centre = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    low = np.floor(centre).astype(int)
    high = np.minimum(low + 1, size - 1)
    part = (centre - low)[:, None]
    return np.asarray((1 - part) * np.eye(size)[low] + part * np.eye(size)[high])


def _interpolate(node: Node, x: Array, *positions: Array) -> Array:
    if positions:
        raise NotImplementedError("interpolation at given positions is not evaluated")
    result = x
    for axis, (n, m) in enumerate(zip(x.shape, node.outputs[0].type.shape, strict=True)):
        if n != m:
            matrix = _matrix(n, m, node.attrs.get("mode", "nearest"))
            result = np.moveaxis(np.tensordot(matrix, result, (1, axis)), 0, axis)
    return result


def _interpolate_backward(node: Node, grad: Array) -> Array:
    result = grad
    for axis, (m, n) in enumerate(zip(grad.shape, node.outputs[0].type.shape, strict=True)):
        if n != m:
            matrix = _matrix(n, m, node.attrs.get("mode", "nearest")).T
            result = np.moveaxis(np.tensordot(matrix, result, (1, axis)), 0, axis)
    return result


def _interpolate_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None] * len(node.inputs)
    operands = [grads[0], *node.inputs[1:]]
    found = b.emit(node, "interpolate_backward", operands, [node.inputs[0].type], node.attrs)
    return [*found, *[None] * (len(node.inputs) - 1)]


def _channels_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`n c ... -> n c ...` with the channels whole."""
    dims: tuple[Dim, ...] = tuple((f"i{i}",) for i in range(len(outputs[0].shape)))
    sizes = {f"i{i}": n for i, n in enumerate(outputs[0].shape)}
    return Equation((dims,) * len(inputs), (dims,), sizes, frozenset({"i1"}), None)


def _neighbours(node: Node, squares: Array) -> Array:
    """Sum over `size` channels around each channel."""
    size = node.attrs["size"]
    before = (size - 1) // 2
    width = [(0, 0)] * squares.ndim
    width[1] = (before, size - 1 - before)
    padded = np.pad(squares, width)
    channels = squares.shape[1]
    return np.asarray(sum(padded[:, i : i + channels] for i in range(size)))


def _divisor(node: Node, x: Array) -> Array:
    share = node.attrs["alpha"] / node.attrs["size"]
    return np.asarray(node.attrs["bias"] + share * _neighbours(node, x * x))


def _lrn(node: Node, x: Array) -> Array:
    return np.asarray(x / _divisor(node, x) ** node.attrs["beta"])


def _lrn_flops(node: Node) -> int:
    """Square, `size` - 1 sums, scale and shift, power (8), quotient per element."""
    return node.outputs[0].type.elements * (int(node.attrs["size"]) + 11)


def _lrn_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None]
    operands = [grads[0], node.inputs[0]]
    types = [node.inputs[0].type]
    return b.emit(node, "local_response_norm_backward", operands, types, node.attrs)


def _lrn_backward(node: Node, dy: Array, x: Array) -> Array:
    # d/dx of x D^-beta with D = bias + alpha/size * sum of squares; the window is mirrored.
    beta, size = node.attrs["beta"], node.attrs["size"]
    divisor = _divisor(node, x)
    spread = dy * x * divisor ** (-beta - 1)
    mirrored = np.flip(_neighbours(node, np.flip(spread, 1)), 1)
    return np.asarray(dy * divisor**-beta - 2 * node.attrs["alpha"] / size * beta * x * mirrored)


def _deform_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`n (g c) .., (g k) c .., offsets -> n (g k) ..`: samples lie anywhere in the image."""
    groups = attrs.get("groups", 1)
    x, w, result = inputs[0].shape, inputs[1].shape, outputs[0].shape
    sizes = {"n": x[0], "g": groups, "c": w[1], "k": w[0] // groups}
    fixed: set[str] = set()

    def space(shape: Sequence[int], tag: str) -> tuple[Dim, ...]:
        names = [f"{tag}{i}" for i in range(len(shape))]
        sizes.update(zip(names, shape, strict=True))
        fixed.update(names)
        return tuple((n,) for n in names)

    taps, places = space(w[2:], "t"), space(result[2:], "y")
    operands: list[tuple[Dim, ...]] = [
        (("n",), ("g", "c"), *space(x[2:], "x")),
        (("g", "k"), ("c",), *taps),
    ]
    operands += [
        (("n",), *space(t.shape[1:2], f"o{j}_"), *places) for j, t in enumerate(inputs[2:])
    ]
    return Equation(tuple(operands), ((("n",), ("g", "k"), *places),), sizes, frozenset(fixed))


def _deform_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    raise OpboundError(
        f"{node.name}: deform_conv has no gradient rule; add it to graph_ir/ops/vision.py, or use "
        "--mode inference"
    )


def _deform_flops(node: Node) -> int:
    """The convolution's products; sampling costs a few FLOPs per tap and is left out."""
    weight, result = node.inputs[1].type, node.outputs[0].type
    return 2 * result.elements * weight.elements // max(weight.shape[0], 1)


register(
    # Zhu et al. 2019, arXiv 1811.11168. Operands x, weight, offsets and, optionally, a mask.
    OpDef(
        "deform_conv",
        "contraction",
        _deform_equation,
        flops=_deform_flops,
        engine="matrix",
        gradient=_deform_gradient,
    ),
    OpDef(
        "interpolate",
        "data_movement",
        _resampled,
        flops=_mixing_flops,
        engine="vector",
        gradient=_interpolate_gradient,
        evaluate=_interpolate,
    ),
    OpDef(
        "interpolate_backward",
        "data_movement",
        _resampled,
        flops=_mixing_flops,
        engine="vector",
        evaluate=_interpolate_backward,
    ),
    # Krizhevsky et al. 2012, section 3.3. Attributes `size`, `alpha`, `beta`, `bias`.
    OpDef(
        "local_response_norm",
        "normalization",
        _channels_equation,
        flops=_lrn_flops,
        gradient=_lrn_gradient,
        evaluate=_lrn,
    ),
    OpDef(
        "local_response_norm_backward",
        "normalization",
        _channels_equation,
        flops=lambda node: 2 * _lrn_flops(node),
        evaluate=_lrn_backward,
    ),
)
