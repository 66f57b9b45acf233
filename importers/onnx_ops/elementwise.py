"""Element by element: unary functions, broadcast binary ones, casts, dropout, random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType
from importers.onnx_constants import filling
from importers.onnx_ops.emitter import Emitter, broadcast_shape, known_number, required, rule
from importers.onnx_values import OnnxNode, OnnxValue

_UNARY: Mapping[str, str] = {
    "Abs": "abs",
    "Acos": "acos",
    "Acosh": "acosh",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atanh": "atanh",
    "BitwiseNot": "bitwise_not",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "IsInf": "isinf",
    "IsNaN": "isnan",
    "Log": "log",
    "Mish": "mish",
    "Neg": "neg",
    "Not": "logical_not",
    "Reciprocal": "reciprocal",
    "Relu": "relu",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
}
# Functions of one operand with parameters.
_UNARY_WITH_PARAMETERS: Mapping[str, str] = {
    "Celu": "elu",
    "Elu": "elu",
    "HardSigmoid": "hardsigmoid",
    "HardSwish": "hardswish",
    "LeakyRelu": "leaky_relu",
    "Selu": "selu",
    "Shrink": "softsign",
    "ThresholdedRelu": "relu",
}
_BINARY: Mapping[str, str] = {
    "Add": "add",
    "And": "logical_and",
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
    "Div": "div",
    "Equal": "equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Mod": "remainder",
    "Mul": "mul",
    "Or": "logical_or",
    "Pow": "pow",
    "Sub": "sub",
    "Xor": "logical_xor",
}
_VARIADIC: Mapping[str, str] = {"Max": "maximum", "Min": "minimum", "Sum": "add", "Mean": "add"}


@rule(*_UNARY)
def unary(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """One operand, the same shape."""
    return [e.emit(node, _UNARY[node.op_type], [e.at(node, 0)], e.result_type(node))]


@rule(*_UNARY_WITH_PARAMETERS)
def unary_with_parameters(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """One operand; the slope below zero is kept, other numbers change neither cost nor gradient."""
    alpha = node.attributes.get("alpha") if node.op_type in ("LeakyRelu", "Elu") else None
    attrs = {} if alpha is None else {"alpha": alpha}
    op = _UNARY_WITH_PARAMETERS[node.op_type]
    return [e.emit(node, op, [e.at(node, 0)], e.result_type(node), attrs)]


@rule("Gelu")
def gelu(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Exact or by tanh."""
    tanh = node.attributes.get("approximate", b"none") in (b"tanh", "tanh")
    op = "gelu_tanh" if tanh else "gelu"
    return [e.emit(node, op, [e.at(node, 0)], e.result_type(node))]


