"""Operators whose images have their channels last: com.ms.internal.nhwc and the Nhwc* operators.

Their kernels read channels where they lie; only the records want them second, so a view says it, and no
copy is counted. onnxruntime makes these operators itself when it lays a model out for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.emitter import RULES, Emitter, required, rule
from importers.onnx_values import OnnxNode, OnnxValue

NHWC = "com.ms.internal.nhwc"
_CONVS = ("Conv", "ConvInteger", "QLinearConv", "FusedConv")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "QLinearAveragePool")
_GLOBAL = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "QLinearGlobalAveragePool")
_SAME_SHAPE = ("BatchNormalization", "InstanceNormalization", "LRN")


def channels_first(shape: Sequence[int]) -> tuple[int, ...]:
    """[n, ..., c] as [n, c, ...]."""
    return (shape[0], shape[-1], *shape[1:-1])


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """[n, c, ...] as [n, ..., c]."""
    return (shape[0], *shape[2:], shape[1])


def as_channels_first(e: Emitter, node: OnnxNode, index: int = 0) -> OnnxNode:
    """The same node on views with channels second, of operand `index` and of the results."""
    x = required(node, index)
    view = OnnxValue(f"{x.name}.channels", x.type.with_shape(channels_first(x.shape)))
    e.define(view, e.reshape(node, e.operand(x), view.shape, "channels"))
    outputs = [
        OnnxValue(v.name, v.type.with_shape(channels_first(v.shape)))
        if v is not None and len(v.shape) == len(x.shape)
        else v
        for v in node.outputs
    ]
    inputs = [*node.inputs[:index], view, *node.inputs[index + 1 :]]
    return replace(node, inputs=inputs, outputs=outputs)


def back(e: Emitter, node: OnnxNode, results: Sequence[Value | None]) -> list[Value | None]:
    """The results with the shapes that the node has them in."""
    return [
        value
        if value is None or (type_ := node.output(i)) is None
        else e.reshape(node, value, type_.shape, f"result{i}")
        for i, value in enumerate(results)
    ]


def _by_standard_rule(domain: str, op_type: str) -> Callable[..., Sequence[Value | None]]:
    def translate(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
        inner = as_channels_first(e, node)
        inner.domain, inner.op_type = domain, op_type
        return back(e, node, RULES[(domain, op_type)](e, inner))

    return translate


for _name in (*_CONVS, *_POOLS, *_GLOBAL, *_SAME_SHAPE):
    _foreign = _name in ("FusedConv", "QLinearAveragePool", "QLinearGlobalAveragePool")
    rule(_name, domain=NHWC)(_by_standard_rule("com.microsoft" if _foreign else "", _name))
rule("NhwcConv", domain="com.microsoft")(_by_standard_rule("", "Conv"))
rule("NhwcFusedConv", domain="com.microsoft")(_by_standard_rule("com.microsoft", "FusedConv"))
rule("NhwcMaxPool", domain="com.microsoft")(_by_standard_rule("", "MaxPool"))


def window_positions(node: OnnxNode, space: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """How many places a window has in each spatial dim.

    Raises:
        ModelFileError: a stride is not positive.
    """
    rank = len(kernel)
    attributes = node.attributes
    stride = attributes.get("strides") or [1] * rank
    dilation = attributes.get("dilations") or [1] * rank
    pads = attributes.get("pads") or [0] * 2 * rank
    auto = attributes.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    if len(space) != rank or min(stride, default=1) < 1 or len(pads) != 2 * rank:
        raise ModelFileError(f"{node.label}: windows of {list(kernel)} do not fit {list(space)}")
    if auto.startswith("SAME"):
        return [-(-n // s) for n, s in zip(space, stride, strict=True)]
    if auto == "VALID":
        pads = [0] * 2 * rank
    counts = []
    for i in range(rank):
        free = space[i] + pads[i] + pads[rank + i] - dilation[i] * (kernel[i] - 1) - 1
        whole = -(-free // stride[i]) if attributes.get("ceil_mode") else free // stride[i]
        counts.append(max(whole + 1, 0))
    return counts


def conv_types(
    node: OnnxNode, weight: int = 1, *, last: bool = True
) -> Sequence[TensorType | None]:
    """Type of a convolution's result; the weight is [k, c / groups, ...] in either layout."""
    x, w = required(node, 0).type, required(node, weight).type
    if len(x.shape) < 3 or len(w.shape) != len(x.shape):
        raise ModelFileError(f"{node.label}: shapes {list(x.shape)} and {list(w.shape)} do not fit")
    first = channels_first(x.shape) if last else x.shape
    space = window_positions(node, first[2:], w.shape[2:])
    shape = (first[0], w.shape[0], *space)
    return [x.with_shape(channels_last(shape) if last else shape)]


def pool_types(node: OnnxNode, *, last: bool = True) -> Sequence[TensorType | None]:
    """Type of a pooling's result, and of the places of the maxima."""
    x = required(node, 0).type
    first = channels_first(x.shape) if last else x.shape
    space = window_positions(node, first[2:], node.attributes.get("kernel_shape") or ())
    shape = (*first[:2], *space)
    found = x.with_shape(channels_last(shape) if last else shape)
    return [found, found]


def global_types(node: OnnxNode, *, last: bool = True) -> Sequence[TensorType | None]:
    """Type of what is left of an image's channels."""
    x = required(node, 0).type
    ones = (1,) * (len(x.shape) - 2)
    return [x.with_shape((x.shape[0], *ones, x.shape[-1]) if last else (*x.shape[:2], *ones))]


def _quantized_conv_types(node: OnnxNode) -> Sequence[TensorType | None]:
    return conv_types(node, 3)


def _same(node: OnnxNode) -> Sequence[TensorType | None]:
    return [required(node, 0).type]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    **{(NHWC, name): conv_types for name in _CONVS},
    **{(NHWC, name): pool_types for name in _POOLS},
    **{(NHWC, name): global_types for name in _GLOBAL},
    **{(NHWC, name): _same for name in _SAME_SHAPE},
    (NHWC, "QLinearConv"): _quantized_conv_types,
    ("com.microsoft", "NhwcConv"): conv_types,
    ("com.microsoft", "NhwcFusedConv"): conv_types,
    ("com.microsoft", "NhwcMaxPool"): pool_types,
}
