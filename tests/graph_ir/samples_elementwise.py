"""Samples of operators that work element by element, and of parameter updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from op_sample import Array, Sample, boolean, index, normal, sample

_POSITIVE = {"log", "sqrt", "rsqrt", "reciprocal"}
_UNIT = {"asin", "acos", "atanh"}
_TORCH_NAMES = {
    "neg": torch.neg,
    "selu": F.selu,
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "softsign": F.softsign,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
_UNARY = """neg abs relu leaky_relu elu selu softplus exp log log1p expm1 sqrt rsqrt reciprocal sin cos tan
    asin acos atan sinh cosh asinh acosh atanh tanh sigmoid hardsigmoid hardswish silu mish gelu gelu_tanh
    erf softsign""".split()
_COMPARE = {
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
}


def _unary(name: str) -> Sample:
    x = normal(5, 3) * 2
    if name in _POSITIVE:
        x = normal(5, 3, low=0.2, high=3)
    elif name in _UNIT:
        x = normal(5, 3, low=-0.9, high=0.9)
    elif name == "acosh":
        x = normal(5, 3, low=1.1, high=3)
    elif name == "log1p":
        x = normal(5, 3, low=-0.5, high=3)
    return sample(name, [x], torch=_TORCH_NAMES.get(name) or getattr(torch, name))


def elementwise() -> list[Sample]:
    a, b, row, column = normal(5, 3), normal(5, 3), normal(3), normal(4, 1, 3)
    positive = normal(5, 3, low=0.3, high=2)
    ints, more = index(9, 5, 3), index(9, 5, 3) + 1
    flags, others = boolean(5, 3), boolean(5, 3)
    found = [_unary(name) for name in _UNARY]
    found += [
        sample(n, [a * 3], torch=getattr(torch, n), grads=())
        for n in ("floor", "ceil", "round", "sign")
    ]
    found += [
        sample(n, [a], dtype="bool", torch=getattr(torch, n), grads=()) for n in ("isnan", "isinf")
    ]
    found += [sample(n, [ints, more], dtype="bool", torch=f) for n, f in _COMPARE.items()]
    found += [
        sample(n, [flags, others], dtype="bool", torch=getattr(torch, n))
        for n in ("logical_and", "logical_or", "logical_xor")
    ]
    found += [
        sample(n, [ints, more], dtype="int64", torch=getattr(torch, f))
        for n, f in {
            "bitwise_and": "bitwise_and",
            "bitwise_or": "bitwise_or",
            "bitwise_xor": "bitwise_xor",
            "bit_shift_left": "bitwise_left_shift",
            "bit_shift_right": "bitwise_right_shift",
            "floor_divide": "floor_divide",
        }.items()
    ]
    return [
        *found,
        sample(
            "leaky_relu",
            [a],
            attrs={"alpha": 0.2},
            torch=lambda x: F.leaky_relu(x, 0.2),
            label="alpha",
        ),
        sample("elu", [a], attrs={"alpha": 0.7}, torch=lambda x: F.elu(x, 0.7), label="alpha"),
        sample("bitwise_not", [ints], dtype="int64", torch=torch.bitwise_not),
        sample("logical_not", [flags], dtype="bool", torch=torch.logical_not),
        sample("add", [a, b], torch=torch.add),
        sample("add", [a, row], torch=torch.add, label="row"),
        sample("add", [column, a], (4, 5, 3), torch=torch.add, label="both-broadcast"),
        sample("add", [a], attrs={"scalar": 2.5}, torch=lambda x: x + 2.5, label="scalar"),
        sample("add", [a, normal()], torch=torch.add, label="number"),
        sample("mul", [normal(), a], (5, 3), torch=torch.mul, label="number"),
        sample("div", [normal(5, 1), positive], (5, 3), torch=torch.div, label="column"),
        sample("where", [boolean(5, 3), a, normal()], torch=torch.where, label="number"),
        sample("maximum", [a, normal(1)], torch=torch.maximum, label="one"),
        sample("sub", [a, row], torch=torch.sub),
        sample(
            "sub",
            [a],
            attrs={"scalar": 2.0, "scalar_first": True},
            torch=lambda x: 2.0 - x,
            label="scalar-first",
        ),
        sample("mul", [column, a], (4, 5, 3), torch=torch.mul),
        sample("mul", [a], attrs={"scalar": 3.0}, torch=lambda x: x * 3.0, label="scalar"),
        sample("div", [a, positive], torch=torch.div),
        sample("div", [column, positive], (4, 5, 3), torch=torch.div, label="broadcast"),
        sample("div", [a], attrs={"scalar": 3.0}, torch=lambda x: x / 3.0, label="scalar"),
        sample(
            "div",
            [positive],
            attrs={"scalar": 3.0, "scalar_first": True},
            torch=lambda x: 3.0 / x,
            label="scalar-first",
        ),
        sample("pow", [positive, row], torch=torch.pow),
        sample("pow", [positive], attrs={"scalar": 3.0}, torch=lambda x: x**3.0, label="scalar"),
        sample(
            "pow",
            [a],
            attrs={"scalar": 2.0, "scalar_first": True},
            torch=lambda x: 2.0**x,
            label="scalar-first",
        ),
        sample("maximum", [a, row], torch=torch.maximum),
        sample("minimum", [column, a], (4, 5, 3), torch=torch.minimum),
        sample(
            "maximum",
            [a],
            attrs={"scalar": 0.3},
            torch=lambda x: torch.clamp(x, min=0.3),
            label="scalar",
        ),
        sample("where", [boolean(5, 1), a, row], (5, 3), torch=torch.where),
        sample(
            "where", [boolean(4, 1, 3), a, row], (4, 5, 3), torch=torch.where, label="broadcast"
        ),
        sample("remainder", [a * 3, positive], torch=torch.remainder),
        sample(
            "clamp", [a], attrs={"min": -0.5, "max": 0.5}, torch=lambda x: torch.clamp(x, -0.5, 0.5)
        ),
        sample(
            "clamp",
            [a],
            attrs={"max": 0.1},
            torch=lambda x: torch.clamp(x, max=0.1),
            label="one-sided",
        ),
        sample("cast", [a], dtype="float32", torch=lambda x: x.to(torch.float32)),
        sample("copy", [a], torch=torch.clone),
        sample(
            "dropout",
            [a],
            [((5, 3), "float64"), ((5, 3), "bool")],
            {"p": 0.0},
            lambda x: F.dropout(x, 0.0),
        ),
        sample(
            "fill", [], (5, 3), {"value": 2}, lambda: torch.full((5, 3), 2.0, dtype=torch.float64)
        ),
        sample(
            "quantize",
            [a * 4, normal(3, low=0.1, high=0.4)],
            attrs={"axis": 1},
            dtype="int8",
            torch=lambda x, s: torch.clamp(torch.round(x / s), -128, 127),
            grads=(),
        ),
        sample(
            "dequantize",
            [index(9, 5, 3).astype(np.int8), normal(3)],
            attrs={"axis": 1},
            torch=lambda x, s: x * s,
            grads=(),
        ),
        sample(
            "dequantize",
            [index(9, 6, 5).astype(np.int8), normal(3, 5)],
            attrs={"axis": 0},
            label="blocks",
            torch=lambda x, s: x * s.repeat_interleave(2, 0),
            grads=(),
        ),
        sample(
            "count_thresholds",
            [a, np.sort(normal(3, 4))],
            attrs={"axis": 1},
            torch=_counted,
        ),
        sample(
            "count_thresholds",
            [normal(5, 3, 2), np.sort(normal(1, 4))],
            attrs={"axis": 1},
            label="one-table",
            torch=lambda x, table: _counted(x.movedim(1, -1), table).movedim(-1, 1),
        ),
        sample(
            "adamw",
            [normal(5, 3), normal(5, 3), np.zeros((5, 3)), np.zeros((5, 3))],
            [((5, 3), "float64")] * 3,
            torch=_adamw_step,
            grads=(),
        ),
        sample(
            "adamw",
            [f32(5, 3), f32(5, 3), np.zeros((5, 3)), np.zeros((5, 3)), normal(5, 3)],
            [((5, 3), "float32")] + [((5, 3), "float64")] * 3,
            label="master",
        ),
        sample(
            "sgd",
            [f32(5, 3), normal(5, 3), normal(5, 3)],
            [((5, 3), "float32"), ((5, 3), "float64")],
            label="master",
        ),
        sample("sgd", [a, b], torch=lambda p, g: p - 0.01 * g, grads=()),
    ]


def f32(*shape: int) -> Array:
    return normal(*shape).astype(np.float32)


def _counted(x: Any, table: Any) -> Any:
    """How many thresholds of its channel (the last dim) each element reaches."""
    rows = table.expand(x.shape[-1], -1)
    columns = [
        torch.bucketize(x[..., c].contiguous(), rows[c], right=True) for c in range(x.shape[-1])
    ]
    return torch.stack(columns, dim=-1).double()


def _adamw_step(p: Any, g: Any, *_: Any) -> Any:
    weight = torch.nn.Parameter(p.detach().clone())
    weight.grad = g.clone()
    torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.01).step()
    return weight.detach()
