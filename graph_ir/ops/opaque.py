"""Operators that opbound does not know, admitted on request: only operands' and results' bytes count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graph_ir.op_def import OpDef, register
from graph_ir.ops.gather import _whole

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value


def _gradient(
    b: GradientBuilder, node: Node, grads: Sequence[Value | None]
) -> Sequence[Value | None]:
    """As unknown as the operator: it reads the gradients and all operands."""
    wanted = [v for v in dict.fromkeys(node.inputs) if b.needs(v)]
    given = [g for g in grads if g is not None]
    if not wanted or not given:
        return [None] * len(node.inputs)
    types = [v.type for v in wanted]
    found = dict(
        zip(wanted, b.emit(node, "unknown", [*given, *node.inputs], types, node.attrs), strict=True)
    )
    # An operand that is read twice gets its gradient once.
    return [found.pop(v, None) for v in node.inputs]


register(
    # Attribute `frontend`: the operator's name in the model.
    OpDef("unknown", "opaque", _whole, flops=0, engine="vector", gradient=_gradient),
)
