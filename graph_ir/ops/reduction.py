"""Reductions, cumulative sums and pooling.

Attributes: `axes` (non-negative) and `keepdims`, or an `equation` of the node's own. Pooling reads
windows, with the attributes of a convolution and `kernel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Dims, Equation, Window, names_of
from graph_ir.evaluate import Array, fold, product, unfold
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


def _whole_divisor(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    return {"divisor": mean_divisor(node)} if name in node.equation.contracted else {}


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


def _kernel_axes(dims: Dims) -> tuple[int, ...]:
    """Axes of the kernel names in an unfolded tensor."""
    kernels = {d.kernel for d in dims if isinstance(d, Window)}
    return tuple(i for i, name in enumerate(names_of(dims)) if name in kernels)


def _pool_windows(node: Node, x: Array, dims: Dims) -> Array:
    """What each window reads, in its last axis."""
    axes = _kernel_axes(dims)
    # Zeros are no padding for a maximum: windows read the least number outside of the image.
    taps = unfold(x, dims, node.equation, node.attrs, -np.inf)
    windows = np.moveaxis(taps, axes, range(-len(axes), 0))
    return windows.reshape(*windows.shape[: -len(axes)], -1)


def _pool_max(node: Node, x: Array) -> Array | tuple[Array, Array]:
    """The maxima and, where training keeps them, their places within the windows."""
    windows = _pool_windows(node, x, node.equation.inputs[0])
    best = windows.max(axis=-1)
    return (best, windows.argmax(axis=-1)) if len(node.outputs) > 1 else best


def _pool_counts(node: Node, image: Value, dims: Dims) -> Any:
    """Number of elements that each mean is over: padding counts with `count_include_pad`."""
    if node.attrs.get("count_include_pad", False):
        return np.prod(node.attrs["kernel"])
    taps = unfold(np.ones(image.type.shape), dims, node.equation, node.attrs)
    return taps.sum(axis=_kernel_axes(dims))


def _pool_average(node: Node, x: Array) -> Array:
    dims = node.equation.inputs[0]
    total = unfold(x, dims, node.equation, node.attrs).sum(axis=_kernel_axes(dims))
    return np.asarray(total / _pool_counts(node, node.inputs[0], dims))


def _pool_fold(node: Node, windows: Array) -> Array:
    """Adds up what flows back to each element from all windows that read it."""
    (dims,) = node.equation.outputs
    shape = node.outputs[0].type.shape
    return fold(windows, dims, names_of(dims), node.equation, node.attrs, shape)


def _pool_max_backward(node: Node, dy: Array, x: Array, *places: Array) -> Array:
    """The first maximum of each window gets the window's gradient; it is looked for where none is kept."""
    (dims,) = node.equation.outputs
    axes = _kernel_axes(dims)
    windows = _pool_windows(node, x, dims)
    best = places[0] if places else windows.argmax(axis=-1)
    hit = np.zeros_like(windows)
    np.put_along_axis(hit, best[..., None], dy[..., None], axis=-1)
    taps = [node.equation.sizes[names_of(dims)[i]] for i in axes]
    return _pool_fold(node, np.moveaxis(hit.reshape(*dy.shape, *taps), range(-len(axes), 0), axes))


def _pool_average_backward(node: Node, dy: Array) -> Array:
    (dims,) = node.equation.outputs
    share = dy / _pool_counts(node, node.outputs[0], dims)
    shape = [node.equation.sizes[n] for n in names_of(dims)]
    return _pool_fold(node, np.broadcast_to(np.expand_dims(share, _kernel_axes(dims)), shape))


def _pool_gradient(saves: bool) -> Callable[..., Grads]:
    def gradient(b: GradientBuilder, node: Node, grads: Grads) -> Grads:
        if grads[0] is None:
            return [None]
        saved = [node.inputs[0], *node.outputs[1:]] if saves else []
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
        localize=_whole_divisor,
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
    # A second result, if there is one: the places of the maxima, which the backward pass reads.
    OpDef(
        "max_pool",
        "reduction",
        pool_equation("max"),
        flops=_windows_flops,
        evaluate=_pool_max,
        gradient=_pool_gradient(saves=True),
    ),
    OpDef(
        "max_pool_backward",
        "reduction",
        _pool_backward_equation,
        flops=_windows_flops,
        evaluate=_pool_max_backward,
    ),
    OpDef(
        "avg_pool",
        "reduction",
        pool_equation("sum"),
        flops=_windows_flops,
        evaluate=_pool_average,
        gradient=_pool_gradient(saves=False),
        linear="jointly",
    ),
    OpDef(
        "avg_pool_backward",
        "reduction",
        _pool_backward_equation,
        flops=_windows_flops,
        evaluate=_pool_average_backward,
        linear="jointly",
    ),
)