@rule("Swish")
def swish(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X sigmoid(alpha x)."""
    return [e.emit(node, "silu", [e.at(node, 0)], e.result_type(node))]


@rule(*_BINARY)
def binary(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Two operands, broadcast; a known number becomes an attribute."""
    return [emit_binary(e, node, _BINARY[node.op_type])]


def emit_binary(e: Emitter, node: OnnxNode, op: str) -> Value:
    """Emits a broadcast operator of the node's two operands."""
    left, right = required(node, 0), required(node, 1)
    out = e.result_type(node)
    for value, other, attrs in (
        (right, left, {}),
        (left, right, {"scalar_first": True}),
    ):
        number = known_number(value) if value.origin != "input" else None
        if number is not None and other.shape == out.shape and known_number(other) is None:
            return e.emit(node, op, [e.operand(other)], out, {"scalar": number, **attrs})
    a, b = e.operand(left), e.operand(right)
    if _old_broadcast(node, a, b):
        b = _align_old(e, node, a, b)
    return e.emit(node, op, [a, b], out)


def _old_broadcast(node: OnnxNode, a: Value, b: Value) -> bool:
    return node.version < 7 and bool(node.attributes.get("broadcast")) and "axis" in node.attributes


def _align_old(e: Emitter, node: OnnxNode, a: Value, b: Value) -> Value:
    """Before opset 7 the second operand was aligned at the attribute `axis`."""
    axis = node.attributes["axis"] % max(len(a.type.shape), 1)
    trailing = len(a.type.shape) - axis - len(b.type.shape)
    return e.reshape(node, b, (*b.type.shape, *[1] * max(trailing, 0)), "aligned")


@rule("BitShift")
def bit_shift(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Left or right by the second operand."""
    left = node.attributes.get("direction", b"LEFT") in (b"LEFT", "LEFT")
    return [emit_binary(e, node, "bit_shift_left" if left else "bit_shift_right")]


@rule(*_VARIADIC)
def variadic(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Any number of operands, combined two at a time."""
    operands = e.operands(node)
    if not operands:
        raise ModelFileError(f"{node.label} has no operands")
    op = _VARIADIC[node.op_type]
    out = e.result_type(node)
    labels = iter(["" if i == len(operands) - 2 else f"step{i}" for i in range(len(operands))])

    def combine(a: Value, b: Value) -> Value:
        shape = broadcast_shape(a.type.shape, b.type.shape)
        return e.emit(node, op, [a, b], out.with_shape(shape), None, next(labels))

    result = reduce(combine, operands)
    if node.op_type == "Mean" and len(operands) > 1:
        attrs = {"scalar": float(len(operands))}
        result = e.emit(node, "div", [result], out, attrs, "divide")
    return [result]


@rule("PRelu")
def prelu(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X where positive, else slope x."""
    x, slope, out = e.at(node, 0), e.at(node, 1, _weight(node, 1)), e.result_type(node)
    rank = len(out.shape)
    if node.version < 7 and len(slope.type.shape) == 1 and rank > 2:
        # Before broadcasting was defined, slopes belonged to channels.
        slope = e.reshape(node, slope, (*slope.type.shape, *[1] * (rank - 2)), "slope_view")
    positive = out.with_dtype(DType.BOOL)
    sign = e.emit(node, "greater", [x], positive, {"scalar": 0.0}, "positive")
    scaled = e.emit(node, "mul", [x, slope], out, None, "scaled")
    return [e.emit(node, "where", [sign, x, scaled], out)]


def _weight(node: OnnxNode, index: int) -> Any:
    return "parameter" if required(node, index).origin == "weight" else None


@rule("Where")
def where(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Picks from the second or third operand."""
    return [e.emit(node, "where", e.operands(node), e.result_type(node))]


@rule("Clip")
def clip(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Limits; unknown ones are limits all the same."""
    low, high = (_limit(node, key, i) for key, i in (("min", 1), ("max", 2)))
    attrs = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
    return [e.emit(node, "clamp", [e.at(node, 0)], e.result_type(node), attrs)]


def _limit(node: OnnxNode, key: str, index: int) -> float | None:
    given = node.attributes.get(key)
    return given if given is not None else known_number(node.input(index))


@rule("Cast", "CastLike", "BitCast")
def cast(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Another element type; nothing where both are the same."""
    x, out = e.at(node, 0), e.result_type(node)
    return [x if x.type == out else e.emit(node, "cast", [x], out)]


@rule("Dropout")
def dropout(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Nothing at inference; in training a mask of one byte per element is drawn and kept."""
    x = e.at(node, 0)
    ratio = node.attributes.get("ratio")
    if ratio is None:
        known = known_number(node.input(1))
        ratio = 0.5 if known is None else known
    types = [x.type, x.type.with_dtype(DType.BOOL)]
    if not e.training or ratio == 0:
        mask = node.output(1)
        ones = (
            e.emit(node, "fill", [], e.type_of(mask.type), {"value": 1}, "mask") if mask else None
        )
        return [x, ones]
    return list(e.emit_all(node, "dropout", [x], types, {"p": ratio}))


@rule(
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "ConstantOfShape",
    "EyeLike",
    "Range",
    "HannWindow",
    "HammingWindow",
    "BlackmanWindow",
)
def fill(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Writes memory without reading: constants, ranges, random numbers."""
    attrs: dict[str, float] = {}
    if node.op_type == "ConstantOfShape":
        attrs = {"value": filling(node)}
    elif node.op_type == "Range":
        start, step = (known_number(node.input(i)) for i in (0, 2))
        attrs = {} if start is None or step is None else {"start": start, "step": step}
    return [e.emit(node, "fill", [], e.result_type(node), attrs)]


@rule("Affine", "ImageScaler", "ScaledTanh", "ParametricSoftplus", "Scale")
def old_affine(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Experimental operators of the first opsets: a x + b, perhaps through a function."""
    x, out = e.at(node, 0), e.result_type(node)
    scaled = e.emit(node, "mul", [x], out, {"scalar": _number(node, "scale", "alpha")}, "scaled")
    if node.op_type in ("Affine", "ImageScaler"):
        return [e.emit(node, "add", [scaled], out, {"scalar": _number(node, "beta")})]
    if node.op_type == "Scale":
        return [scaled]
    function = "tanh" if node.op_type == "ScaledTanh" else "softplus"
    return [e.emit(node, function, [scaled], out)]


def _number(node: OnnxNode, *keys: str) -> float:
    for key in keys:
        value = node.attributes.get(key)
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def same_as_first(node: OnnxNode) -> list[Any]:
    """Result type of operators that keep their first operand's type."""
    value: OnnxValue = required(node, 0)
    return [value.type]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    ("", name): same_as_first
    for name in (
        "Affine",
        "ImageScaler",
        "ScaledTanh",
        "ParametricSoftplus",
        "Scale",
        "GroupNormalization",
        "MeanVarianceNormalization",
        "Gelu",
        "HardSwish",
        "Mish",
        "Swish",
        "Softplus",
    )
}
