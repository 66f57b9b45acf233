"""Runs a split graph on all ranks at once, in numpy, with real collectives.

The oracle of propagation: whatever it decided, every value of every rank must be the part, or a term, of
what the whole graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graph_ir.equation import Dims
from graph_ir.evaluate import run_node
from graph_ir.graph import Graph, Node, Value
from graph_ir.localize import join_arrays, ranges, shard_array
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.placements import Plan

Array = NDArray[Any]
_TERMS = {"sum": np.add, "max": np.maximum, "min": np.minimum, "prod": np.multiply}


@dataclass(frozen=True)
class Split:
    """A graph, how it was split, and the graph of one rank that came out."""

    whole: Graph
    axes: LogicalAxes
    plan: Plan
    local: Graph


class Ranks:
    """Evaluates `split.local` on every rank of the mesh axis."""

    def __init__(self, split: Split, given: Mapping[Value, Array]) -> None:
        """`given` holds an array for every input of the whole graph."""
        self.split = split
        self.size = split.plan.mesh_axis.size
        whole = split.whole
        self.by_name = {
            v.name: v for v in (*whole.inputs, *(o for n in whole.nodes for o in n.outputs))
        }
        self.nodes = {n.name: n for n in whole.nodes}
        self.values: dict[Value, list[Array]] = {}
        for value, local in zip(whole.inputs, split.local.inputs, strict=True):
            array = np.asarray(given[value])
            axis = self.axis_between(value, local.type.shape)
            self.values[local] = [self.part(value, array, axis, r) for r in range(self.size)]
        for node in split.local.nodes:
            self._run(node)

    def dims(self, value: Value) -> tuple[Dims, dict[str, int]]:
        axes = self.split.axes.of_value(value)
        sizes = {str(a): a.size for dim in axes for a in dim}
        return tuple(tuple(str(a) for a in dim) for dim in axes), sizes

    def axis_between(self, value: Value, shape: Sequence[int]) -> Axis | None:
        """The axis along which a part of this shape was cut out of a value."""
        wanted = self.split.plan.axes.union(*self.split.plan.elsewhere)
        for dim, n, m in zip(self.split.axes.of_value(value), value.type.shape, shape, strict=True):
            if n != m:
                return next(a for a in dim if a in wanted)
        return None

    def part(self, value: Value, array: Array, axis: Axis | None, rank: int) -> Array:
        if axis is None:
            return array
        start, stop = ranges(axis.size, self.size)[rank]
        return shard_array(array, *self.dims(value), str(axis), start, stop)

    def join(self, value: Value, parts: Sequence[Array]) -> Array:
        axis = self.axis_between(value, parts[0].shape)
        assert axis is not None
        return join_arrays(parts, *self.dims(value), str(axis), None)

    def _run(self, node: Node) -> None:
        operands = [self.values[v] for v in node.inputs]
        if node.phase == "communication":
            (parts,), (out,) = operands, node.outputs
            value = self.by_name[out.name.rsplit(f".{node.op}.", 1)[0]]
            term = _TERMS[node.attrs.get("reduction", "sum")]
            if node.op == "all_gather" or node.op == "all_to_all":
                full = self.join(value, parts)
            else:
                full = reduce(term, parts)
            axis = self.axis_between(value, out.type.shape)
            self.values[out] = [self.part(value, full, axis, r) for r in range(self.size)]
            return
        if node.op == "slice" and ".part." in node.name:
            (parts,), (out,) = operands, node.outputs
            value = self.by_name[out.name.removesuffix(".part")]
            axis = self.axis_between(value, out.type.shape)
            self.values[out] = [self.part(value, p, axis, r) for r, p in enumerate(parts)]
            return
        results = []
        for rank in range(self.size):
            local = replace(node, attrs={**node.attrs, **self._rows(node, rank)})
            with np.errstate(all="ignore"):
                results.append(run_node(local, [parts[rank] for parts in operands]))
        for i, value in enumerate(node.outputs):
            self.values[value] = [np.asarray(found[i]) for found in results]
            for array in self.values[value]:
                assert array.shape == value.type.shape, node

    def _rows(self, node: Node, rank: int) -> dict[str, int]:
        """The first table row or query that a rank holds."""
        whole = self.nodes.get(node.name)
        if "first_query" in node.attrs:
            queries = node.inputs[1 if node.op == "attention_backward" else 0]
            return {"first_query": rank * queries.type.shape[2]}
        if whole is None or node.op not in (
            *("gather", "gather_backward", "nll_loss", "nll_loss_backward"),
        ):
            return {}
        backward = node.op.endswith("_backward")
        local, full = (n.outputs[0] if backward else n.inputs[0] for n in (node, whole))
        axis = -1 if node.op.startswith("nll") else node.attrs.get("axis", 0)
        rows = local.type.shape[axis]
        return {"first_row": rank * rows} if rows != full.type.shape[axis] else {}

    def check(self, expected: Mapping[Value, Array], tolerance: float = 1e-6) -> int:
        """Compares every value with the whole graph's; returns the number of values compared."""
        count = 0
        for local, parts in self.values.items():
            value = self.by_name.get(local.name)
            if value is None or value.type.dtype.kind == "bool":
                continue
            full = expected[value]
            if parts[0].shape != full.shape:
                found = [self.join(value, parts)]
            else:
                found = [parts[0], *(reduce(term, parts) for term in _TERMS.values())]
            close = [np.allclose(f, full, rtol=tolerance, atol=tolerance) for f in found]
            assert any(close), f"{value} is neither the whole, nor its parts, nor its terms"
            count += 1
        return count
