"""Convolutions: products that read an operand through sliding windows.

Attributes: `stride`, `padding` (zeros at the start), `dilation` per spatial dim, and `groups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graph_ir.equation import Dim, Equation, Window
from graph_ir.gradients import product_gradient
from graph_ir.op_def import OpDef, register
from graph_ir.ops.contraction import evaluate_product
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.graph import Node

SPATIAL = (("y", "r"), ("x", "q"), ("z", "p"), ("w", "o"))


def conv_equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    """`n (g c) (y+r) (x+q), (g k) c r q -> n (g k) y x`.

    A spatial dim whose kernel has one tap, with stride 1 and no padding, is an ordinary dim.
    """
    source, weight = inputs[0].shape, inputs[1].shape
    return _windowed(source, outputs[0].shape, weight, attrs, transposed=False)


def conv_transpose_equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    """`n (g c) y x, (g c) k r q -> n (g k) (y+r) (x+q)`."""
    source, weight = inputs[0].shape, inputs[1].shape
    return _windowed(outputs[0].shape, source, weight, attrs, transposed=True)


def _windowed(
    wide: Sequence[int],
    narrow: Sequence[int],
    weight: Sequence[int],
    attrs: Mapping[str, Any],
    *,
    transposed: bool,
) -> Equation:
    """Both kinds of convolution relate a wide image, read through windows, to a narrow one."""
    rank = len(weight) - 2
    groups = attrs.get("groups", 1)
    stride = attrs.get("stride", (1,) * rank)
    padding = attrs.get("padding", (0,) * rank)
    # weight is [narrow channels, wide channels / groups, ...] in both kinds.
    sizes = {"n": wide[0], "g": groups, "c": weight[1], "k": weight[0] // groups}
    grouped = ("g",) if groups > 1 else ()
    if groups == 1:
        del sizes["g"]
    wide_dims: list[Dim] = [("n",), (*grouped, "c")]
    narrow_dims: list[Dim] = [("n",), (*grouped, "k")]
    weight_dims: list[Dim] = [(*grouped, "k"), ("c",)]
    windows = set()
    for i in range(rank):
        out, tap = SPATIAL[i]
        sizes[out] = narrow[2 + i]
        narrow_dims.append((out,))
        if (
            weight[2 + i] == 1
            and stride[i] == 1
            and wide[2 + i] == narrow[2 + i]
            and not padding[i]
        ):
            wide_dims.append((out,))
            weight_dims.append(())
            continue
        sizes[tap] = weight[2 + i]
        wide_dims.append(Window(out, tap))
        weight_dims.append((tap,))
        windows |= {out, tap}
    w, a, b = tuple(weight_dims), tuple(wide_dims), tuple(narrow_dims)
    operands, result = ((b, w), a) if transposed else ((a, w), b)
    return Equation(operands, (result,), sizes, frozenset(windows))


def localize_groups(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    """A device that holds some of the groups has fewer."""
    return {"groups": stop - start} if name == "g" else {}


register(
    OpDef(
        "conv",
        "contraction",
        conv_equation,
        gradient=product_gradient,
        evaluate=evaluate_product,
        linear="each",
        localize=localize_groups,
    ),
    OpDef(
        "conv_transpose",
        "contraction",
        conv_transpose_equation,
        gradient=product_gradient,
        evaluate=evaluate_product,
        linear="each",
        localize=localize_groups,
    ),
)
