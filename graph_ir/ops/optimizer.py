"""Parameter updates: elementwise over the parameter, its gradient and the optimizer's state.

Operands: parameter, gradient, then the state tensors; the results are the updated parameter and state,
written in place. `graph_ir.training` says which state an optimizer keeps.
"""

from __future__ import annotations

from typing import Any

from graph_ir.op_def import OpDef, register
from graph_ir.ops.elementwise import broadcast_equation


def _optimizer(name: str, flops: float) -> OpDef:
    return OpDef(name, "optimizer", broadcast_equation, flops=flops, engine="vector")


def _sgd(node: Any, parameter: Any, gradient: Any, *state: Any) -> tuple[Any, ...]:
    return (parameter - node.attrs.get("lr", 0.01) * gradient, *state)


register(
    # Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2: two moving averages (3 FLOPs each, one
    # square), two bias corrections, square root, quotient, decay and step.
    _optimizer("adamw", 14),
    OpDef("sgd", "optimizer", broadcast_equation, flops=2, engine="vector", evaluate=_sgd),
)
