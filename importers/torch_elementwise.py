"""aten's elementwise operators in graph_ir's words: activations, arithmetic, casts, copies, dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import DType
from importers.torch_call import Call, Constant, is_tensor

Rule = Callable[[Call], Any]

_SMALL_ELEMENTS = 1 << 20
"""Tensors filled with one number are constants up to this size; larger ones are written at run time."""

# aten name -> record, for functions of one tensor.
_UNARY = {
    **{
        name: name
        for name in (
            "abs acos acosh asin asinh atan atanh ceil cos cosh erf exp expm1 floor "
            "hardsigmoid hardswish isinf isnan log log1p logical_not mish neg "
            "reciprocal relu round rsqrt sigmoid sign silu sin sinh softplus selu sqrt tan tanh bitwise_not"
        ).split()
    },
    "negative": "neg",
    "__invert__": "bitwise_not",
}
# aten name -> record, for functions of two tensors or a tensor and a number.
_BINARY = {
    "add": "add",
    "sub": "sub",
    "subtract": "sub",
    "mul": "mul",
    "multiply": "mul",
    "div": "div",
    "divide": "div",
    "true_divide": "div",
    "floor_divide": "floor_divide",
    "remainder": "remainder",
    "fmod": "remainder",
    "pow": "pow",
    "maximum": "maximum",
    "minimum": "minimum",
    "max.other": "maximum",
    "min.other": "minimum",
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "logical_and": "logical_and",
    "logical_or": "logical_or",
    "logical_xor": "logical_xor",
    "bitwise_and": "bitwise_and",
    "bitwise_or": "bitwise_or",
    "bitwise_xor": "bitwise_xor",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "__lshift__": "bit_shift_left",
    "__rshift__": "bit_shift_right",
}


def _unary(record: str) -> Rule:
    return lambda call: call.one(record, [call.value("self")])


def _binary(record: str) -> Rule:
    def rule(call: Call) -> Value:
        left, right = call["self"], call["other"] if "other" in call.args else call["exponent"]
        alpha = call["alpha"]
        if alpha not in (None, 1) and not is_tensor(right):
            right, alpha = right * alpha, 1
        if is_tensor(right) and alpha not in (None, 1):
            right = call.converter.materialize(right, call.node)
            right = call.emit("mul", [right], [right.type], {"scalar": alpha}, "alpha")[0]
        if not is_tensor(left):
            return call.one(
                record, call.values(["other", "exponent"]), scalar=left, scalar_first=True
            )
        if not is_tensor(right):
            return call.one(record, [call.value("self")], scalar=right)
        first, second = call.value("self"), call.converter.materialize(right, call.node)
        if call["rounding_mode"] is not None:
            return call.one("floor_divide", [first, second])
        return call.one(record, [first, second])

    return rule


def _reverse_subtract(call: Call) -> Value:
    """`rsub`: other - alpha * self."""
    value, other, alpha = call.value("self"), call["other"], call["alpha"]
    if alpha not in (None, 1):
        (value,) = call.emit("mul", [value], [value.type], {"scalar": alpha}, "alpha")
    if is_tensor(other):
        return call.one("sub", [call.value("other"), value])
    return call.one("sub", [value], scalar=other, scalar_first=True)


def _gelu(call: Call) -> Value:
    record = "gelu_tanh" if call["approximate"] == "tanh" else "gelu"
    return call.one(record, [call.value("self")])


def _gated(call: Call) -> Value:
    """`glu`: the first half times the sigmoid of the second."""
    source = call.value("self")
    axis = call.axis("dim", len(source.type.shape))
    first, gate = call.emit(
        "split", [source], [call.type] * 2, {"axis": axis, "view": True}, "halves"
    )
    (opened,) = call.emit("sigmoid", [gate], suffix="gate")
    return call.one("mul", [first, opened])


def _polar(call: Call) -> Value:
    """A complex number from length and angle: real and imaginary part side by side, read as one."""
    length, angle = call.value("abs"), call.value("angle")
    column = call.emit("cos", [angle], [angle.type], suffix="cos")[0]
    other = call.emit("sin", [angle], [angle.type], suffix="sin")[0]
    shape = (*call.type.shape, 1)
    parts: list[Value] = []
    for name, part in (("real", column), ("imaginary", other)):
        (scaled,) = call.emit(
            "mul", [length, part], [angle.type.with_shape(call.type.shape)], suffix=name
        )
        wide = scaled.type.with_shape(shape)
        parts += call.emit("reshape", [scaled], [wide], {"view": True}, f"{name}_column")
    pair = parts[0].type.with_shape((*call.type.shape, 2))
    (joined,) = call.emit("concat", parts, [pair], {"axis": len(shape) - 1})
    return call.one("reshape", [joined], view=True)


def _reinterpreted(call: Call) -> Value:
    """The same bytes read as complex numbers, or as their parts."""
    return call.one("reshape", [call.value("self")], view=True)


def _log_sigmoid(call: Call) -> Value:
    """The logarithm of a sigmoid is -softplus(-x)."""
    (turned,) = call.emit("neg", [call.value("self")], suffix="turned")
    (soft,) = call.emit("softplus", [turned])
    return call.one("neg", [soft])


def _with_slope(record: str, argument: str) -> Rule:
    """A function with one parameter, the record's `alpha`."""
    return lambda call: call.one(record, [call.value("self")], alpha=float(call[argument]))


