"""The layouts that onnxruntime makes for itself: channels in blocks, and the rarer operators with them last.

com.microsoft.nchwc keeps blocks of 8 or 16 channels together; the file's shapes are those without blocks.
Source: core/graph/contrib_ops/nchwc_schema_defs.cc and core/optimizer/nchwc_transformer.cc of onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.channels_last import (
    NHWC,
    as_channels_first,
    back,
    channels_first,
    channels_last,
    conv_types,
    global_types,
    pool_types,
)
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import RULES, Emitter, Rule, known_ints, required, rule
from importers.onnx_values import OnnxNode

NCHWC = "com.microsoft.nchwc"
_POOLS = ("MaxPool", "AveragePool")
_GLOBAL = ("GlobalAveragePool", "GlobalMaxPool")


def _as(domain: str, op_type: str) -> Rule:
    """The rule of the same operator in another domain."""

    def translate(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
        return RULES[(domain, op_type)](e, replace(node, domain=domain, op_type=op_type))

    return translate


rule("Conv", domain=NCHWC)(_as("com.microsoft", "FusedConv"))
for _name in (*_POOLS, *_GLOBAL, "Upsample"):
    rule(_name, domain=NCHWC)(_as("", _name))
for _name in ("Resize", "GridSample"):
    # Neighbours are mixed in the same way wherever the channels lie.
    rule(_name, domain=NHWC)(_as("", _name))


@rule("MemcpyFromHost", "MemcpyToHost")
@rule("ReorderInput", "ReorderOutput", domain=NCHWC)
def reorder(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A copy with another order of the elements, perhaps without the channels that filled a block."""
    x, out = e.at(node, 0), e.result_type(node)
    if x.type.shape == out.shape:
        return [e.emit(node, "copy", [x], out)]
    return [e.emit(node, "gather_nd", [x, x], out)]


