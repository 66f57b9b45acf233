"""One sample of an operator: small inputs, and the torch function that computes the same.

Dims of one sample have different sizes, so that a rule that mixes them up cannot pass by chance, and numbers
are random, so that a term that is left out shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graph_ir.graph import GraphBuilder, Node
from graph_ir.tensor_type import DType, TensorType

Array = NDArray[Any]
_RANDOM = np.random.default_rng(7)


@dataclass(frozen=True, eq=False)
class Sample:
    op: str
    arrays: tuple[Array, ...]
    results: tuple[TensorType, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    torch: Callable[..., Any] | None = None
    """(*tensors) -> tensor or tuple: the results that gradients flow into, first ones first."""
    label: str = ""
    differentiable: tuple[int, ...] | None = None
    """Operands whose gradients are compared; None: all floats."""

    def __str__(self) -> str:
        return f"{self.op}{'-' if self.label else ''}{self.label}"

    def node(self) -> tuple[GraphBuilder, Node]:
        builder = GraphBuilder(str(self))
        operands = [
            builder.add_input(f"x{i}", type_of(array), "parameter" if i else "input")
            for i, array in enumerate(self.arrays)
        ]
        builder.emit(self.op, operands, self.results, self.attrs)
        return builder, builder.nodes[-1]


def type_of(array: Array) -> TensorType:
    return TensorType(array.shape, DType.parse(array.dtype.name))


def normal(*shape: int, low: float | None = None, high: float = 1.0) -> Array:
    """Random numbers: normal, or uniform in low..high."""
    if low is None:
        return _RANDOM.normal(size=shape)
    return _RANDOM.uniform(low, high, size=shape)


def index(limit: int, *shape: int) -> Array:
    return _RANDOM.integers(0, limit, size=shape)


def boolean(*shape: int) -> Array:
    return _RANDOM.random(size=shape) < 0.6


def sample(
    op: str,
    arrays: Sequence[Array],
    shape: Sequence[int] | Sequence[Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    torch: Callable[..., Any] | None = None,
    *,
    label: str = "",
    dtype: str = "float64",
    grads: Sequence[int] | None = None,
) -> Sample:
    """`shape` is the result's, or a list of (shape, dtype); None: the first operand's."""
    if isinstance(shape, list):
        results = tuple(TensorType(tuple(s), DType.parse(d)) for s, d in shape)
    else:
        own = tuple(shape) if shape is not None else arrays[0].shape
        results = (TensorType(own, DType.parse(dtype)),)
    differentiable = tuple(grads) if grads is not None else None
    return Sample(op, tuple(arrays), results, attrs or {}, torch, label, differentiable)
