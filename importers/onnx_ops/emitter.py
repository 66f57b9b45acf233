"""What translation rules use: operands as graph values, and nodes under the file's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graph_ir.errors import ModelFileError, OpboundError
from graph_ir.graph import GraphBuilder, Value, ValueKind
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_names import module_from_weight
from importers.onnx_values import OnnxNode, OnnxValue

_RECAST = frozenset({DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16})
_SMALL_WEIGHT_BITS = 8

Rule = Callable[["Emitter", OnnxNode], Sequence[Value | None]]
"""Emits one ONNX node as canonical operators; returns a value per result, None for unused ones."""

RULES: dict[tuple[str, str], Rule] = {}
"""(domain, operator) -> rule; filled by the modules of this package."""


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Registers a rule for operators of one domain.

    Raises:
        ValueError: an operator has a rule already.
    """

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            if RULES.setdefault((domain, op_type), function) is not function:
                raise ValueError(f"{domain}::{op_type} has two rules")
        return function

    return register


class Emitter:
    """Builds the operator graph node by node."""

    def __init__(
        self,
        builder: GraphBuilder,
        *,
        dtype: DType | None = None,
        training: bool = False,
        table: Callable[[OnnxValue], Any] = lambda value: None,
    ) -> None:
        self.builder = builder
        self.table = table
        """Tells the elements of a weight that was not read, if anything does."""
        self.dtype = dtype
        """Replaces the ordinary floating-point types, if given."""
        self.training = training
        self._values: dict[OnnxValue, Value] = {}
        self._owner: tuple[OnnxNode | None, str] = (None, "")

    def type_of(self, type_: TensorType) -> TensorType:
        """The type that a tensor of the file has in the graph."""
        if self.dtype is not None and type_.dtype in _RECAST:
            return type_.with_dtype(self.dtype)
        return type_

    def define(self, value: OnnxValue, result: Value) -> None:
        """Says which graph value stands for a tensor of the file."""
        self._values[value] = result

    def add_input(self, value: OnnxValue) -> Value:
        """Adds an input of the model."""
        result = self.builder.add_input(
            value.name, self.type_of(value.type), dim_names=value.dim_names
        )
        self.define(value, result)
        return result

    def operand(self, value: OnnxValue, kind: ValueKind | None = None) -> Value:
        """The graph value of a tensor; weights and constants are added when first used.

        Args:
            value: a tensor of the file.
            kind: what it is, where the operator knows better than its origin tells.

        Raises:
            OpboundError: it is the result of an operator whose rule does not deliver it.
        """
        found = self._values.get(value)
        if found is None:
            if value.origin == "input":
                return self.add_input(value)
            if value.origin == "computed" and value.data is None:
                raise OpboundError(
                    f"{value.name!r} is a side result that the rule of its operator in "
                    "importers/onnx_ops/ leaves out: add it there"
                )
            found = self.builder.add_input(
                value.name,
                self.type_of(value.type),
                kind or _kind_of(value),
                data=self.table(value) if value.data is None else value.data,
            )
            self.define(value, found)
        return found

    def shared(self, value: OnnxValue) -> Value | None:
        """The graph value that stands for a tensor already, or None."""
        return self._values.get(value)

    def ensure(self, value: OnnxValue) -> None:
        """Adds a tensor as an input if nothing here has produced it."""
        if value not in self._values and value.origin == "computed" and value.data is None:
            self.define(value, self.builder.add_input(value.name, self.type_of(value.type)))

    def operands(self, node: OnnxNode) -> list[Value]:
        """All operands that are present."""
        return [self.operand(v) for v in node.inputs if v is not None]

    def at(self, node: OnnxNode, index: int, kind: ValueKind | None = None) -> Value:
        """The operand at `index`.

        Raises:
            ModelFileError: it is absent.
        """
        return self.operand(required(node, index), kind)

    def result_type(self, node: OnnxNode, index: int = 0) -> TensorType:
        """The type of the node's result at `index`.

        Raises:
            ModelFileError: the node has no such result.
        """
        value = node.output(index)
        if value is None:
            raise ModelFileError(f"{node.label} has no result {index}")
        return self.type_of(value.type)

    def emit(
        self,
        node: OnnxNode,
        op: str,
        operands: Sequence[Value],
        type_: TensorType,
        attrs: Mapping[str, Any] | None = None,
        label: str = "",
    ) -> Value:
        """Emits one operator with one result. `label` tells the operators of one node apart."""
        return self.emit_all(node, op, operands, [type_], attrs, label)[0]

    def emit_all(
        self,
        node: OnnxNode,
        op: str,
        operands: Sequence[Value],
        types: Sequence[TensorType],
        attrs: Mapping[str, Any] | None = None,
        label: str = "",
    ) -> tuple[Value, ...]:
        """Emits one operator with any number of results.

        Raises:
            ModelFileError: the types do not fit the operator's equation.
        """
        results = self.builder.emit(
            op,
            operands,
            types,
            attrs,
            name=f"{node.name}.{label}" if label else node.name,
            module=node.module or self._module_of_weights(node),
        )
        if node.count > 1:
            # The same memory serves each time: only the operator repeats.
            self.builder.nodes[-1] = replace(self.builder.nodes[-1], count=node.count)
        try:
            # Later steps need the equation in any case; here an error can still name the file's node.
            _ = self.builder.nodes[-1].equation
        except (ValueError, IndexError, KeyError) as error:
            shapes = ", ".join(str(list(v.type.shape)) for v in operands)
            raise ModelFileError(f"{node.label}: operands {shapes} do not fit ({error})") from error
        return results

    def _module_of_weights(self, node: OnnxNode) -> str:
        """The module that owns the node's first weight, by the weight's name."""
        if self._owner[0] is not node:  # A node of many operands emits many operators.
            weights = (v.name for v in node.inputs if v is not None and v.origin == "weight")
            modules = map(module_from_weight, weights)
            self._owner = (node, next((m for m in modules if m), ""))
        return self._owner[1]

    def reshape(
        self, node: OnnxNode, value: Value, shape: Sequence[int], label: str = "reshape"
    ) -> Value:
        """The same elements with another shape; nothing is copied."""
        target = tuple(shape)
        if value.type.shape == target:
            return value
        return self.emit(
            node, "reshape", [value], value.type.with_shape(target), {"view": True}, label
        )

    def transpose(
        self, node: OnnxNode, value: Value, perm: Sequence[int], label: str = "transpose"
    ) -> Value:
        """Permuted dims: result dim i is operand dim perm[i]."""
        order = tuple(perm)
        if order == tuple(range(len(order))):
            return value
        shape = tuple(value.type.shape[p] for p in order)
        return self.emit(
            node, "transpose", [value], value.type.with_shape(shape), {"perm": order}, label
        )

    def broadcast(
        self,
        node: OnnxNode,
        op: str,
        operands: Sequence[Value],
        label: str = "",
        attrs: Mapping[str, Any] | None = None,
    ) -> Value:
        """An elementwise operator whose result has the broadcast shape of its operands."""
        shape = broadcast_shape(*(v.type.shape for v in operands))
        return self.emit(node, op, operands, operands[0].type.with_shape(shape), attrs, label)

    def scale(self, node: OnnxNode, value: Value, factor: float, label: str = "scale") -> Value:
        """The value times a number; itself if that is 1."""
        if factor == 1:
            return value
        return self.emit(node, "mul", [value], value.type, {"scalar": float(factor)}, label)

    def add_bias(
        self, node: OnnxNode, value: Value, bias: OnnxValue | None, channel: int = -1
    ) -> Value:
        """Adds a bias along one dim, as a fused epilogue of the operator before."""
        if bias is None:
            return value
        vector = self.operand(bias, "parameter" if bias.origin == "weight" else None)
        after = len(value.type.shape) - channel % len(value.type.shape) - 1
        if after and len(vector.type.shape) == 1:
            vector = self.reshape(node, vector, (*vector.type.shape, *[1] * after), "bias_view")
        return self.emit(node, "add", [value, vector], value.type, {"epilogue": True}, "bias")


