"""Lookups by index, their gradients, and the loss: a product with a one-hot operand that is never built.

`v d, b s -> b s d` contracts the rows v: a device that holds some of the rows delivers a partial sum,
zero for the rows it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Equation, names_of
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]
Types = Sequence[TensorType]


def _gather_dims(
    table: Sequence[int], index: Sequence[int], axis: int
) -> tuple[Any, Any, Any, dict[str, int]]:
    rows: list[Dim] = [(f"i{i}",) for i in range(len(table))]
    picks: list[Dim] = [(f"p{i}",) if n > 1 else () for i, n in enumerate(index)]
    result = (*rows[:axis], *picks, *rows[axis + 1 :])
    sizes = {f"i{i}": n for i, n in enumerate(table)} | {f"p{i}": n for i, n in enumerate(index)}
    return tuple(rows), tuple(picks), result, sizes


def _gather_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Operands table and index; attribute `axis`."""
    table, index = inputs[0].shape, inputs[1].shape
    rows, picks, result, sizes = _gather_dims(table, index, attrs.get("axis", 0) % len(table))
    return Equation((rows, picks), (result,), sizes)


def _gather_backward_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Operands gradient and index; the result is dense, with the table's shape."""
    table, index = outputs[0].shape, inputs[1].shape
    rows, picks, result, sizes = _gather_dims(table, index, attrs.get("axis", 0) % len(table))
    return Equation((result, picks), (rows,), sizes)


def _local_rows(node: Node, index: Array, count: int) -> tuple[Array, Array]:
    """Row numbers within this device's rows (attribute `first_row`), and which indices hit them."""
    local = index - node.attrs.get("first_row", 0)
    hit = (local >= 0) & (local < count)
    return np.where(hit, local, 0), hit


def _gather(node: Node, table: Array, index: Array) -> Array:
    axis = node.attrs.get("axis", 0) % table.ndim
    local, hit = _local_rows(node, np.asarray(index), table.shape[axis])
    taken = np.take(table, local, axis=axis)
    hit = hit.reshape((1,) * axis + hit.shape + (1,) * (table.ndim - axis - 1))
    return np.where(hit, taken, np.zeros((), dtype=table.dtype))


def _gather_backward(node: Node, grad: Array, index: Array) -> Array:
    shape = node.outputs[0].type.shape
    axis = node.attrs.get("axis", 0) % len(shape)
    local, hit = _local_rows(node, index, shape[axis])
    result = np.zeros((shape[axis], *shape[:axis], *shape[axis + 1 :]), dtype=grad.dtype)
    moved = np.moveaxis(grad, range(axis, axis + index.ndim), range(index.ndim))
    np.add.at(result, local[hit], moved[hit])
    return np.moveaxis(result, 0, axis)


def _gather_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None, None]
    table, index = node.inputs
    attrs = {**node.attrs, "is_parameter": table.kind == "parameter"}
    operands = [grads[0], index]
    return [*b.emit(node, "gather_backward", operands, [table.type], attrs, "grad"), None]


def _picked_bytes(node: Node) -> int:
    """What is picked, and the indices that say what."""
    return node.outputs[0].type.bytes + sum(v.type.bytes for v in node.inputs[1:])


