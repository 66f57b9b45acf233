"""Operator records: everything the program knows of an operator, in one place.

A record gives the equation; FLOPs, bytes, gradients and shardings follow from it unless the record says
otherwise. Records live in `graph_ir/ops/*.py`; adding an operator means adding one record there.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from graph_ir.equation import Equation, bind
from graph_ir.errors import UnknownOperatorError, did_you_mean
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Kind = Literal[
    "contraction",
    "attention",
    "elementwise",
    "reduction",
    "normalization",
    "data_movement",
    "gather",
    "routing",
    "collective",
    "optimizer",
    "opaque",
]
Engine = Literal["matrix", "vector", "copy", "network", "none"]

EquationRule = Callable[[Sequence[TensorType], Sequence[TensorType], Mapping[str, Any]], Equation]
GradientRule = Callable[
    ["GradientBuilder", "Node", "Sequence[Value | None]"], "Sequence[Value | None]"
]
"""(builder, node, gradient of each result or None) -> gradient of each operand or None."""
DecomposeRule = Callable[[Any, "Node"], "tuple[Value, ...]"]
"""(builder, node) -> results."""


@dataclass(frozen=True)
class OpDef:
    """One operator."""

    name: str
    kind: Kind
    equation: str | EquationRule
    """The equation's text, or a function of the types and attributes."""
    replicated: frozenset[str] = frozenset()
    """For a textual equation: names that need replication."""
    reduction: str | None = "sum"
    """For a textual equation: how contracted terms combine across devices."""
    flops: float | Callable[[Node], int] | None = None
    """FLOPs per element of the largest operand or result, or a function; None: the equation's own."""
    engine: Engine | None = None
    """The engine that runs it; None: the matrix engine for matrix products, else the vector engine."""
    gradient: GradientRule | None = None
    """How gradients flow back; None: no gradient flows through."""
    evaluate: Callable[..., Any] | None = None
    """(node, *arrays) -> array or tuple: what it computes, in numpy; the proof of the equation."""
    linear: Literal["jointly", "each", "first", None] = None
    """Whether partial sums pass through: 'jointly' (all operands partial: add, reshape), 'each' (one
    operand partial, the others whole: products), 'first' (only the first operand: a quotient)."""
    bytes_read: Callable[[Node], int] | None = None
    bytes_written: Callable[[Node], int] | None = None
    view_of: int | None = None
    """Index of the operand that the result aliases when the node's attribute `view` is set."""
    in_place: int | None = None
    """Index of the operand whose memory the result takes over: a write into a buffer (a KV cache)."""
    decompose: DecomposeRule | None = None
    """The same in simpler operators, used to split a name that the fused form needs whole."""
    decompose_norm: DecomposeRule | None = None
    """The same for a norm, whose exchange in every layer is worth it only where all widths are split."""
    executed_fraction: Callable[[Node], float] | None = None
    """Share of `flops` that hardware really executes (a causal mask halves attention)."""
    eager_kernels: Callable[[Node], Sequence[tuple[int, int]]] | None = None
    """(bytes read, bytes written) of each kernel where an eager framework runs several
    (`graph_ir.eager_kernels`); None: one that moves its operands and results once."""
    localize: Callable[[Node, str, int, int], Mapping[str, Any]] | None = None
    """(node, name, start, stop) -> attributes that differ on the device that holds `start:stop` of a
    name: a mean's divisor stays that of the whole, a table's first row moves."""

    def equation_of(
        self,
        inputs: Sequence[TensorType],
        outputs: Sequence[TensorType],
        attrs: Mapping[str, Any],
    ) -> Equation:
        """The equation for tensors of these types."""
        if callable(self.equation):
            return self.equation(inputs, outputs, attrs)
        return bind(
            self.equation,
            [t.shape for t in inputs],
            [t.shape for t in outputs],
            replicated=self.replicated,
            reduction=self.reduction,
        )

    def linear_of(self, node: Node) -> Literal["jointly", "each", "first", None]:
        """`linear` of this node: adding a number, dividing one, or rounding to integers is not linear."""
        if self.name == "cast" and not node.outputs[0].type.dtype.is_float:
            return None
        if "scalar" in node.attrs and (self.linear == "jointly" or node.attrs.get("scalar_first")):
            return self.linear if self.linear == "each" else None
        return self.linear

    def is_view(self, node: Node) -> bool:
        """Whether the node only reinterprets its operand: no kernel, no bytes, no memory."""
        return self.view_of is not None and bool(node.attrs.get("view"))

    def engine_of(self, node: Node) -> Engine:
        """The kind of engine that runs this node."""
        if self.is_view(node):
            return "none"
        if self.engine is not None:
            return self.engine
        if not node.equation.is_matrix_product:
            return "vector"
        # Many products of a matrix with a vector (a depthwise convolution): no operand is used twice
        # within one of them, so libraries run them on vector units.
        gemm = node.equation.gemm
        alone = gemm is not None and gemm.batch > 1 and min(gemm.m, gemm.n) == 1
        return "vector" if alone else "matrix"

    def flops_of(self, node: Node) -> int:
        """FLOPs of one application."""
        if self.flops is None:
            equation = node.equation
            # A product whose contracted dims all have size 1 still multiplies and adds.
            product = self.kind == "contraction" and len(equation.inputs) > 1
            return (
                equation.elements * len(equation.inputs) if product else equation.multiply_add_flops
            )
        if callable(self.flops):
            return self.flops(node)
        largest = max(v.type.elements for v in (*node.inputs, *node.outputs))
        return round(self.flops * largest)

    def bytes_read_of(self, node: Node) -> int:
        """Bytes read if every operand is read once."""
        if self.is_view(node):
            return 0
        if self.bytes_read is not None:
            return self.bytes_read(node)
        return sum(v.type.bytes for v in dict.fromkeys(node.inputs))

    def bytes_written_of(self, node: Node) -> int:
        """Bytes written if every result is written once."""
        if self.is_view(node):
            return 0
        if self.bytes_written is not None:
            return self.bytes_written(node)
        return sum(v.type.bytes for v in node.outputs)


_REGISTRY: dict[str, OpDef] = {}


def register(*definitions: OpDef) -> None:
    """Adds records. A name that is taken is an error.

    Raises:
        ValueError: if an operator of that name exists.
    """
    for definition in definitions:
        if definition.name in _REGISTRY:
            raise ValueError(f"operator {definition.name!r} is registered twice")
        _REGISTRY[definition.name] = definition


@lru_cache(maxsize=1)
def _load_ops() -> None:
    import graph_ir.ops as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def all_ops() -> Mapping[str, OpDef]:
    """All records by name."""
    _load_ops()
    return _REGISTRY


def op_def(name: str) -> OpDef:
    """The record of an operator.

    Raises:
        UnknownOperatorError: if there is none.
    """
    found = _REGISTRY.get(name) or all_ops().get(name)
    if found is None:
        raise UnknownOperatorError(
            f"operator {name!r} has no record in graph_ir/ops; {did_you_mean(name, _REGISTRY)}"
        )
    return found