def required(node: OnnxNode, index: int) -> OnnxValue:
    """The node's operand at `index`.

    Raises:
        ModelFileError: it is absent.
    """
    value = node.input(index)
    if value is None:
        raise ModelFileError(f"{node.label} lacks its operand {index}")
    return value


def broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The right-aligned broadcast of shapes.

    Raises:
        ModelFileError: they do not fit each other.
    """
    rank = max(len(s) for s in shapes)
    result = []
    for i in range(rank):
        sizes = {s[i - rank + len(s)] for s in shapes if i - rank + len(s) >= 0}
        wide = sizes - {1}
        if len(wide) > 1:
            raise ModelFileError(f"shapes {', '.join(str(list(s)) for s in shapes)} do not fit")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def known_number(value: OnnxValue | None) -> float | None:
    """The content of a one-element tensor, if it is known."""
    if value is None or value.data is None or value.data.size != 1:
        return None
    if value.data.dtype.kind not in "biuf":
        return None
    number = value.data.reshape(-1)[0].item()
    return number if isinstance(number, bool) else float(number)


def known_ints(value: OnnxValue | None) -> tuple[int, ...] | None:
    """The content of an integer tensor, if it is known."""
    if value is None or value.data is None:
        return None
    return tuple(int(n) for n in value.data.reshape(-1))


def _kind_of(value: OnnxValue) -> ValueKind:
    if value.origin != "weight" or value.type.elements <= 1:
        return "constant"
    if value.dtype.is_float or value.dtype.bits <= _SMALL_WEIGHT_BITS:
        return "buffer" if value.dtype.kind == "bool" else "parameter"
    return "buffer"
