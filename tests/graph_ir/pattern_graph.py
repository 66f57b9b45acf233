"""Builds small graphs for the tests of patterns, with shapes worked out by numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graph_ir.backward import derive_backward
from graph_ir.evaluate import run_graph
from graph_ir.graph import Graph, GraphBuilder, Value
from graph_ir.tensor_type import DType, TensorType

Array = NDArray[Any]


class Maker:
    """Operators as methods: `m.mul(x, 0.5)`, `m.mean(x)`."""

    def __init__(self) -> None:
        self.builder = GraphBuilder("test")

    def weight(self, *shape: int, dtype: DType = DType.FLOAT32, name: str = "w") -> Value:
        return self.builder.add_input(name, TensorType(shape, dtype), "parameter")

    def input(self, *shape: int, dtype: DType = DType.FLOAT32) -> Value:
        return self.builder.add_input("x", TensorType(shape, dtype))

    def constant(self, data: Array, dtype: DType = DType.FLOAT32) -> Value:
        return self.builder.add_input("c", TensorType(data.shape, dtype), "constant", data=data)

    def op(self, name: str, inputs: Sequence[Value], shape: Sequence[int], **attrs: Any) -> Value:
        made = TensorType(tuple(shape), inputs[0].type.dtype)
        return self.builder.emit(name, inputs, [made], attrs)[0]

    def binary(self, name: str, a: Value | float, b: Value | float) -> Value:
        tensors = [v for v in (a, b) if isinstance(v, Value)]
        numbers = [v for v in (a, b) if not isinstance(v, Value)]
        attrs: dict[str, Any] = {"scalar": numbers[0]} if numbers else {}
        if numbers and not isinstance(a, Value):
            attrs["scalar_first"] = True
        shape = np.broadcast_shapes(*(v.type.shape for v in tensors))
        return self.op(name, tensors, shape, **attrs)

    def __getattr__(self, name: str) -> Callable[..., Value]:
        if name in ("add", "sub", "mul", "div", "pow"):
            return lambda a, b: self.binary(name, a, b)
        return lambda x, **attrs: self.op(name, [x], x.type.shape, **attrs)

    def reduce(self, name: str, x: Value, *axes: int, keepdims: bool = True) -> Value:
        rank = len(x.type.shape)
        where = {a % rank for a in axes or (-1,)}
        shape = [1 if i in where else n for i, n in enumerate(x.type.shape)]
        if not keepdims:
            shape = [n for i, n in enumerate(x.type.shape) if i not in where]
        return self.op(f"reduce_{name}", [x], shape, axes=tuple(sorted(where)), keepdims=keepdims)

    def mean(self, x: Value, *axes: int) -> Value:
        return self.reduce("mean", x, *axes)

    def cast(self, x: Value, dtype: DType) -> Value:
        return self.builder.emit("cast", [x], [x.type.with_dtype(dtype)])[0]

    def reshape(self, x: Value, *shape: int) -> Value:
        return self.op("reshape", [x], shape, view=True)

    def transpose(self, x: Value, *perm: int) -> Value:
        return self.op("transpose", [x], [x.type.shape[p] for p in perm], perm=perm, view=True)

    def swap(self, x: Value) -> Value:
        rank = len(x.type.shape)
        return self.transpose(x, *range(rank - 2), rank - 1, rank - 2)

    def matmul(self, a: Value, b: Value) -> Value:
        lead = np.broadcast_shapes(a.type.shape[:-2], b.type.shape[:-2])
        return self.op("matmul", [a, b], (*lead, a.type.shape[-2], b.type.shape[-1]))

    def where(self, condition: Value, yes: Value, no: Value) -> Value:
        shape = np.broadcast_shapes(*(v.type.shape for v in (condition, yes, no)))
        dtype = yes.type.dtype if yes.type.elements > 1 else no.type.dtype
        made = [TensorType(shape, dtype)]
        return self.builder.emit("where", [condition, yes, no], made)[0]

    def dropout(self, x: Value, p: float = 0.1) -> Value:
        kept = x.type.with_dtype(DType.BOOL)
        return self.builder.emit("dropout", [x], [x.type, kept], {"p": p})[0]

    def slice(self, x: Value, start: int, stop: int) -> Value:
        starts = (*[0] * (len(x.type.shape) - 1), start)
        steps = (1,) * len(x.type.shape)
        shape = (*x.type.shape[:-1], stop - start)
        return self.op("slice", [x], shape, starts=starts, steps=steps, view=True)

    def concat(self, a: Value, b: Value) -> Value:
        shape = (*a.type.shape[:-1], a.type.shape[-1] + b.type.shape[-1])
        return self.op("concat", [a, b], shape, axis=len(shape) - 1)

    def build(self, *outputs: Value) -> Graph:
        return self.builder.build(outputs)


def operators(graph: Graph) -> Counter[str]:
    """How often each operator occurs, but for views."""
    return Counter(n.op for n in graph.nodes if not n.definition.is_view(n))


def feeds(graph: Graph) -> dict[Value, Array]:
    """Numbers for every input: a constant's own, else random ones."""
    random = np.random.default_rng(3)
    return {v: _numbers(v, random) for v in graph.inputs}


def _numbers(value: Value, random: np.random.Generator) -> Array:
    if value.data is not None:
        return np.asarray(value.data)
    if value.type.dtype is DType.BOOL:
        found = random.random(value.type.shape) < 0.7
        found[..., 0] = True  # a row that sees nothing has no softmax
        return found
    return random.normal(size=value.type.shape)


def results(graph: Graph, numbers: Mapping[Value, Array]) -> list[Array]:
    known = run_graph(graph, numbers)
    return [known[v] for v in graph.outputs]


def gradients(graph: Graph, numbers: Mapping[Value, Array]) -> dict[Value, Array]:
    """The gradient of every weight, for a fixed gradient of the results."""
    backward = derive_backward(graph)
    whole = backward.builder.build([*graph.outputs, *backward.gradients.values()])
    seeds = [v for v in whole.inputs if v not in numbers]
    random = np.random.default_rng(5)
    known = run_graph(whole, {**numbers, **{v: random.normal(size=v.type.shape) for v in seeds}})
    return {v: known[g] for v, g in backward.gradients.items()}
