"""Element by element: unary functions, broadcast binary functions, casts, copies, dropout.

FLOPs per element count each arithmetic operation as 1 and each transcendental function as 4, the size of
its usual polynomial after range reduction; nothing is ever bound by this number on a real device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir import eager_kernels
from graph_ir.equation import Equation, bind
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import DType, TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]


def broadcast_equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    """`..., ... -> ...`: right-aligned broadcasting for any number of operands and results."""
    text = f"{', '.join(['...'] * len(inputs))} -> {', '.join(['...'] * len(outputs))}"
    return bind(text, [t.shape for t in inputs], [t.shape for t in outputs], reduction=None)


# --- unary ------------------------------------------------------------------------------------------

Function = Callable[..., Any]


def _erf(x: Array) -> Array:
    from math import erf

    return np.asarray(np.vectorize(erf, otypes=[float])(x))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _tanh_softplus(x: Array) -> Array:
    return np.asarray(np.tanh(np.log1p(np.exp(x))))


def _normal_density(x: Array) -> Array:
    return np.asarray(np.exp(-x * x / 2) / np.sqrt(2 * np.pi))


def _tanh_gelu_inner(x: Array) -> Array:
    return np.asarray(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


def _tanh_gelu_slope(x: Array) -> Array:
    t = np.tanh(_tanh_gelu_inner(x))
    inner_slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x * x)
    return np.asarray(0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner_slope)


# Scale and alpha that keep zero mean and unit variance (Klambauer et al. 2017, arXiv 1706.02515).
_SELU = (1.0507009873554804934193349852946, 1.6732632423543772848170429916717)

# name: (FLOPs forward, what the backward pass saves, FLOPs backward, function, slope(saved))
_UNARY: dict[str, tuple[int, str, int, Function, Function]] = {
    "neg": (1, "none", 1, np.negative, lambda: -1.0),
    "abs": (1, "operand", 2, np.abs, np.sign),
    "relu": (1, "result", 1, lambda x: np.maximum(x, 0), lambda y: (y > 0).astype(float)),
    "leaky_relu": (2, "operand", 2, lambda x, alpha=0.01: np.where(x > 0, x, alpha * x),
                   lambda x, alpha=0.01: np.where(x > 0, 1, alpha)),
    "elu": (6, "operand", 6, lambda x, alpha=1: np.where(x > 0, x, alpha * np.expm1(x)),
            lambda x, alpha=1: np.where(x > 0, 1, alpha * np.exp(x))),
    "selu": (6, "operand", 6, lambda x: _SELU[0] * np.where(x > 0, x, _SELU[1] * np.expm1(x)),
             lambda x: _SELU[0] * np.where(x > 0, 1, _SELU[1] * np.exp(x))),
    "softplus": (8, "operand", 5, lambda x: np.log1p(np.exp(x)), _sigmoid),
    "exp": (4, "result", 1, np.exp, lambda y: y),
    "log": (4, "operand", 1, np.log, lambda x: 1 / x),
    "log1p": (4, "operand", 2, np.log1p, lambda x: 1 / (1 + x)),
    "expm1": (4, "result", 2, np.expm1, lambda y: y + 1),
    "sqrt": (1, "result", 2, np.sqrt, lambda y: 0.5 / y),
    "rsqrt": (2, "result", 4, lambda x: 1 / np.sqrt(x), lambda y: -0.5 * y**3),
    "reciprocal": (1, "result", 3, np.reciprocal, lambda y: -y * y),
    "sin": (4, "operand", 5, np.sin, np.cos),
    "cos": (4, "operand", 6, np.cos, lambda x: -np.sin(x)),
    "tan": (4, "operand", 6, np.tan, lambda x: 1 / np.cos(x) ** 2),
    "asin": (4, "operand", 4, np.arcsin, lambda x: 1 / np.sqrt(1 - x * x)),
    "acos": (4, "operand", 5, np.arccos, lambda x: -1 / np.sqrt(1 - x * x)),
    "atan": (4, "operand", 3, np.arctan, lambda x: 1 / (1 + x * x)),
    "sinh": (4, "operand", 5, np.sinh, np.cosh),
    "cosh": (4, "operand", 5, np.cosh, np.sinh),
    "asinh": (4, "operand", 4, np.arcsinh, lambda x: 1 / np.sqrt(1 + x * x)),
    "acosh": (4, "operand", 4, np.arccosh, lambda x: 1 / np.sqrt(x * x - 1)),
    "atanh": (4, "operand", 3, np.arctanh, lambda x: 1 / (1 - x * x)),
    "tanh": (4, "result", 3, np.tanh, lambda y: 1 - y * y),
    "sigmoid": (6, "result", 3, _sigmoid, lambda y: y * (1 - y)),
    "hardsigmoid": (4, "operand", 2, lambda x: np.clip(x / 6 + 0.5, 0, 1),
                    lambda x: np.where(np.abs(x) < 3, 1 / 6, 0)),
    "hardswish": (5, "operand", 5, lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
                  lambda x: np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5))),
    "silu": (7, "operand", 11, lambda x, alpha=1: x * _sigmoid(alpha * x),
             lambda x, alpha=1: _sigmoid(alpha * x) * (1 + alpha * x * (1 - _sigmoid(alpha * x)))),
    "mish": (14, "operand", 20, lambda x: x * _tanh_softplus(x),
             lambda x: _tanh_softplus(x) + x * _sigmoid(x) * (1 - _tanh_softplus(x) ** 2)),
    "gelu": (8, "operand", 14, lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2))),
             lambda x: 0.5 * (1 + _erf(x / np.sqrt(2))) + x * _normal_density(x)),
    "gelu_tanh": (11, "operand", 20, lambda x: 0.5 * x * (1 + np.tanh(_tanh_gelu_inner(x))),
                  _tanh_gelu_slope),
    "erf": (4, "operand", 7, _erf, lambda x: 2 / np.sqrt(np.pi) * np.exp(-x * x)),
    "softsign": (3, "operand", 4, lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2),
}  # fmt: skip
# Their result's type never carries a gradient, or their slope is zero almost everywhere.
_FLAT: dict[str, Function] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "sign": np.sign,
    "logical_not": np.logical_not,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "bitwise_not": np.invert,
}


def _alpha(node: Node) -> dict[str, float]:
    """Attribute `alpha`: the slope below zero of leaky ReLU and ELU, the steepness of SiLU."""
    return {"alpha": node.attrs["alpha"]} if "alpha" in node.attrs else {}


def _unary(name: str) -> tuple[OpDef, OpDef]:
    flops, saves, backward_flops, function, slope = _UNARY[name]

    def gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
        (grad,) = grads
        if grad is None:
            return [None]
        saved = {"operand": [node.inputs[0]], "result": [node.outputs[0]], "none": []}[saves]
        attrs = {k: v for k, v in node.attrs.items() if k != "equation"}
        return b.emit(node, f"{name}_backward", [grad, *saved], [node.inputs[0].type], attrs)

    forward = OpDef(
        name,
        "elementwise",
        broadcast_equation,
        flops=flops,
        gradient=gradient,
        evaluate=lambda node, x: function(x, **_alpha(node)),
        linear="jointly" if name == "neg" else None,
    )
    backward = OpDef(
        f"{name}_backward",
        "elementwise",
        broadcast_equation,
        flops=backward_flops,
        evaluate=lambda node, dy, *saved: dy * slope(*saved, **_alpha(node)),
        linear="jointly" if name == "neg" else None,
    )
    return forward, backward


# --- binary: two operands, or one operand and the attribute `scalar` -----------------------------------


def _operands(node: Node, arrays: tuple[Array, ...]) -> tuple[Any, Any]:
    """Both operands; the attribute `scalar` stands for the second one (or the first: `scalar_first`)."""
    if len(arrays) == 2:
        return arrays[0], arrays[1]
    scalar = node.attrs["scalar"]
    return (scalar, arrays[0]) if node.attrs.get("scalar_first") else (arrays[0], scalar)


def _binary(function: Function) -> Callable[..., Any]:
    return lambda node, *arrays: function(*_operands(node, arrays))


def _sum_gradient(signs: tuple[int, int]) -> Callable[..., Grads]:
    def gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
        (grad,) = grads
        results: list[Value | None] = []
        for i, operand in enumerate(node.inputs):
            if grad is None or not b.needs(operand):
                results.append(None)
                continue
            value = grad
            sign = signs[1 if node.attrs.get("scalar_first") else i]
            if sign < 0:
                value = b.emit(node, "neg", [grad], [grad.type], label="neg")[0]
            results.append(b.sum_to(node, value, operand.type))
        return results

    return gradient


def _mul_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    results: list[Value | None] = []
    for i, operand in enumerate(node.inputs):
        if grad is None or not b.needs(operand):
            results.append(None)
            continue
        others = [v for j, v in enumerate(node.inputs) if j != i]
        attrs = {k: v for k, v in node.attrs.items() if k == "scalar"}
        (value,) = b.emit(node, "mul", [grad, *others], [grad.type], attrs, f"grad{i}")
        results.append(b.sum_to(node, value, operand.type, f"sum{i}"))
    return results


def _div_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    if grad is None:
        return [None] * len(node.inputs)
    attrs = {k: v for k, v in node.attrs.items() if k.startswith("scalar")}
    if len(node.inputs) == 1:
        if attrs.get("scalar_first"):
            operands = [grad, *node.inputs]
            return b.emit(node, "div_backward_denominator", operands, [grad.type], attrs)
        return b.emit(node, "div", [grad], [grad.type], attrs, "grad")
    results: list[Value | None] = [None, None]
    numerator, denominator = node.inputs
    if b.needs(numerator):
        (value,) = b.emit(node, "div", [grad, denominator], [grad.type], attrs, "grad0")
        results[0] = b.sum_to(node, value, numerator.type, "sum0")
    if b.needs(denominator):
        operands = [grad, denominator, node.outputs[0]]
        (value,) = b.emit(node, "div_backward_denominator", operands, [grad.type], attrs, "grad1")
        results[1] = b.sum_to(node, value, denominator.type, "sum1")
    return results


def _remainder_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """The remainder is a - b floor(a / b): the gradient itself, and minus the quotient times it."""
    (grad,) = grads
    results: list[Value | None] = [None] * len(node.inputs)
    if grad is None or node.attrs.get("scalar_first"):
        return results
    if b.needs(node.inputs[0]):
        results[0] = b.sum_to(node, grad, node.inputs[0].type, "sum0")
    if len(node.inputs) == 2 and b.needs(node.inputs[1]):
        (whole,) = b.emit(node, "floor_divide", node.inputs, [grad.type], label="quotient")
        (value,) = b.emit(node, "mul", [grad, whole], [grad.type], label="grad1")
        (value,) = b.emit(node, "neg", [value], [grad.type], label="neg")
        results[1] = b.sum_to(node, value, node.inputs[1].type, "sum1")
    return results


def _div_denominator(
    node: Node, dy: Array, denominator: Array, result: Array | None = None
) -> Array:
    """d(a/b)/db = -(a/b)/b."""
    quotient = node.attrs["scalar"] / denominator if result is None else result
    return np.asarray(-dy * quotient / denominator)


def _pow_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    if grad is None or len(node.inputs) == 2 or node.attrs.get("scalar_first"):
        return _chosen_gradient(b, node, grads)
    attrs = {"scalar": node.attrs["scalar"]}
    return b.emit(node, "pow_backward", [grad, node.inputs[0]], [node.inputs[0].type], attrs)


def _chosen_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """For functions whose gradient reads every operand and, per operand, is one elementwise kernel."""
    (grad,) = grads
    results: list[Value | None] = []
    for i, operand in enumerate(node.inputs):
        flat = node.op == "where" and i == 0
        if grad is None or flat or not b.needs(operand):
            results.append(None)
            continue
        attrs = {**node.attrs, "of": node.op, "operand": i}
        # What `where` picked, its condition alone tells: nothing else is saved.
        operands = [grad, *node.inputs[: 1 if node.op == "where" else None]]
        (value,) = b.emit(node, "select_backward", operands, [grad.type], attrs, f"grad{i}")
        results.append(b.sum_to(node, value, operand.type, f"sum{i}"))
    return results


def _select_backward(node: Node, dy: Array, *operands: Array) -> Array:
    """Gradients of where, maximum, minimum and clamp: dy where the operand was chosen, else 0."""
    of, i = node.attrs["of"], node.attrs["operand"]
    if of == "where":
        chosen = operands[0] if i == 1 else ~operands[0].astype(bool)
    elif of in ("maximum", "minimum"):
        a, b = _operands(node, operands)
        first = a >= b if of == "maximum" else a <= b
        chosen = first if (i == 0) != bool(node.attrs.get("scalar_first")) else ~first
    elif of == "clamp":
        low, high = node.attrs.get("min"), node.attrs.get("max")
        x = operands[0]
        chosen = (x >= (-np.inf if low is None else low)) & (
            x <= (np.inf if high is None else high)
        )
    else:
        base, exponent = _operands(node, operands)
        of_base = (i == 0) != bool(node.attrs.get("scalar_first"))
        slope = exponent * base ** (exponent - 1) if of_base else np.log(base) * base**exponent
        return np.asarray(dy * slope)
    return np.where(chosen, dy, 0.0)


_COMPARE: dict[str, Function] = {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "bit_shift_left": np.left_shift,
    "bit_shift_right": np.right_shift,
    "floor_divide": np.floor_divide,
}


def _elementwise(name: str, flops: float, evaluate: Callable[..., Any], **extra: Any) -> OpDef:
    return OpDef(name, "elementwise", broadcast_equation, flops=flops, evaluate=evaluate, **extra)


# --- casts, copies, dropout -----------------------------------------------------------------------------


def _pass_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    return [grads[0], *[None] * (len(node.inputs) - 1)]


def _cast_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    (grad,) = grads
    if grad is None:
        return [None]
    return b.emit(node, "cast", [grad], [node.inputs[0].type], label="grad")


def numpy_dtype(dtype: DType) -> Any:
    """The numpy dtype that stands for `dtype` in evaluation (floats that numpy lacks become float32)."""
    try:
        found = np.dtype(dtype.label)
    except TypeError:
        found = None
    # Other packages (ml_dtypes) teach numpy more names; results must not depend on who was imported.
    if found is None or found.isbuiltin != 1:
        return np.dtype(np.float32 if dtype.is_float else np.int8)
    return found


def _fill(node: Node) -> Array:
    type_ = node.outputs[0].type
    dtype = numpy_dtype(type_.dtype)
    if "start" in node.attrs:
        return np.asarray(node.attrs["start"] + node.attrs["step"] * np.arange(*type_.shape), dtype)
    return np.full(type_.shape, node.attrs.get("value", 0), dtype)


def _dropout(node: Node, x: Array) -> tuple[Array, Array]:
    """Keeps everything: numbers are compared with p = 0."""
    return x.copy(), np.ones(x.shape, dtype=bool)


def _dropout_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None]
    operands = [grads[0], node.outputs[1]]
    return b.emit(node, "dropout_backward", operands, [node.inputs[0].type], node.attrs)


register(*(record for name in _UNARY for record in _unary(name)))
register(*(_elementwise(n, 1, lambda node, x, f=f: f(x)) for n, f in _FLAT.items()))
register(*(_elementwise(n, 1, _binary(f)) for n, f in _COMPARE.items()))
register(
    _elementwise("add", 1, _binary(np.add), gradient=_sum_gradient((1, 1)), linear="jointly"),
    _elementwise("sub", 1, _binary(np.subtract), gradient=_sum_gradient((1, -1)), linear="jointly"),
    _elementwise("mul", 1, _binary(np.multiply), gradient=_mul_gradient, linear="each"),
    _elementwise("div", 1, _binary(np.divide), gradient=_div_gradient, linear="first"),
    _elementwise("div_backward_denominator", 3, _div_denominator, linear="first"),
    _elementwise("remainder", 1, _binary(np.mod), gradient=_remainder_gradient),
    _elementwise("pow", 8, _binary(np.power), gradient=_pow_gradient),
    _elementwise(
        "pow_backward",
        10,
        lambda node, dy, x: dy * node.attrs["scalar"] * x ** (node.attrs["scalar"] - 1),
        eager_kernels=eager_kernels.pow_backward,
    ),
    _elementwise("maximum", 1, _binary(np.maximum), gradient=_chosen_gradient),
    _elementwise("minimum", 1, _binary(np.minimum), gradient=_chosen_gradient),
    _elementwise("where", 1, lambda node, c, a, b: np.where(c, a, b), gradient=_chosen_gradient),
    _elementwise(
        "clamp",
        2,
        lambda node, x: np.clip(x, node.attrs.get("min"), node.attrs.get("max")),
        gradient=_chosen_gradient,
    ),
    _elementwise(
        "select_backward",
        2,
        _select_backward,
        eager_kernels=eager_kernels.select_backward,
        linear="first",
    ),
    _elementwise(
        "cast",
        0,
        lambda node, x: x.astype(numpy_dtype(node.outputs[0].type.dtype)),
        gradient=_cast_gradient,
        linear="jointly",
    ),
    # A copy to another memory layout (`contiguous`), of the same values.
    _elementwise("copy", 0, lambda node, x: x.copy(), gradient=_pass_gradient, linear="jointly"),
    # Results: the kept values and the mask, one byte per element. Attribute `p`.
    _elementwise("dropout", 2, _dropout, gradient=_dropout_gradient),
    _elementwise(
        "dropout_backward", 2, lambda node, dy, m: dy * m / (1 - node.attrs.get("p", 0.0))
    ),
    # Fills memory without reading: one number (attribute `value`), a range (`start` and `step`), or numbers
    # that are not known (neither: random ones).
    OpDef(
        "fill",
        "elementwise",
        broadcast_equation,
        flops=0,
        evaluate=_fill,
    ),
)
