"""Reductions, cumulative sums and pooling.

Attributes: `axes` (non-negative) and `keepdims`, or an `equation` of the node's own. Pooling reads
windows, with the attributes of a convolution and `kernel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Equation, Window
from graph_ir.evaluate import Array, product
from graph_ir.gradients import linear_gradient
from graph_ir.op_def import EquationRule, OpDef, register
from graph_ir.ops.convolution import SPATIAL
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value

Grads = Sequence["Value | None"]


def reduction_equation(reduction: str | None) -> EquationRule:
    """`a b c -> a c` for the axes that are reduced; kept dims of size 1 have no name."""

    def rule(
        inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
    ) -> Equation:
        shape = inputs[0].shape
        axes = {axis % max(len(shape), 1) for axis in attrs.get("axes", range(len(shape)))}
        source: list[Dim] = [(f"i{i}",) for i in range(len(shape))]
        result: list[Dim] = []
        for i, dim in enumerate(source):
            if i not in axes:
                result.append(dim)
            elif attrs.get("keepdims"):
                result.append(())
        sizes = {f"i{i}": n for i, n in enumerate(shape)}
        return Equation(
            (tuple(source),), (tuple(result),) * len(outputs), sizes, frozenset(), reduction
        )

    return rule


def mean_divisor(node: Node) -> int:
    """Number of elements that each mean is over: of the whole tensor, also where a shard holds a part."""
    given = node.attrs.get("divisor")
    if given is not None:
        return int(given)
    return max(1, node.inputs[0].type.elements // max(1, node.outputs[0].type.elements))


def _evaluate(node: Node, x: Array) -> Array:
    return product(node.equation, node.attrs, node.outputs[0].type.shape, x)


def _mean_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    (spread,) = linear_gradient(b, node, grads)
    if spread is None:
        return [None]
    attrs = {"scalar": mean_divisor(node)}
    return b.emit(node, "div", [spread], [spread.type], attrs, "divide")


def _saved_gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
    """For maxima, products and norms: one kernel that reads operand, result and gradient."""
    if grads[0] is None:
        return [None]
    operands = [grads[0], node.inputs[0], node.outputs[0]]
    attrs = {**node.attrs, "of": node.op, "equation": _turned(node.equation)}
    return b.emit(node, "reduce_backward", operands, [node.inputs[0].type], attrs)


def _turned(equation: Equation) -> Equation:
    (source,), (result, *_) = equation.inputs, equation.outputs
    return Equation((result, source, result), (source,), equation.sizes, equation.replicated, None)


def _spread(small: Array, node: Node) -> Array:
    """Broadcasts a reduced array back along the reduced dims."""
    result, source = node.equation.inputs[0], node.equation.inputs[1]
    lost = [i for i, dim in enumerate(source) if dim not in result]
    kept = [dim for dim in result if dim]
    squeezed = small.reshape([node.equation.sizes[d[0]] for d in kept])
    return np.expand_dims(squeezed, lost)


def _reduce_backward(node: Node, dy: Array, x: Array, y: Array) -> Array:
    wide_dy, wide_y = _spread(dy, node), _spread(y, node)
    if node.attrs["of"] in ("reduce_max", "reduce_min"):
        return np.where(x == wide_y, wide_dy, 0.0)
    if node.attrs["of"] == "reduce_prod":
        return np.asarray(wide_dy * wide_y / x)
    return np.asarray(wide_dy * x / wide_y)


# --- pooling --------------------------------------------------------------------------------------------


def pool_equation(reduction: str | None) -> EquationRule:
    """`n c (y+r) (x+q) -> n c y x`."""

    def rule(
        inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
    ) -> Equation:
        kernel = attrs["kernel"]
        lead = len(inputs[0].shape) - len(kernel)
        source: list[Dim] = [(f"i{i}",) for i in range(lead)]
        result: list[Dim] = list(source)
        sizes = {f"i{i}": n for i, n in enumerate(inputs[0].shape[:lead])}
        fixed = set()
        for i, taps in enumerate(kernel):
            out, tap = SPATIAL[i]
            sizes |= {out: outputs[0].shape[lead + i], tap: taps}
            source.append(Window(out, tap))
            result.append((out,))
            fixed |= {out, tap}
        return Equation(
            (tuple(source),), (tuple(result),) * len(outputs), sizes, frozenset(fixed), reduction
        )

    return rule


def _pool_backward_equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    forward = pool_equation("sum")(outputs[:1], inputs[:1], attrs)
    (source,), (result,) = forward.inputs, forward.outputs
    others = tuple(source if t.shape == outputs[0].shape else result for t in inputs[1:])
    return Equation((result, *others), (source,), forward.sizes, forward.replicated, None)


def _windows_flops(node: Node) -> int:
    return node.equation.elements


def _pool_max(node: Node, x: Array) -> Array:
    low = np.full((), np.finfo(float).min)
    pad = node.attrs.get("padding", (0,) * len(node.attrs["kernel"]))
    lead = x.ndim - len(pad)
    # Zeros are no padding for a maximum: pad with the least number first.
    width = [(0, 0)] * lead + [
        (p, p + k * 4) for p, k in zip(pad, node.attrs["kernel"], strict=True)
    ]
    padded = np.pad(x, width, constant_values=float(low))
    attrs = {**node.attrs, "padding": (0,) * len(pad)}
    return product(node.equation, attrs, node.outputs[0].type.shape, padded)


def _pool_average(node: Node, x: Array) -> Array:
    total = product(node.equation, node.attrs, node.outputs[0].type.shape, x)
    if node.attrs.get("count_include_pad", False):
        return np.asarray(total / np.prod(node.attrs["kernel"]))
    ones = product(node.equation, node.attrs, node.outputs[0].type.shape, np.ones_like(x))
    return np.asarray(total / ones)


def _pool_gradient(saves: bool) -> Callable[..., Grads]:
    def gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
        if grads[0] is None:
            return [None]
        saved = [node.inputs[0]] if saves else []
        return b.emit(
            node, f"{node.op}_backward", [grads[0], *saved], [node.inputs[0].type], node.attrs
        )

    return gradient


def _reduction(name: str, reduction: str | None, **extra: Any) -> OpDef:
    extra.setdefault("gradient", _saved_gradient)
    return OpDef(name, "reduction", reduction_equation(reduction), flops=1, **extra)


register(
    _reduction("reduce_sum", "sum", gradient=linear_gradient, evaluate=_evaluate, linear="jointly"),
    _reduction(
        "reduce_mean",
        "sum",
        gradient=_mean_gradient,
        evaluate=lambda node, x: _evaluate(node, x) / mean_divisor(node),
        linear="jointly",
    ),
    _reduction("reduce_max", "max", evaluate=_evaluate),
    _reduction("reduce_min", "min", evaluate=_evaluate),
    _reduction("reduce_prod", "prod", evaluate=_evaluate),
    # sqrt of a sum of squares: partial results do not simply add up.
    _reduction(
        "reduce_norm",
        None,
        evaluate=lambda node, x: np.sqrt(
            product(node.equation, node.attrs, node.outputs[0].type.shape, x * x)
        ),
    ),
    OpDef(
        "reduce_backward",
        "elementwise",
        "... -> ...",
        flops=2,
        evaluate=_reduce_backward,
    ),
    OpDef(
        "max_pool",
        "reduction",
        pool_equation("max"),
        flops=_windows_flops,
        evaluate=_pool_max,
        gradient=_pool_gradient(saves=True),
    ),
    OpDef("max_pool_backward", "reduction", _pool_backward_equation, flops=_windows_flops),
    OpDef(
        "avg_pool",
        "reduction",
        pool_equation("sum"),
        flops=_windows_flops,
        evaluate=_pool_average,
        gradient=_pool_gradient(saves=False),
    ),
    OpDef("avg_pool_backward", "reduction", _pool_backward_equation, flops=_windows_flops),
)
