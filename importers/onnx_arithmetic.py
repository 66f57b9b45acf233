"""Arithmetic that exporters write where the name of a dim belongs."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}


def evaluated(text: str, sizes: Mapping[str, int]) -> int | None:
    """The value of "a + 1" or "2*(a//b)" for known names, None for anything else."""

    def value(node: ast.expr) -> int | None:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.Name):
            return sizes.get(node.id)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value(node.left), value(node.right)
            if left is None or right is None or (right == 0 and not isinstance(node.op, ast.Add)):
                return None
            return _OPERATORS[type(node.op)](left, right)
        return None

    if len(text) > 200:
        return None
    try:
        found = value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return found if found is not None and found >= 0 else None
