"""Parameter updates: elementwise over the parameter, its gradient and the optimizer's state.

Operands: parameter, gradient, then the state tensors; the results are the updated parameter and state,
written in place. `graph_ir.training` says which state an optimizer keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir import eager_kernels
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.ops.elementwise import broadcast_equation

if TYPE_CHECKING:
    from graph_ir.graph import Node


_BETAS = (0.9, 0.999)


def _optimizer(
    name: str, flops: float, moments: int, evaluate: Callable[..., Any], **extra: Any
) -> OpDef:
    def bytes_read(node: Node) -> int:
        """A parameter with a master copy (one state tensor more) is written, not read."""
        first = 1 if len(node.inputs) == 3 + moments else 0
        return sum(v.type.bytes for v in node.inputs[first:])

    return OpDef(
        name,
        "optimizer",
        broadcast_equation,
        flops=flops,
        engine="vector",
        evaluate=evaluate,
        bytes_read=bytes_read,
        **extra,
    )


def _sgd(node: Node, parameter: Array, gradient: Array, *master: Array) -> tuple[Array, ...]:
    """State: a master copy of narrow parameters, or nothing."""
    updated = (master[0] if master else parameter) - node.attrs.get("lr", 0.01) * gradient
    return (updated.astype(parameter.dtype), *[updated] * len(master))


def _adamw(
    node: Node, parameter: Array, gradient: Array, mean: Array, square: Array, *master: Array
) -> tuple[Array, ...]:
    """State: both moving averages, and a master copy of narrow parameters."""
    attrs = node.attrs
    lr, step, (beta1, beta2) = attrs.get("lr", 1e-3), attrs.get("step", 1), _BETAS
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient**2
    precise = (master[0] if master else parameter) * (1 - lr * attrs.get("weight_decay", 0.01))
    deviation = np.sqrt(square / (1 - beta2**step)) + attrs.get("eps", 1e-8)
    precise = precise - lr * (mean / (1 - beta1**step)) / deviation
    return (precise.astype(parameter.dtype), mean, square, *[precise] * len(master))


register(
    # Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2: two moving averages (3 FLOPs each, one
    # square), two bias corrections, square root, quotient, decay and step.
    _optimizer("adamw", 14, 2, _adamw, eager_kernels=eager_kernels.adamw),
    _optimizer("sgd", 2, 0, _sgd),
)
