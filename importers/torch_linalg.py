"""aten's triangular systems and Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graph_ir.errors import UnknownOperatorError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType
from importers.torch_call import Call

Rule = Callable[[Call], Any]


def _solve_triangular(call: Call) -> Value:
    matrix, columns = call.value("self"), call.value("B")
    if not call["left"] or matrix.type.shape[:-2] != columns.type.shape[:-2]:
        raise UnknownOperatorError(
            f"operator {call.node.target} (node {call.node.name}) has a rule for A X = B with the same "
            f"leading dims only: add the other form to importers/torch_linalg.py"
        )
    return call.one(
        "triangular_solve",
        [matrix, columns],
        upper=bool(call["upper"]),
        unit=bool(call["unitriangular"]),
        rows=len(matrix.type.shape) - 2,
    )


def _fourier(call: Call) -> Value:
    """One transform per dim, the last one first; a real operand's first transform makes it complex."""
    value = call.value("self")
    rank = len(value.type.shape)
    dims = [d % rank for d in call["dim"]]
    for i, dim in enumerate(reversed(dims)):
        last = i == len(dims) - 1
        made = call.type
        if not last:
            shape = list(value.type.shape)
            shape[dim] = call.type.shape[dim] if call.type.dtype.kind == "complex" else shape[dim]
            kind = DType.COMPLEX128 if "128" in str(value.type.dtype) else DType.COMPLEX64
            made = call.type.with_shape(tuple(shape)).with_dtype(kind)
        points = max(value.type.shape[dim], made.shape[dim])
        attrs = {"points": points, "rows": dim}
        (value,) = call.emit("fft", [value], [made], attrs, "" if last else f"dim_{dim}")
    return value


RULES: Mapping[str, Rule] = {
    "aten.linalg_solve_triangular": _solve_triangular,
    **dict.fromkeys(("aten._fft_c2c", "aten._fft_r2c", "aten._fft_c2r"), _fourier),
}
