"""Elementwise functions that have no record of their own: what they move is known, their formula is not.

Attribute `function`: the name in the model. FLOPs are those of a transcendental function, which no device is
ever bound by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graph_ir.op_def import OpDef, register
from graph_ir.ops.elementwise import broadcast_equation

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]


def _gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """Of every operand: the result's gradient times a slope that the operands decide."""
    grad = grads[0]
    results: list[Value | None] = []
    for i, operand in enumerate(node.inputs):
        if grad is None or not b.needs(operand):
            results.append(None)
            continue
        attrs = {"function": f"{node.attrs['function']} slope {i}"}
        operands = [grad, *dict.fromkeys(node.inputs)]
        (slope,) = b.emit(node, "pointwise", operands, [grad.type], attrs, f"grad{i}")
        results.append(b.sum_to(node, slope, operand.type, f"sum{i}"))
    return results


register(OpDef("pointwise", "elementwise", broadcast_equation, flops=4, gradient=_gradient))
