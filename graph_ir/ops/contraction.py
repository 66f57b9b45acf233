"""Products of operands that sum over shared names: linear layers, matrix products, einsums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graph_ir.evaluate import Array, product
from graph_ir.gradients import product_gradient
from graph_ir.op_def import OpDef, register

if TYPE_CHECKING:
    from graph_ir.graph import Node


def evaluate_product(node: Node, *arrays: Array) -> Array:
    """Evaluates a node that is a product, by its equation."""
    return product(node.equation, node.attrs, node.outputs[0].type.shape, *arrays)


def _no_own_equation(*_: Any) -> Any:
    raise ValueError("an einsum node carries its equation in the attribute 'equation'")


def _product(name: str, equation: Any) -> OpDef:
    return OpDef(
        name,
        "contraction",
        equation,
        gradient=product_gradient,
        evaluate=evaluate_product,
        linear="each",
    )


register(
    # x[..., k], weight[n, k] -> y[..., n]; a bias is a separate `add` with the attribute `epilogue`.
    _product("linear", "... k, n k -> ... n"),
    # a[..., m, k], b[..., k, n] -> c[..., m, n], batch dims broadcast.
    _product("matmul", "... m k, ... k n -> ... m n"),
    # x[(e t), k], weight[e, k, n] -> y[(e t), n]: rows sorted by expert, t to each expert.
    _product("grouped_matmul", "(e t) k, e k n -> (e t) n"),
    # Any product: the node's attribute `equation` says which.
    _product("einsum", _no_own_equation),
)