def _first_row(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    """A device with some of the table's rows looks up nothing in the others."""
    table = node.equation.inputs[0] if node.op == "gather" else node.equation.outputs[0]
    rows = table[node.attrs.get("axis", 0) % len(table)]
    return {"first_row": node.attrs.get("first_row", 0) + start} if name in rows else {}


# --- element lookups along one axis: gather_elements, scatter ---------------------------------------------


def _along_axis(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """Every tensor has the same dims, except that along `axis` each has its own size."""
    shape = inputs[0].shape
    axis = attrs.get("axis", 0) % max(len(shape), 1)
    sizes: dict[str, int] = {}
    fixed = set()

    def dims(t: TensorType, tag: str) -> tuple[Dim, ...]:
        found: list[Dim] = []
        for i, n in enumerate(t.shape):
            name = f"{tag}{i}" if i == axis or n != shape[i] else f"i{i}"
            if name.startswith(tag):
                fixed.add(name)
            sizes[name] = n
            found.append((name,))
        return tuple(found)

    operands = tuple(dims(t, f"a{j}_") for j, t in enumerate(inputs))
    results = tuple(dims(t, f"r{j}_") for j, t in enumerate(outputs))
    return Equation(operands, results, sizes, frozenset(fixed), None)


def _along_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None] * len(node.inputs)
    operands = [grads[0], node.inputs[1]]
    found = b.emit(node, "gather_elements_backward", operands, [node.inputs[0].type], node.attrs)
    return [*found, None]


def _elements_backward(node: Node, grad: Array, index: Array) -> Array:
    result = np.zeros(node.outputs[0].type.shape, dtype=grad.dtype)
    np.add.at(result, _places(node, index), grad)
    return result


def _places(node: Node, index: Array) -> tuple[Array, ...]:
    """Coordinates of the elements that an index of the same rank names along `axis`."""
    grid: list[Array] = list(np.indices(index.shape))
    grid[node.attrs.get("axis", 0)] = index
    return tuple(grid)


def _scatter_elements(node: Node, x: Array, index: Array, updates: Any = None) -> Array:
    """Attributes `reduction` ('none' or 'add'), and `value` where there are no updates."""
    result = x.copy()
    places = _places(node, index)
    if updates is None:
        result[places] = node.attrs.get("value", 0)
    elif node.attrs.get("reduction", "none") == "add":
        np.add.at(result, places, updates)
    else:
        result[places] = updates
    return result


def _scatter_elements_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """The updates' gradient is looked up; what was replaced gets none."""
    results: list[Value | None] = [None] * len(node.inputs)
    (grad,) = grads
    if grad is None:
        return results
    x, index, *updates = node.inputs
    if b.needs(x):
        results[0] = grad
        if node.attrs.get("reduction", "none") != "add":
            attrs = {**node.attrs, "value": 0}
            (results[0],) = b.emit(node, "scatter_elements", [grad, index], [x.type], attrs, "grad")
    if updates and b.needs(updates[0]):
        types = [updates[0].type]
        attrs = {"axis": node.attrs.get("axis", 0)}
        (results[2],) = b.emit(node, "gather_elements", [grad, index], types, attrs, "grad_updates")
    return results


# --- lookups in several dims: the access pattern is the frontend's, only the bytes are known ---------------


def _gather_nd_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """Zeros with the gradients added where the elements were picked."""
    results: list[Value | None] = [None] * len(node.inputs)
    if grads[0] is not None and b.needs(node.inputs[0]):
        operands = [grads[0], *node.inputs[1:]]
        (results[0],) = b.emit(node, "gather_nd_backward", operands, [node.inputs[0].type])
    return results


def _scatter_nd_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """The first operand keeps the gradient where nothing was written; updates look theirs up."""
    results: list[Value | None] = [None] * len(node.inputs)
    (grad,) = grads
    if grad is None:
        return results
    indices = [v for v in node.inputs[1:] if not v.type.dtype.is_float]
    for i, operand in enumerate(node.inputs):
        if not b.needs(operand):
            continue
        kept = i == 0 and operand.type.shape == grad.type.shape
        op = "scatter_nd" if kept else "gather_nd"
        (results[i],) = b.emit(node, op, [grad, *indices], [operand.type], label=f"grad{i}")
    return results


# --- everything that is looked up by data in another way --------------------------------------------------


def _whole(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """No name is shared, none can be split: the access pattern depends on data."""
    sizes: dict[str, int] = {}

    def dims(t: TensorType, tag: str) -> tuple[Dim, ...]:
        names = [f"{tag}{i}" for i in range(len(t.shape))]
        sizes.update(zip(names, t.shape, strict=True))
        return tuple((n,) for n in names)

    operands = tuple(dims(t, f"a{j}_") for j, t in enumerate(inputs))
    results = tuple(dims(t, f"r{j}_") for j, t in enumerate(outputs))
    return Equation(operands, results, sizes, frozenset(sizes), None)


def _histogram_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`... -> v`: every device counts its own elements."""
    whole = _whole(inputs, outputs, attrs)
    return replace(whole, replicated=frozenset(names_of(whole.outputs[0])), reduction="sum")


# --- loss ---------------------------------------------------------------------------------------------------


def _loss_dims(logits: TensorType, target: TensorType) -> tuple[Any, Any, dict[str, int]]:
    rows: list[Dim] = [(f"i{i}",) for i in range(len(target.shape))]
    sizes = {f"i{i}": n for i, n in enumerate(target.shape)} | {"v": logits.shape[-1]}
    return tuple(rows), (*rows, ("v",)), sizes


def _nll_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    """`n v, n ->`: a mean over rows of the picked element."""
    rows, full, sizes = _loss_dims(inputs[0], inputs[1])
    result = rows if outputs[0].shape == inputs[1].shape else ()
    return Equation((full, rows), (result,), sizes)


def _nll_backward_equation(inputs: Types, outputs: Types, attrs: Mapping[str, Any]) -> Equation:
    rows, full, sizes = _loss_dims(outputs[0], inputs[1])
    grad = rows if inputs[0].shape == inputs[1].shape else ()
    return Equation((grad, rows), (full,), sizes, reduction=None)


def _nll(node: Node, logs: Array, target: Array) -> Array:
    local, hit = _local_rows(node, target, logs.shape[-1])
    picked = -np.take_along_axis(logs, local[..., None], axis=-1)[..., 0] * hit
    if node.outputs[0].type.shape == target.shape:
        return np.asarray(picked)
    return np.asarray(picked.sum() / node.attrs.get("divisor", target.size))


def _nll_backward(node: Node, grad: Array, target: Array) -> Array:
    shape = node.outputs[0].type.shape
    local, hit = _local_rows(node, target, shape[-1])
    result = np.zeros(shape)
    mean = 1 if grad.shape == target.shape else node.attrs.get("divisor", target.size)
    np.put_along_axis(result, local[..., None], np.where(hit, -grad / mean, 0)[..., None], axis=-1)
    return result


def _local_loss(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    """The mean stays over all rows; a device with some of the classes looks up nothing in the others."""
    if name == "v":
        return {"first_row": node.attrs.get("first_row", 0) + start}
    return {"divisor": node.attrs.get("divisor", node.inputs[1].type.elements)}


def _nll_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None, None]
    operands = [grads[0], node.inputs[1]]
    return [*b.emit(node, "nll_loss_backward", operands, [node.inputs[0].type], node.attrs), None]


register(
    OpDef(
        "gather",
        "gather",
        _gather_equation,
        flops=0,
        engine="vector",
        gradient=_gather_gradient,
        evaluate=_gather,
        linear="first",
        localize=_first_row,
        bytes_read=_picked_bytes,
    ),
    OpDef(
        "gather_backward",
        "gather",
        _gather_backward_equation,
        flops=lambda node: node.inputs[0].type.elements,
        engine="vector",
        evaluate=_gather_backward,
        linear="first",
        localize=_first_row,
        # The table is filled with zeros, then every picked row is read, added to and written.
        bytes_read=lambda node: 2 * node.inputs[0].type.bytes + node.inputs[1].type.bytes,
        bytes_written=lambda node: node.outputs[0].type.bytes + node.inputs[0].type.bytes,
    ),
    OpDef(
        "gather_elements",
        "gather",
        _along_axis,
        flops=0,
        engine="vector",
        gradient=_along_gradient,
        evaluate=lambda node, x, index: x[_places(node, index)],
        linear="first",
        bytes_read=_picked_bytes,
    ),
    OpDef(
        "gather_elements_backward",
        "gather",
        _along_axis,
        flops=lambda node: node.inputs[0].type.elements,
        engine="vector",
        evaluate=_elements_backward,
        linear="first",
    ),
    # scatter_elements(x, index, updates): a copy of x with elements replaced along `axis`.
    OpDef(
        "scatter_elements",
        "gather",
        _along_axis,
        flops=0,
        engine="vector",
        gradient=_scatter_elements_gradient,
        evaluate=_scatter_elements,
    ),
    # Lookups whose access pattern depends on data in more than one dim (GatherND, ScatterND, NonZero).
    OpDef(
        "gather_nd",
        "gather",
        _whole,
        flops=0,
        engine="vector",
        gradient=_gather_nd_gradient,
        bytes_read=_picked_bytes,
    ),
    OpDef(
        "gather_nd_backward",
        "gather",
        _whole,
        flops=lambda node: node.inputs[0].type.elements,
        engine="vector",
    ),
    OpDef(
        "scatter_nd",
        "gather",
        _whole,
        flops=0,
        engine="vector",
        gradient=_scatter_nd_gradient,
    ),
    # How often each of a few values occurs; attribute `low` is the first one.
    OpDef(
        "histogram",
        "gather",
        _histogram_equation,
        flops=lambda node: node.inputs[0].type.elements,
        engine="vector",
        evaluate=lambda node, x: np.bincount(
            x.astype(np.int64).ravel() - int(node.attrs.get("low", 0)),
            minlength=node.outputs[0].type.elements,
        ),
    ),
    # log-probabilities[n, v], target[n] -> mean over n; reads one element per row.
    OpDef(
        "nll_loss",
        "gather",
        _nll_equation,
        flops=lambda node: node.inputs[1].type.elements,
        engine="vector",
        gradient=_nll_gradient,
        evaluate=_nll,
        linear="first",
        localize=_local_loss,
        bytes_read=lambda node: (
            node.inputs[1].type.bytes
            + node.inputs[1].type.elements * node.inputs[0].type.dtype.bits // 8
        ),
    ),
    OpDef(
        "nll_loss_backward",
        "gather",
        _nll_backward_equation,
        flops=0,
        engine="vector",
        evaluate=_nll_backward,
        linear="first",
        localize=_local_loss,
    ),
)
