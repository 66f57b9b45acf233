"""The selective scan of state-space models: one kernel that walks along a sequence with a state on chip.

s[l] = exp(dt[l] A) s[l-1] + dt[l] u[l] B[l] and y[l] = C[l] s[l] for every channel d, with n states
each (Gu and Dao 2023, Mamba, equations 2 and 4, section 3.3.2). Shapes: u and dt [b, d, l], A [d, n],
B and C [b, n, l]. Bias, skip and gate stand beside it as operators of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Equation, bind
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

_OPERANDS = "b d l, b d l, d n, b n l, b n l"
# Per state and step: dt A, its exponential (4), the decay, the input's share and its sum, the product with C.
_FORWARD = 1 + 4 + 1 + 1 + 1 + 2
# The states once more (8); from the last step to the first their gradient (2), that of C (2), of the
# decay (2), of A and dt through it (4), of B, u and dt through the input's share (4), its own decay (1).
_BACKWARD = 8 + 2 + 2 + 2 + 4 + 4 + 1


def _forward(inputs: Sequence[TensorType], outputs: Sequence[TensorType], _: Any) -> Equation:
    text = f"{_OPERANDS} -> b d l, b d n"
    return bind(text, [t.shape for t in inputs], [t.shape for t in outputs], replicated="l")


def _backward(inputs: Sequence[TensorType], outputs: Sequence[TensorType], _: Any) -> Equation:
    text = f"{_OPERANDS}, b d l -> {_OPERANDS}"
    return bind(text, [t.shape for t in inputs], [t.shape for t in outputs], replicated="l")


def _flops(per_state: int) -> Any:
    def flops(node: Node) -> int:
        return node.inputs[0].type.elements * (per_state * node.inputs[2].type.shape[1] + 1)

    return flops


def _states(u: Array, dt: Array, a: Array, b: Array) -> Iterator[tuple[int, Array, Array]]:
    """Step, decay and state [b, d, n] of each step."""
    state = np.zeros((*u.shape[:2], a.shape[1]), u.dtype)
    for step in range(u.shape[2]):
        decay = np.exp(dt[:, :, step, None] * a)
        state = decay * state + (dt * u)[:, :, step, None] * b[:, None, :, step]
        yield step, decay, state


def _scan(node: Node, u: Array, dt: Array, a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    y = np.zeros_like(u)
    state = np.zeros((*u.shape[:2], a.shape[1]), u.dtype)
    for step, _, state in _states(u, dt, a, b):
        y[:, :, step] = (state * c[:, None, :, step]).sum(-1)
    return y, state


def _gradient(
    builder: GradientBuilder, node: Node, grads: Sequence[Value | None]
) -> Sequence[Value | None]:
    """The last state is kept for generation only, so no gradient comes through it."""
    if grads[0] is None:
        return [None] * 5
    operands = [*node.inputs, grads[0]]
    return builder.emit(node, "selective_scan_backward", operands, [v.type for v in node.inputs])


def _scan_backward(
    node: Node, u: Array, dt: Array, a: Array, b: Array, c: Array, dy: Array
) -> tuple[Array, ...]:
    steps = list(_states(u, dt, a, b))
    du, ddt, da, db, dc = (np.zeros_like(x) for x in (u, dt, a, b, c))
    after = np.zeros_like(steps[0][2])
    for step, decay, state in reversed(steps):
        after = after + dy[:, :, step, None] * c[:, None, :, step]
        dc[:, :, step] = (dy[:, :, step, None] * state).sum(1)
        before = steps[step - 1][2] if step else np.zeros_like(state)
        through = after * before * decay
        da += (through * dt[:, :, step, None]).sum(0)
        share = (after * b[:, None, :, step]).sum(-1)
        ddt[:, :, step] = (through * a).sum(-1) + share * u[:, :, step]
        du[:, :, step] = share * dt[:, :, step]
        db[:, :, step] = (after * (dt * u)[:, :, step, None]).sum(1)
        after = after * decay
    return du, ddt, da, db, dc


register(
    OpDef(
        "selective_scan",
        "reduction",
        _forward,
        flops=_flops(_FORWARD),
        engine="vector",
        gradient=_gradient,
        evaluate=_scan,
    ),
    OpDef(
        "selective_scan_backward",
        "reduction",
        _backward,
        flops=_flops(_BACKWARD),
        engine="vector",
        evaluate=_scan_backward,
    ),
)
