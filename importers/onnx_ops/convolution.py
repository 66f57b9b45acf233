"""Conv, ConvTranspose and what else slides a weight over an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graph_ir.graph import Value
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_values import OnnxNode


def window_attributes(
    node: OnnxNode, image: Sequence[int], result: Sequence[int], kernel: Sequence[int]
) -> dict[str, Any]:
    """Stride, dilation and the zeros in front of each spatial dim.

    Args:
        node: has `strides`, `dilations`, `pads` or `auto_pad`.
        image: spatial dims that the windows slide over.
        result: number of window positions per dim.
        kernel: taps per dim.
    """
    rank = len(kernel)
    stride = tuple(node.attributes.get("strides") or (1,) * rank)
    dilation = tuple(node.attributes.get("dilations") or (1,) * rank)
    pads = node.attributes.get("pads") or [0] * (2 * rank)
    auto = node.attributes.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    padding = tuple(pads[:rank])
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (o - 1) * s + (k - 1) * d + 1 - i)
            for i, o, k, s, d in zip(image, result, kernel, stride, dilation, strict=True)
        ]
        padding = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total)
    elif auto == "VALID":
        padding = (0,) * rank
    return {"stride": stride, "dilation": dilation, "padding": padding}


@rule("Conv")
def conv(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """x[n, c, ...] * w[k, c / groups, ...] + b[k]."""
    return [emit_conv(e, node, e.at(node, 0), e.at(node, 1), node.input(2))]


def emit_conv(e: Emitter, node: OnnxNode, x: Value, weight: Value, bias: Any) -> Value:
    """Emits a convolution and its bias."""
    out = e.result_type(node)
    attrs = window_attributes(node, x.type.shape[2:], out.shape[2:], weight.type.shape[2:])
    attrs["groups"] = node.attributes.get("group", 1)
    result = e.emit(node, "conv", [x, weight], out, attrs)
    return e.add_bias(node, result, bias, channel=1)


@rule("ConvTranspose")
def conv_transpose(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """x[n, c, ...] spread through w[c, k / groups, ...], + b[k]."""
    x, weight, out = e.at(node, 0), e.at(node, 1), e.result_type(node)
    attrs = window_attributes(node, out.shape[2:], x.type.shape[2:], weight.type.shape[2:])
    attrs["groups"] = node.attributes.get("group", 1)
    result = e.emit(node, "conv_transpose", [x, weight], out, attrs)
    return [e.add_bias(node, result, node.input(2), channel=1)]


@rule("DeformConv")
def deform_conv(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Samples the image at offsets and contracts the samples with the weight, in one kernel."""
    x, weight, out = e.at(node, 0), e.at(node, 1), e.result_type(node)
    attrs = window_attributes(node, x.type.shape[2:], out.shape[2:], weight.type.shape[2:])
    attrs["groups"] = node.attributes.get("group", 1)
    reads = [x, weight, e.at(node, 2)]
    if node.input(4) is not None:
        reads.append(e.at(node, 4))
    result = e.emit(node, "deform_conv", reads, out, attrs)
    return [e.add_bias(node, result, node.input(3), channel=1)]


@rule("Col2Im")
def col2im(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Overlapping patches are summed into an image."""
    required(node, 0)
    return [e.emit(node, "scatter_nd", [e.at(node, 0)], e.result_type(node))]