def _clamp(low: str | float | None, high: str | float | None) -> Rule:
    """`low` and `high` name arguments, or are the bounds themselves."""

    def rule(call: Call) -> Value:
        bounds = [call[b] if isinstance(b, str) else b for b in (low, high)]
        value = call.value("self")
        if any(is_tensor(b) for b in bounds):
            for bound, record in zip(bounds, ("maximum", "minimum"), strict=True):
                if bound is not None:
                    (value,) = call.emit(
                        record, [value, call.converter.materialize(bound, call.node)]
                    )
            return value
        limits = {k: b for k, b in zip(("min", "max"), bounds, strict=True) if b is not None}
        return call.one("clamp", [value], **limits)

    return rule


def _where(call: Call) -> Value:
    branches = []
    for name in ("self", "other"):
        given = call[name]
        dtype = call.type.dtype
        branches.append(call.value(name) if is_tensor(given) else call.number(given, dtype))
    return call.one("where", [call.value("condition"), *branches])


def _masked_fill(call: Call) -> Value:
    fill = call["value"]
    value = call.value("value") if is_tensor(fill) else call.number(fill, call.type.dtype)
    return call.one("where", [call.value("mask"), value, call.value("self")])


def _identity(call: Call) -> Any:
    return call["self"]


def _detach(call: Call) -> Any:
    """In training, where gradients end."""
    if not call.training or not is_tensor(call["self"]):
        return call["self"]
    return call.one("detach", [call.value("self")], view=True)


def _copy(call: Call) -> Any:
    """`copy_`: what is written, in the shape and dtype of what it is written to."""
    source = call.value("src")
    if source.type.dtype != call.type.dtype:
        (source,) = call.emit("cast", [source], [source.type.with_dtype(call.type.dtype)])
    if source.type.shape != call.type.shape:
        (source,) = call.emit("expand", [source], [call.type], {"view": True})
    return source


def _convert(call: Call) -> Value:
    """`to`: a cast if the dtype changes, else the tensor itself."""
    source = call.value("self")
    return source if source.type.dtype == call.type.dtype else call.one("cast", [source])


def _contiguous(call: Call) -> Value:
    """A copy only if the memory is not already in order."""
    layout = call.layout()
    return call.value("self") if layout.is_contiguous() else call.one("copy", [call.value("self")])


def _dropout(call: Call) -> Value:
    """In training: the kept values and the mask, one byte per element."""
    (source,) = call.values(["input"]) or call.values(["self"])
    if not call["train"] or call["p"] == 0.0:
        return source
    mask = call.type.with_dtype(DType.BOOL)
    return call.emit("dropout", [source], [call.type, mask], {"p": float(call["p"])})[0]


def _filled(number: float | str | None) -> Rule:
    """Tensors of one number, or of whatever was in memory (`empty`)."""

    def rule(call: Call) -> Any:
        import torch

        value = call[number] if isinstance(number, str) else number
        if number is None:
            return Constant(call.type)
        if isinstance(value, Constant) and value.content is not None:
            value = value.content.item()
        if is_tensor(value):
            return call.one("expand", [call.converter.materialize(value, call.node)], view=True)
        if prod(call.type.shape) > _SMALL_ELEMENTS:
            return call.one("fill", [], value=value)
        dtype = call.node.meta["val"].dtype
        return Constant(call.type, torch.full(call.type.shape, value, dtype=dtype))

    return rule


