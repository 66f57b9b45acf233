"""Fourier transforms, determinants and triangular systems: whole rows, neither products nor elementwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Equation
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]


def _rows(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    """Leading dims that every tensor shares pass; all others are whole."""
    shapes = [t.shape for t in (*inputs, *outputs)]
    shared = 0
    while all(len(s) > shared for s in shapes) and len({s[shared] for s in shapes}) == 1:
        shared += 1
    shared = min(shared, attrs.get("rows", 1))
    sizes = {f"i{i}": shapes[0][i] for i in range(shared)}
    fixed: set[str] = set()

    def dims(shape: Sequence[int], tag: str) -> tuple[Dim, ...]:
        names = [f"i{i}" if i < shared else f"{tag}{i}" for i in range(len(shape))]
        own = {n: size for n, size in zip(names, shape, strict=True) if n.startswith(tag)}
        sizes.update(own)
        fixed.update(own)
        return tuple((n,) for n in names)

    operands = tuple(dims(t.shape, f"a{j}_") for j, t in enumerate(inputs))
    results = tuple(dims(t.shape, f"r{j}_") for j, t in enumerate(outputs))
    return Equation(operands, results, sizes, frozenset(fixed), None)


def _fft_flops(node: Node) -> int:
    """5 n log2 n per complex transform of n points (Cooley and Tukey 1965, radix 2)."""
    points = int(node.attrs["points"])
    # Two real numbers make a complex one, whether they are kept so or as a dim of two.
    numbers = max(
        v.type.elements * (2 if v.type.dtype.kind == "complex" else 1)
        for v in (*node.inputs, *node.outputs)
    )
    transforms = max(1, numbers // max(1, 2 * points))
    return round(5 * points * log2(max(points, 2))) * transforms


def _determinant_flops(node: Node) -> int:
    """LU decomposition: 2/3 n^3 per matrix (Golub and Van Loan, Matrix Computations, 3.2)."""
    x = node.inputs[0].type
    n = x.shape[-1]
    return x.elements // max(1, n * n) * (2 * n**3 // 3)


def _solve_flops(node: Node) -> int:
    """Forward substitution: n^2 per column (Golub and Van Loan, Matrix Computations, 3.1)."""
    matrix, columns = node.inputs[0].type, node.inputs[1].type
    return columns.elements * matrix.shape[-1]


def _solve_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None, None]
    matrix, columns = node.inputs
    operands = [matrix, grads[0], node.outputs[0]]
    types = [matrix.type, columns.type]
    return b.emit(node, "triangular_solve_backward", operands, types, node.attrs)


def _solve_backward(node: Node, matrix: Array, dy: Array, y: Array) -> tuple[Array, Array]:
    """B's gradient is A^-T dY, and A's is minus that times Y^T, in the triangle (Giles 2008, 2.3.1)."""
    columns = np.linalg.solve(np.swapaxes(_triangle(node, matrix), -1, -2), dy)
    product = -columns @ np.swapaxes(y, -1, -2)
    beside = int(bool(node.attrs.get("unit")))
    kept = np.triu(product, beside) if node.attrs.get("upper") else np.tril(product, -beside)
    return kept, columns


def _triangle(node: Node, matrix: Array) -> Array:
    kept = np.triu(matrix) if node.attrs.get("upper") else np.tril(matrix)
    if not node.attrs.get("unit"):
        return kept
    diagonal = np.eye(matrix.shape[-1], dtype=bool)
    return np.where(diagonal, np.ones((), matrix.dtype), kept)


def _fft_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """A Fourier transform is linear: its gradient is the transform turned round, at the same cost."""
    results: list[Value | None] = [None] * len(node.inputs)
    if grads[0] is not None and b.needs(node.inputs[0]):
        operands = [grads[0], *node.inputs[1:]]
        (results[0],) = b.emit(node, "fft", operands, [node.inputs[0].type], node.attrs, "grad")
    return results


def _determinant_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    if grads[0] is None:
        return [None]
    operands = [grads[0], node.inputs[0], node.outputs[0]]
    return b.emit(node, "determinant_backward", operands, [node.inputs[0].type])


def _determinant_backward(node: Node, dy: Array, x: Array, y: Array) -> Array:
    """Jacobi's formula: d det(X) / dX = det(X) X^-T."""
    return np.asarray((dy * y)[..., None, None] * np.swapaxes(np.linalg.inv(x), -1, -2))


register(
    # Attribute `points`: length of one transform.
    OpDef("fft", "reduction", _rows, flops=_fft_flops, engine="vector", gradient=_fft_gradient),
    OpDef(
        "determinant",
        "reduction",
        _rows,
        flops=_determinant_flops,
        engine="vector",
        gradient=_determinant_gradient,
        evaluate=lambda node, x: np.linalg.det(x),
    ),
    # A X = B for a triangular A [..., n, n] and B [..., n, m]. Attributes: `upper`, `unit` (A's diagonal is
    # one), `rows` (the leading dims, which pass).
    OpDef(
        "triangular_solve",
        "reduction",
        _rows,
        flops=_solve_flops,
        engine="vector",
        gradient=_solve_gradient,
        evaluate=lambda node, a, b: np.linalg.solve(_triangle(node, a), b),
    ),
    # The system once more, transposed, and a product.
    OpDef(
        "triangular_solve_backward",
        "reduction",
        _rows,
        flops=lambda node: 3 * node.inputs[1].type.elements * node.inputs[0].type.shape[-1],
        engine="vector",
        evaluate=_solve_backward,
    ),
    # Inverting costs 2 n^3 (Golub and Van Loan, 3.4), three times the decomposition.
    OpDef(
        "determinant_backward",
        "reduction",
        _rows,
        flops=lambda node: 2 * node.inputs[1].type.elements * node.inputs[1].type.shape[-1],
        engine="vector",
        evaluate=_determinant_backward,
    ),
)
