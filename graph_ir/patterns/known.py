"""Which tensors are known from constants alone, and what they hold.

A causal mask may be a table in a file, a buffer, or a comparison of positions that the model makes anew
at each step. All of them are numbers in the end; so they are computed, by the records' own numpy
meanings, but only at the indices that are asked for: a mask over 100,000 tokens is never whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import numpy as np

from graph_ir.evaluate import Array, run_node
from graph_ir.graph import Node, Value

MOST_ELEMENTS = 1 << 22
"""Elements of a tensor that are computed at most."""

_STORED = ("constant", "buffer", "parameter")
_REDRAWN = frozenset({"dropout", "unknown"})

Index = tuple[Array, ...]
"""For each dim the positions that are asked for: their cross product."""


class UnknownContentError(Exception):
    """A tensor holds what is not known, or too much."""


def is_fixed(node: Node, fixed: set[Value]) -> bool:
    """Whether a node gives the same numbers each time, if its operands in `fixed` do."""
    if node.op == "fill":
        return "value" in node.attrs or "start" in node.attrs
    if node.op in _REDRAWN or node.definition.in_place is not None or not node.inputs:
        return False
    return all(v in fixed for v in node.inputs)


class Known:
    """Computes parts of tensors that depend on stored numbers only."""

    def __init__(self, nodes: Iterable[Node], producers: Mapping[Value, Node]) -> None:
        self.producers = producers
        self.nodes: set[Node] = set()
        self.fixed: set[Value] = set()
        for node in nodes:
            self.fixed.update(v for v in node.inputs if _is_stored(v))
            self.nodes.add(node)
            if is_fixed(node, self.fixed):
                self.fixed.update(node.outputs)

    def is_known(self, value: Value) -> bool:
        """Whether a value depends on stored numbers only; those that patterns emitted are looked into."""
        if value in self.fixed or _is_stored(value):
            return True
        node = self.producers.get(value)
        if node is None or node in self.nodes or not all(map(self.is_known, node.inputs)):
            return False
        return is_fixed(node, set(node.inputs))

    def at(self, value: Value, index: Index) -> Array:
        """Elements of a tensor.

        Args:
            value: of any shape.
            index: positions in each of its dims.

        Raises:
            UnknownContentError: they cannot be told.
        """
        if prod(map(len, index)) > MOST_ELEMENTS or not self.is_known(value):
            raise UnknownContentError(value.name)
        if _is_stored(value):
            return _read(value, index)
        node = self.producers[value]
        if node.op == "fill":
            return _filled(node, index)
        if node.op == "transpose":
            perm = list(node.attrs["perm"])
            inner = tuple(index[perm.index(i)] for i in range(len(perm)))
            return np.transpose(self.at(node.inputs[0], inner), perm)
        if node.op in ("slice", "reshape"):
            before = _rearranged(node, index)
            if before is not None:
                return self.at(node.inputs[0], before).reshape(tuple(map(len, index)))
        if node.op == "triangle":
            rows, columns = index[-2][:, None], index[-1][None, :] - node.attrs.get("diagonal", 0)
            keeps = columns >= rows if node.attrs.get("upper") else columns <= rows
            # A product would make minus infinity times zero no number.
            return np.where(keeps, self.at(node.inputs[0], index), 0)
        if node.definition.kind == "elementwise" or node.op == "expand":
            operands = [self.at(v, _broadcast(v, index)) for v in node.inputs]
            found = tuple(operands) if node.op == "expand" else _run(node, operands)
            return np.broadcast_to(found[node.outputs.index(value)], tuple(map(len, index)))
        return self._from_whole(node, value, index)

    def _from_whole(self, node: Node, value: Value, index: Index) -> Array:
        """Elements of what an operator without a meaning element by element makes."""
        if any(v.type.elements > MOST_ELEMENTS for v in (*node.inputs, *node.outputs)):
            raise UnknownContentError(value.name)
        whole = [self.at(v, tuple(map(np.arange, v.type.shape))) for v in node.inputs]
        found = _run(node, whole)[node.outputs.index(value)]
        return np.asarray(found[np.ix_(*index)])


def _is_stored(value: Value) -> bool:
    return value.kind in _STORED and value.data is not None


def _run(node: Node, operands: list[Array]) -> tuple[Array, ...]:
    try:
        with np.errstate(all="ignore"):
            return run_node(node, operands)
    except (NotImplementedError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise UnknownContentError(node.name) from error


def _read(value: Value, index: Index) -> Array:
    try:
        return np.asarray(np.asarray(value.data)[np.ix_(*index)])
    except (OSError, ValueError, TypeError, RuntimeError, IndexError) as error:
        # It was to be read from a file that is absent, or is of a type that numpy lacks.
        raise UnknownContentError(value.name) from error


def _filled(node: Node, index: Index) -> Array:
    if "start" in node.attrs:
        return np.asarray(node.attrs["start"] + node.attrs["step"] * index[0])
    return np.full(tuple(map(len, index)), node.attrs["value"])


def _broadcast(value: Value, index: Index) -> Index:
    """The part of an operand that an element-by-element operator reads for a part of its result."""
    shape = value.type.shape
    inner = index[len(index) - len(shape) :]
    return tuple(np.zeros(1, int) if n == 1 else at for n, at in zip(shape, inner, strict=True))


def _rearranged(node: Node, index: Index) -> Index | None:
    """Where a part of a slice, or of a reshape by dims of size 1 alone, stands in the operand."""
    shape, result = node.inputs[0].type.shape, node.outputs[0].type.shape
    if node.op == "slice":
        starts = node.attrs.get("starts", (0,) * len(shape))
        steps = node.attrs.get("steps", (1,) * len(shape))
        return tuple(a + b * i for a, b, i in zip(starts, steps, index, strict=True))
    if [n for n in shape if n > 1] != [n for n in result if n > 1]:
        return None
    wide = (at for at, n in zip(index, result, strict=True) if n > 1)
    return tuple(next(wide) if n > 1 else np.zeros(1, int) for n in shape)
