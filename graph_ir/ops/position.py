"""Rotary position embedding as one kernel (Su et al. 2021, arXiv 2104.09864).

Operands x[b, ..., d] and whatever holds positions, cosines and sines; the head dim is needed whole. With
the attribute `rotate` the tables are the cosines and sines themselves, broadcast to x: the result is
x cos + R(x) sin. Tables half as wide as x hold each angle once. R takes 'halves' (x1, x2) of x to
(-x2, x1), or does so with its 'pairs' of neighbours; `transposed` is the same for R transposed, which the
gradient needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Equation
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.ops.elementwise import broadcast_equation
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value


def _equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    """`b ... d, tables -> b ... d`: rows can be split, the tables are read whole.

    Tables that broadcast to x are split with it, all but the head dim.
    """
    if "rotate" in attrs:
        width = inputs[0].shape[-1]
        wide = [t.with_shape((*t.shape[:-1], width)) for t in inputs]
        broadcast = broadcast_equation(wide, outputs, attrs)
        whole = broadcast.inputs[0][-1]
        tables = [
            dims if t.shape[-1] == width else (*dims[:-1], ("angle",))
            for t, dims in zip(inputs, broadcast.inputs, strict=True)
        ]
        sizes = {**broadcast.sizes, "angle": width // 2}
        used = {n: sizes[n] for n in sizes if n != "angle" or tables != list(broadcast.inputs)}
        return replace(
            broadcast,
            inputs=tuple(tables),
            sizes=used,
            replicated=frozenset({*whole, *({"angle"} & used.keys())}),
        )
    dims: tuple[Dim, ...] = tuple((f"i{i}",) for i in range(len(inputs[0].shape)))
    sizes = {f"i{i}": n for i, n in enumerate(inputs[0].shape)}
    fixed = {f"i{i}" for i in range(1, len(dims))}
    tables = []
    for j, t in enumerate(inputs[1:]):
        names = [f"t{j}_{i}" for i in range(len(t.shape))]
        sizes |= dict(zip(names, t.shape, strict=True))
        fixed.update(names)
        tables.append(tuple((n,) for n in names))
    return Equation((dims, *tables), (dims,), sizes, frozenset(fixed), None)


def _gradient(
    b: GradientBuilder, node: Node, grads: Sequence[Value | None]
) -> Sequence[Value | None]:
    """The rotation by the opposite angle: the same kernel again."""
    if grads[0] is None:
        return [None] * len(node.inputs)
    operands = [grads[0], *node.inputs[1:]]
    attrs = dict(node.attrs)
    if "rotate" in attrs:
        attrs["transposed"] = not attrs.get("transposed")
    found = b.emit(node, "rotary_embedding", operands, [node.inputs[0].type], attrs)
    return [*found, *[None] * (len(node.inputs) - 1)]


def _evaluate(node: Node, x: Array, *tables: Array) -> Array:
    rotate = node.attrs.get("rotate")
    if rotate is None:
        raise NotImplementedError("a rotary embedding by position tables has no numpy evaluation")
    cos, sin = (_full(t, x, rotate) for t in tables)
    if node.attrs.get("transposed"):
        return np.asarray(x * cos - _turned(x * sin, rotate))
    return np.asarray(x * cos + _turned(x, rotate) * sin)


def _full(table: Array, x: Array, rotate: str) -> Array:
    """A table as wide as x: each angle is that of two elements."""
    if table.shape[-1] == x.shape[-1]:
        return table
    return np.repeat(table, 2, axis=-1) if rotate == "pairs" else np.tile(table, 2)


def _turned(x: Array, rotate: str) -> Array:
    """Every two elements that belong together, turned by a right angle."""
    if rotate == "halves":
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate((-second, first), axis=-1)
    return np.stack((-x[..., 1::2], x[..., 0::2]), axis=-1).reshape(x.shape)


def _picked_bytes(node: Node) -> int:
    """x, and of the tables no more than one row per row of x."""
    x = node.inputs[0].type.bytes
    return x + sum(min(v.type.bytes, x) for v in node.inputs[1:])


register(
    # Two products and a sum per element.
    OpDef(
        "rotary_embedding",
        "elementwise",
        _equation,
        flops=3,
        engine="vector",
        gradient=_gradient,
        evaluate=_evaluate,
        bytes_read=_picked_bytes,
    )
)
