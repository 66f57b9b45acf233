"""Runs equations, nodes and graphs on numpy arrays.

This is what equations *mean*; it proves records, shardings and gradients in tests and folds constants.
It is not meant to be fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graph_ir.equation import Dims, Equation, Window, factors, names_of

if TYPE_CHECKING:
    from graph_ir.graph import Graph, Node, Value

Array = NDArray[Any]
_REDUCE: Mapping[str, Any] = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}


class WindowSpec:
    """Stride, dilation and padding of each dim that is read through a sliding window.

    The attributes list the spatial dims, which are a tensor's last ones; so a dim is counted from the end,
    and a spatial dim without a window (a kernel of one tap) does not shift the others.
    """

    def __init__(self, attrs: Mapping[str, Any], rank: int) -> None:
        self._rank = rank
        self.stride = tuple(attrs.get("stride", (1,) * rank))
        self.dilation = tuple(attrs.get("dilation", (1,) * rank))
        self.padding = tuple(attrs.get("padding", (0,) * rank))
        """Zeros before the first element of each window dim."""

    def positions(self, dims: Dims, axis: int, sizes: Mapping[str, int]) -> Array:
        """[output, kernel]: which elements of the dim each window reads; outside is padding."""
        dim, i = dims[axis], axis - self._rank
        if not isinstance(dim, Window):
            raise ValueError(f"dim {axis} of {dims} is no window")
        out = np.arange(sizes[dim.output])[:, None] * self.stride[i]
        taps = np.arange(sizes[dim.kernel])[None, :] * self.dilation[i]
        return np.asarray(out + taps - self.padding[i])


def product(
    equation: Equation, attrs: Mapping[str, Any], out_shape: Sequence[int], *operands: Array
) -> Array:
    """Evaluates a product of operands (or a reduction of one), windows included.

    Args:
        equation: with one result.
        attrs: `stride`, `dilation`, `padding` (zeros at the start) per window.
        out_shape: shape of the result.
        operands: one array per operand.
    """
    expanded = [
        unfold(array, dims, equation, attrs)
        for array, dims in zip(operands, equation.inputs, strict=True)
    ]
    out_names = list(dict.fromkeys(names_of(equation.outputs[0])))
    symbols = {name: i for i, name in enumerate(equation.names)}
    known = {n for dims in equation.inputs for n in names_of(dims)}
    kept = [n for n in out_names if n in known]
    if equation.reduction in ("sum", None) or len(operands) > 1:
        args: list[Any] = []
        for array, dims in zip(expanded, equation.inputs, strict=True):
            args += [array, [symbols[n] for n in names_of(dims)]]
        result = np.einsum(*args, [symbols[n] for n in kept], optimize=len(operands) > 2)
    else:
        order = names_of(equation.inputs[0])
        axes = tuple(i for i, n in enumerate(order) if n not in kept)
        reduced = _REDUCE[equation.reduction](expanded[0], axis=axes)
        left = [n for n in order if n in kept]
        result = np.transpose(reduced, [left.index(n) for n in kept])
    full = [equation.sizes[n] for n in out_names]
    result = result.reshape([equation.sizes[n] if n in known else 1 for n in out_names])
    result = np.broadcast_to(result, full)
    return fold(result, equation.outputs[0], out_names, equation, attrs, tuple(out_shape))


def unfold(
    array: Array, dims: Dims, equation: Equation, attrs: Mapping[str, Any], fill: float = 0
) -> Array:
    """Splits compound dims and gathers windows, so that every name has an axis of its own.

    `fill` is what a window reads outside of the array.
    """
    spec = WindowSpec(attrs, len(dims))
    axis = 0
    for place, dim in enumerate(dims):
        if isinstance(dim, Window):
            positions = spec.positions(dims, place, equation.sizes)
            padded, index = _padded(array, axis, positions, fill)
            array = np.take(padded, index, axis=axis)
            axis += 2
        else:
            sizes = [equation.sizes[n] for n in dim]
            array = array.reshape([*array.shape[:axis], *sizes, *array.shape[axis + 1 :]])
            axis += len(dim)
    return array


def _padded(array: Array, axis: int, positions: Array, fill: float) -> tuple[Array, Array]:
    before = max(0, -int(positions.min()))
    after = max(0, int(positions.max()) - array.shape[axis] + 1)
    widths = [(0, 0)] * array.ndim
    widths[axis] = (before, after)
    return np.pad(array, widths, constant_values=fill), positions + before


def fold(
    array: Array,
    dims: Dims,
    order: list[str],
    equation: Equation,
    attrs: Mapping[str, Any],
    shape: tuple[int, ...],
) -> Array:
    """Joins names into compound dims and adds up windows: the inverse of `unfold`."""
    if not any(isinstance(d, Window) for d in dims):
        return np.ascontiguousarray(array).reshape(shape)
    places = [i for i, d in enumerate(dims) if isinstance(d, Window)]
    spec = WindowSpec(attrs, len(dims))
    result = np.zeros(shape, dtype=array.dtype)
    taps = [n for i in places for n in factors(dims[i])]
    rest = [n for n in order if n not in taps]
    array = np.transpose(array, [order.index(n) for n in [*taps, *rest]])
    tables = [spec.positions(dims, i, equation.sizes) for i in places]
    rows = [prod(equation.sizes[n] for n in d) for d in dims if not isinstance(d, Window)]
    for index in np.ndindex(*[equation.sizes[n] for n in taps]):
        found = [int(t[index[2 * i], index[2 * i + 1]]) for i, t in enumerate(tables)]
        if any(not 0 <= p < shape[i] for p, i in zip(found, places, strict=True)):
            continue
        where: list[Any] = [slice(None)] * len(dims)
        for place, position in zip(places, found, strict=True):
            where[place] = position
        result[tuple(where)] += array[index].reshape(rows)
    return result


def run_node(node: Node, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """Evaluates one node.

    Raises:
        NotImplementedError: if its record has no `evaluate`.
    """
    function = node.definition.evaluate
    if function is None:
        raise NotImplementedError(f"operator {node.op!r} has no numpy evaluation")
    results = function(node, *arrays)
    return results if isinstance(results, tuple) else (results,)


def run_graph(graph: Graph, values: Mapping[Value, Array]) -> dict[Value, Array]:
    """Evaluates an unfolded graph.

    Args:
        graph: without repeated blocks.
        values: an array for every graph input.

    Returns:
        The array of every value.
    """
    if graph.blocks:
        raise ValueError("run_graph takes an unfolded graph")
    known = dict(values)
    for node in graph.nodes:
        results = run_node(node, [known[v] for v in node.inputs])
        known.update(zip(node.outputs, results, strict=True))
    return known
