"""Result types of one ONNX node, from whatever tells them: a rule, onnx, the file, the user.

Where a batch that is fixed in the file is replaced, types are settled twice, for the file's batch and for
the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graph_ir.errors import ModelFileError, OpboundError
from graph_ir.tensor_type import TensorType
from importers import onnx_infer
from importers.onnx_complete import complete_type
from importers.onnx_constants import operand
from importers.onnx_rebatch import (
    at_file_batch,
    file_types,
    is_batched,
    rescaled,
    seen_in_file,
    widened_operands,
    widening,
)
from importers.onnx_values import OnnxNode, checked_shape

if TYPE_CHECKING:
    from onnx import NodeProto

    from importers.onnx_dims import DimBinder
    from importers.onnx_scope import Scope

TypeRule = Callable[[OnnxNode], Sequence[TensorType | None]]
"""Result types of an operator that onnx has no schema for; [None] if they depend on data."""

Types = list[TensorType | None]


@dataclass
class Settled:
    """What is known of a node's results."""

    types: Types | None
    """None if not even the first result's rank is known."""
    in_file: Types
    """Types with the file's batch, where they differ."""
    before: list[OnnxNode] = field(default_factory=list)
    """Operators that must come first."""


class Settler:
    """Settles the types of one node after the other."""

    def __init__(self, binder: DimBinder, type_rules: Mapping[tuple[str, str], TypeRule]) -> None:
        self.binder = binder
        self.type_rules = type_rules
        self.notes: dict[str, None] = {}
        self._inference = onnx_infer.TypeInference()

    def settle(self, node: NodeProto, resolved: OnnxNode, scope: Scope) -> Settled:
        """Result types, and those that they have with a batch fixed in the file and replaced here.

        Raises:
            ModelFileError: the operands do not fit the operator, or the batch cannot be replaced.
            DimensionError: a dim is unknown.
        """
        none: Types = [None] * len(node.output)
        if self.binder.static_batch is None or not is_batched(resolved):
            return Settled(self.types(node, resolved, scope), none)
        try:
            in_file = self.types(node, at_file_batch(resolved), scope)
        except OpboundError:
            # Contents that were computed from shapes already have the new batch.
            in_file = None
        if in_file is not None and in_file[0] is not None and not resolved.domain:
            types = self._retargeted(node, resolved, scope, in_file[0])
            if types is not None:
                return Settled(types, file_types(types, in_file))
        before: list[OnnxNode] = []
        found = self._with_batch(node, resolved, scope, before)
        if found is None:
            return Settled(None, none)
        if in_file is None:
            in_file = seen_in_file(resolved, found, self.binder.static_batch[1])
        return Settled(found, file_types(found, in_file), before)

    def _retargeted(
        self, node: NodeProto, resolved: OnnxNode, scope: Scope, in_file: TensorType
    ) -> Types | None:
        """The result of a Reshape or Expand whose target was meant for the file's batch, or None."""
        first, target = resolved.input(0), resolved.input(1)
        if first is None or resolved.op_type not in ("Reshape", "Expand"):
            return None
        if target is not None and target.origin != "weight":
            # Computed from shapes, at least in part: if it fits as it is, it is right.
            try:
                return self.types(node, resolved, scope)
            except OpboundError:
                pass
        fixed, _ = self.binder.static_batch or (1, 1)
        is_reshape = resolved.op_type == "Reshape"
        shape = rescaled(first, in_file.shape, fixed, reshape=is_reshape)
        if shape is None:
            raise ModelFileError(f"{resolved.label}: {self._fixed_batch()}")
        return [in_file.with_shape(shape)]

    def _with_batch(
        self, node: NodeProto, resolved: OnnxNode, scope: Scope, before: list[OnnxNode]
    ) -> Types | None:
        """Result types with the new batch; a constant that was made for the old one is widened."""
        try:
            return self.types(node, resolved, scope)
        except ModelFileError as error:
            failure = error
        fixed, batch = self.binder.static_batch or (1, 1)
        for trial, value, wide in widened_operands(resolved, fixed, batch):
            try:
                types = self.types(node, trial, scope)
            except ModelFileError:
                continue
            before.append(widening(resolved, value, wide, fixed))
            resolved.inputs = trial.inputs
            return types
        raise ModelFileError(f"{failure}; {self._fixed_batch()}")

    def _fixed_batch(self) -> str:
        fixed, _ = self.binder.static_batch or (1, 1)
        return (
            f"the batch of {fixed} is fixed inside the file: leave --batch away, or export the model "
            "with a dynamic batch"
        )

    def types(self, node: NodeProto, resolved: OnnxNode, scope: Scope) -> Types | None:
        """Result types of a node, None where not even their rank can be told."""
        rule = self.type_rules.get((resolved.domain, resolved.op_type))
        if rule is not None:
            types = [*rule(resolved), *[None] * len(node.output)][: len(node.output)]
            if types and types[0] is not None:
                return types
        reshaped = self._reshaped(resolved)
        if reshaped is not None:
            return [reshaped]
        schema = onnx_infer.schema_of(resolved.domain, resolved.op_type, resolved.version)
        inferred: Sequence[onnx_infer.PartialType | None] = [None] * len(node.output)
        if schema is not None:
            inferred = self._inference.types(node, schema, resolved.inputs, scope.opsets)
        types: Types = []  # type: ignore[no-redef]
        for index, name in enumerate(node.output):
            declared = scope.declared.get(name)
            if not name:
                types.append(None)
                continue
            type_ = complete_type(
                node, index, inferred[index], declared, resolved.inputs, self.binder, self.notes
            )
            if type_ is None and index == 0:
                return None
            types.append(type_)
        return types

    def _reshaped(self, resolved: OnnxNode) -> TensorType | None:
        """The result of a Reshape to a known shape; None for every other node."""
        if resolved.op_type != "Reshape" or resolved.domain or resolved.input(0) is None:
            return None
        target = resolved.attributes.get("shape")
        shape = resolved.input(1)
        if shape is not None and shape.data is not None:
            target = shape.data.tolist()
        if target is None:
            return None
        type_ = operand(resolved).type
        new = onnx_infer.reshape_target(
            type_.shape,
            target,
            allow_zero=bool(resolved.attributes.get("allowzero", 0)),
            where=resolved.label,
        )
        return type_.with_shape(checked_shape(list(new), resolved.label))