def _random(call: Call) -> Any:
    return call.one("fill", [])


def _add_product(call: Call) -> Value:
    """`addcmul`: self + value * tensor1 * tensor2."""
    shapes = [call.value(n).type for n in ("tensor1", "tensor2")]
    wide = max(shapes, key=lambda t: t.elements)
    record = "div" if "addcdiv" in str(call.node.target) else "mul"
    (term,) = call.emit(record, call.values(["tensor1", "tensor2"]), [wide], suffix="term")
    if call["value"] not in (None, 1):
        (term,) = call.emit("mul", [term], [wide], {"scalar": call["value"]}, "scale")
    return call.one("add", [call.value("self"), term])


def _lerp(call: Call) -> Value:
    start, end = call.value("self"), call.value("end")
    (difference,) = call.emit("sub", [end, start], [call.type], suffix="difference")
    weight = call["weight"]
    if is_tensor(weight):
        (step,) = call.emit("mul", [difference, call.value("weight")], [call.type], suffix="step")
    else:
        (step,) = call.emit("mul", [difference], [call.type], {"scalar": weight}, "step")
    return call.one("add", [start, step])


RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": _unary(record) for name, record in _UNARY.items()},
    **{f"aten.{name}": _binary(record) for name, record in _BINARY.items()},
    "aten.rsub": _reverse_subtract,
    "aten.square": lambda call: call.one("pow", [call.value("self")], scalar=2),
    "aten.gelu": _gelu,
    "aten.log_sigmoid": _log_sigmoid,
    "aten.glu": _gated,
    "aten.polar": _polar,
    "aten.view_as_complex": _reinterpreted,
    "aten.view_as_real": _reinterpreted,
    "aten.elu": _with_slope("elu", "alpha"),
    "aten.celu": _with_slope("elu", "alpha"),
    "aten.leaky_relu": _with_slope("leaky_relu", "negative_slope"),
    "aten.relu6": _clamp(0.0, 6.0),
    "aten.hardtanh": _clamp("min_val", "max_val"),
    "aten.clamp": _clamp("min", "max"),
    "aten.clip": _clamp("min", "max"),
    "aten.clamp_min": _clamp("min", None),
    "aten.clamp_max": _clamp(None, "max"),
    "aten.where": _where,
    "aten.masked_fill": _masked_fill,
    "aten.addcmul": _add_product,
    "aten.addcdiv": _add_product,
    "aten.lerp": _lerp,
    "aten.to": _convert,
    "aten._to_copy": _convert,
    "aten.type_as": _convert,
    "aten.float": _convert,
    "aten.alias": _identity,
    "aten.lift_fresh_copy": _identity,
    "aten.lift_fresh": _identity,
    "aten.resolve_conj": _identity,
    # Conjugation and negation that torch only notes down, for the kernel that reads next.
    "aten._conj": _identity,
    "aten._neg_view": _identity,
    "aten.contiguous": _contiguous,
    "aten.clone": lambda call: call.one("copy", [call.value("self")]),
    "aten.dropout": _dropout,
    "aten.feature_dropout": _dropout,
    "aten.alpha_dropout": _dropout,
    "aten.copy": _copy,
    "aten.detach": _detach,
    "aten.fill": _filled("value"),
    "aten.zero": _filled(0),
    **{f"aten.{name}": _filled(0) for name in ("zeros", "zeros_like", "new_zeros")},
    **{f"aten.{name}": _filled(1) for name in ("ones", "ones_like", "new_ones")},
    **{f"aten.{name}": _filled("fill_value") for name in ("full", "full_like", "new_full")},
    **{f"aten.{name}": _filled(None) for name in ("empty", "empty_like", "new_empty", "empty_strided")},
    **{
        f"aten.{name}": _random
        for name in (
            "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli",
            "uniform", "normal", "exponential", "normal_functional", "multinomial",
        )
    },
}  # fmt: skip
"""Rules by aten name, an overload's own name first (`aten.max.other` before `aten.max`)."""