@rule("DepthToSpace", "SpaceToDepth", "ConvTranspose", "MaxUnpool", domain=NHWC)
def standard(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The standard operator on a view with channels second."""
    inner = as_channels_first(e, node)
    return back(e, node, RULES[("", node.op_type)](e, replace(inner, domain="")))


@rule("QLinearConvTranspose", domain=NHWC)
def quantized_transpose(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X, scale, zero, W, scale, zero, scale and zero of the result, bias: as QLinearConv."""
    inner = as_channels_first(e, node)
    inputs = [inner.input(0), inner.input(3), inner.input(8)]
    plain = replace(inner, domain="", op_type="ConvTranspose", inputs=inputs)
    return back(e, node, RULES[("", "ConvTranspose")](e, plain))


@rule("ConvTransposeWithDynamicPads", domain="com.microsoft")
def dynamic_transpose(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Pads are the third operand."""
    return RULES[("", "ConvTranspose")](e, _with_pads(node))


def _with_pads(node: OnnxNode) -> OnnxNode:
    pads = known_ints(node.input(2))
    attributes = dict(node.attributes) | ({"pads": list(pads)} if pads else {})
    inputs = [node.input(0), node.input(1), node.input(3)]
    return replace(node, domain="", op_type="ConvTranspose", attributes=attributes, inputs=inputs)


@rule("MaxpoolWithMask", domain="com.microsoft")
def masked_pool(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The largest element of each window that the mask lets through."""
    return RULES[("", "MaxPool")](e, replace(node, domain="", op_type="MaxPool"))


def _transposed_types(
    node: OnnxNode, weight: int = 1, *, last: bool = False
) -> Sequence[TensorType | None]:
    """Type of a transposed convolution's result; the weight is [c, k / groups, ...]."""
    x, w, attributes = required(node, 0).type, required(node, weight).shape, node.attributes
    rank = len(w) - 2
    if rank < 1 or len(x.shape) != rank + 2:
        raise ModelFileError(f"{node.label}: {list(x.shape)} and {list(w)} do not fit")
    first = channels_first(x.shape) if last else x.shape
    stride = attributes.get("strides") or [1] * rank
    dilation = attributes.get("dilations") or [1] * rank
    pads = attributes.get("pads") or [0] * 2 * rank
    extra = attributes.get("output_padding") or [0] * rank
    given = attributes.get("output_shape")
    auto = attributes.get("auto_pad", b"NOTSET")
    if given:
        space = list(given[-rank:])
    elif (auto.decode() if isinstance(auto, bytes) else auto).startswith("SAME"):
        space = [n * s for n, s in zip(first[2:], stride, strict=True)]
    else:
        space = [
            stride[i] * (first[2 + i] - 1)
            + extra[i]
            + (w[2 + i] - 1) * dilation[i]
            + 1
            - pads[i]
            - pads[rank + i]
            for i in range(rank)
        ]
    shape = (first[0], w[1] * attributes.get("group", 1), *space)
    if min(shape, default=0) < 0:
        raise ModelFileError(f"{node.label}: its pads leave nothing of the result")
    return [x.with_shape(channels_last(shape) if last else shape)]


def _unpool_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, given = required(node, 0).type, known_ints(node.input(2))
    if given:
        return [x.with_shape(given)]
    n, *space, c = x.shape
    kernel = node.attributes["kernel_shape"]
    stride = node.attributes.get("strides") or [1] * len(kernel)
    pads = node.attributes.get("pads") or [0] * 2 * len(kernel)
    sizes = [
        (size - 1) * stride[i] + kernel[i] - pads[i] - pads[len(kernel) + i]
        for i, size in enumerate(space)
    ]
    return [x.with_shape((n, *sizes, c))]


def _block_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, b = required(node, 0).type, node.attributes["blocksize"]
    n, h, w, c = x.shape
    if node.op_type == "DepthToSpace":
        return [x.with_shape((n, h * b, w * b, c // (b * b)))]
    return [x.with_shape((n, h // b, w // b, c * b * b))]


def _resize_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, scales, sizes = required(node, 0).type, node.input(2), known_ints(node.input(3))
    if sizes and len(sizes) == len(x.shape):
        return [x.with_shape(sizes)]
    if scales is None or scales.data is None or scales.data.size != len(x.shape):
        return [None]
    factors = scales.data.reshape(-1).tolist()
    return [x.with_shape(tuple(int(n * f) for n, f in zip(x.shape, factors, strict=True)))]


def _grid_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, grid = required(node, 0).type, required(node, 1).shape
    return [x.with_shape((x.shape[0], *grid[1:-1], x.shape[-1]))]


def _upsample_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    scales = node.attributes.get("scales") or (1,) * len(x.shape)
    return [x.with_shape(tuple(n * int(f) for n, f in zip(x.shape, scales, strict=True)))]


def _reorder_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, last = required(node, 0).type, node.attributes.get("channels_last", 0)
    if node.op_type == "ReorderInput":
        return [x.with_shape(channels_first(x.shape)) if last else x]
    shape = (x.shape[0], node.attributes.get("channels", x.shape[1]), *x.shape[2:])
    return [x.with_shape(channels_last(shape) if last else shape)]


def _by_first(types: Callable[..., Sequence[TensorType | None]]) -> Callable[..., Any]:
    return lambda node: types(node, last=False)


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (NCHWC, "Conv"): _by_first(conv_types),
    **{(NCHWC, name): _by_first(pool_types) for name in _POOLS},
    **{(NCHWC, name): _by_first(global_types) for name in _GLOBAL},
    (NCHWC, "Upsample"): _upsample_types,
    (NCHWC, "ReorderInput"): _reorder_types,
    (NCHWC, "ReorderOutput"): _reorder_types,
    (NHWC, "ConvTranspose"): lambda node: _transposed_types(node, last=True),
    (NHWC, "QLinearConvTranspose"): lambda node: _transposed_types(node, 3, last=True),
    (NHWC, "DepthToSpace"): _block_types,
    (NHWC, "SpaceToDepth"): _block_types,
    (NHWC, "MaxUnpool"): _unpool_types,
    (NHWC, "Resize"): _resize_types,
    (NHWC, "GridSample"): _grid_types,
    ("", "MemcpyFromHost"): same_as_first,
    ("", "MemcpyToHost"): same_as_first,
    ("com.microsoft", "ConvTransposeWithDynamicPads"): lambda node: _transposed_types(
        _with_pads(node)
    ),
    ("com.microsoft", "MaxpoolWithMask"): _by_first(pool_types),
}
