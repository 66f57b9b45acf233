"""One aten call, as the rules see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graph_ir.graph import Value
from graph_ir.op_def import op_def
from graph_ir.tensor_type import DType, TensorType

if TYPE_CHECKING:
    from importers.torch_convert import Converter


@dataclass(frozen=True, slots=True)
class InputHint:
    """What the dims of a tensor argument mean, and its role in memory."""

    dims: tuple[str | None, ...]
    role: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A tensor that depends on no input of the model; it becomes a graph value when something reads it."""

    type: TensorType
    content: Any = field(default=None, repr=False)
    """The tensor (on the CPU) or numpy array, if it is small."""
    recipe: Callable[[], Any] | None = field(default=None, repr=False)
    """Computes a larger content anew; gives None if it cannot be computed."""


@dataclass(slots=True)
class Settings:
    """What the conversion is to produce."""

    training: bool = False
    allow_unknown: bool = False
    dtypes: Mapping[DType, DType] = field(default_factory=dict)
    """Float dtypes of the trace that stand for others in the graph."""


class Call:
    """One aten call: its arguments by their schema's names, fx nodes replaced by what they stand for."""

    def __init__(self, converter: Converter, node: Any, args: Mapping[str, Any]) -> None:
        self.converter = converter
        self.node = node
        self.args = args
        self.types = converter.types_of(node)

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    @property
    def type(self) -> TensorType:
        """Type of the first result."""
        return self.types[0]

    @property
    def training(self) -> bool:
        """Whether the graph is imported for training."""
        return self.converter.settings.training

    def value(self, name: str) -> Value:
        """A tensor argument."""
        return self.converter.materialize(self.args[name], self.node)

    def values(self, names: Iterable[str]) -> list[Value]:
        """Those of the named arguments that are tensors."""
        found = (self.args.get(name) for name in names)
        return [self.converter.materialize(v, self.node) for v in found if is_tensor(v)]

    def sequence(self, name: str) -> list[Value]:
        """A list of tensors."""
        return [self.converter.materialize(v, self.node) for v in self.args[name]]

    def constant(self, array: Any, dtype: DType) -> Value:
        """A constant with the content of a numpy array."""
        return self.converter.materialize(
            Constant(TensorType(array.shape, dtype), array), self.node
        )

    def number(self, number: float, dtype: DType) -> Value:
        """A constant of rank 0."""
        import numpy as np

        return self.constant(np.asarray(number), dtype)

    def axis(self, name: str, rank: int | None = None, default: int = -1) -> int:
        """A dim argument, made non-negative."""
        given = self.args.get(name)
        size = rank if rank is not None else len(self.value("self").type.shape)
        return int(default if given is None else given) % max(size, 1)

    def layout(self, name: str = "self") -> Any:
        """The meta tensor behind a tensor argument: its strides tell views from copies."""
        return self.converter.layout(self.argument_node(name))

    def argument_node(self, name: str) -> Any:
        """The fx node that was passed as an argument."""
        return self.converter.argument_nodes(self.node)[name]

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        types: Sequence[TensorType] | None = None,
        attrs: Mapping[str, Any] | None = None,
        suffix: str = "",
    ) -> tuple[Value, ...]:
        """Adds a node; `suffix` tells several nodes of one call apart."""
        names = self.converter.names
        return self.converter.builder.emit(
            op,
            inputs,
            self.types if types is None else types,
            attrs,
            name=names.node_name(self.node, op_def(op), op, suffix),
            module=names.module(self.node),
            role=self.converter.roles.get(self.node, ""),
        )

    def one(self, op: str, inputs: Sequence[Value], **attrs: Any) -> Value:
        """Adds a node with this call's result type and returns its only result."""
        return self.emit(op, inputs, [self.type], attrs)[0]


def is_tensor(value: Any) -> bool:
    """Whether an argument stands for a tensor."""
    return isinstance(value, Value | Constant)


def flat(values: Iterable[Any]) -> list[Any]:
    """All leaves of nested lists."""
    found: list[Any] = []
    for value in values:
        found.extend(flat(value) if isinstance(value, list | tuple) else [value])
    return found
