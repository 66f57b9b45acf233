"""Operators of other makers' domains: plug-ins, custom operators of libraries, compiled parts.

Some mean what a standard operator means and are translated so. Tokenizers, picture codecs and the like do
what the data decides: they cost what they move, as the standard's own string operators do. Of the others no
equation is public: such a node imports as `unknown`, which counts the bytes of its operands and results; the
report's coverage and a note say so. Result types come from the file's value_info, or from what the maker's
documentation says of them.

Sources: plugin folders of github.com/NVIDIA/TensorRT; docs/en/06-custom-ops of
    github.com/open-mmlab/mmdeploy; docs/custom_ops.md of github.com/microsoft/onnxruntime-extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.channels_last import window_positions
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import RULES, Emitter, Rule, required, rule
from importers.onnx_ops.signal import by_bytes as moved
from importers.onnx_values import OnnxNode

_PLUGINS = ("", "TRT", "trt", "trt.plugins", "mmdeploy")
_MMCV = ("mmcv", "mmdeploy")
_EXTENSIONS = ("ai.onnx.contrib", "com.microsoft.extensions")
_DOMAINS = frozenset(
    {
        *("TRT", "trt", "trt.plugins", "mmcv", "mmdeploy"),
        *("ai.onnx.preview.training", "com.microsoft.experimental"),
        *("org.pytorch.aten", "org.pytorch._caffe2", "org.openvinotoolkit"),
    }
)
"""Domains whose operators import without a rule."""
_COMPILED = frozenset({"AttnLSTM", "EPContext", "Snpe"})
"""Of com.microsoft: parts that were compiled for one device, and what its authors have given up."""
_CAFFE2 = frozenset({"GRUUnit", "DynamicSlice", "GivenTensorFill"})
_SUPPRESSIONS: Mapping[str, str] = {
    "EfficientNMS_TRT": "max_output_boxes",
    "BatchedNMS_TRT": "keepTopK",
    "BatchedNMSDynamic_TRT": "keepTopK",
}
_CROPS = ("PyramidROIAlign_TRT", "MultilevelCropAndResize_TRT")


def rule_without_name(domain: str, op_type: str) -> Rule | None:
    """How an operator that has no rule of its own imports all the same, if it does."""
    if domain in _EXTENSIONS:
        return moved
    known = domain in _DOMAINS or (domain == "com.microsoft" and op_type in _COMPILED)
    plugin = op_type in _CAFFE2 or op_type.endswith(("_TRT", "PluginDynamic"))
    return by_bytes if known or (domain == "" and plugin) else None


def by_bytes(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """An `unknown` node: nothing but its operands and results is known of it."""
    attrs = {"frontend": f"{node.domain or 'ai.onnx'}::{node.op_type}"}
    return as_record(e, node, "unknown", attrs)


def as_record(
    e: Emitter, node: OnnxNode, op: str, attrs: Mapping[str, Any]
) -> Sequence[Value | None]:
    """One record with the node's own operands and results."""
    present = [i for i, v in enumerate(node.outputs) if v is not None]
    types = [e.result_type(node, i) for i in present]
    operands = [e.operand(v) for v in node.inputs if v is not None and v.sequence is None]
    found = dict(zip(present, e.emit_all(node, op, operands, types, attrs), strict=True))
    return [found.get(i) for i in range(len(node.outputs))]


def suppression(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Scores are sorted per class, then boxes are compared with those kept before."""
    boxes, scores = e.at(node, 0), e.at(node, 1)
    types = [scores.type, scores.type.with_dtype(DType.INT64)]
    attrs = {"axis": -1, "descending": True}
    _, order = e.emit_all(node, "sort", [scores], types, attrs, "sort")
    results = [e.result_type(node, i) for i in range(len(node.outputs))]
    return e.emit_all(node, "gather_nd", [boxes, order], results)


def crops(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Boxes are cut out of the level that suits their size, each element a mix of four."""
    level = e.at(node, 1)
    operands = [level, e.at(node, 0)]
    return [e.emit(node, "interpolate", operands, e.result_type(node), {"mode": "linear"})]


def _deformed(node: OnnxNode) -> OnnxNode:
    """The standard DeformConv of operands x, offsets, (mask,) weight, bias."""
    masked = "Modulated" in node.op_type
    order = (0, 3, 1, 4, 2) if masked else (0, 2, 1)
    old = node.attributes
    attributes = {
        "strides": old.get("stride"),
        "pads": [*old.get("padding", (0, 0)), *old.get("padding", (0, 0))],
        "dilations": old.get("dilation"),
        "group": old.get("groups", 1),
    }
    inputs = [node.input(i) for i in order]
    return replace(node, domain="", op_type="DeformConv", attributes=attributes, inputs=inputs)


def deform_conv(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """As the standard operator."""
    return RULES[("", "DeformConv")](e, _deformed(node))


def grid_sample(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """As the standard operator, with its mode as a number."""
    mode = ("linear", "nearest", "cubic")[node.attributes.get("interpolation_mode", 0)]
    inner = replace(node, domain="", op_type="GridSample", attributes={"mode": mode})
    return RULES[("", "GridSample")](e, inner)


def roi_align(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """As the standard operator; the boxes name their image themselves."""
    attrs = {"mode": "linear"}
    return [e.emit(node, "interpolate", e.operands(node), e.result_type(node), attrs)]


def instance_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """As the standard operator."""
    return RULES[("", "InstanceNormalization")](e, node)


for _domain in _PLUGINS:
    rule(*_SUPPRESSIONS, domain=_domain)(suppression)
    rule(*_CROPS, domain=_domain)(crops)
    rule("TRTBatchedNMS", domain=_domain)(suppression)
    rule("InstanceNormalization_TRT", "TRTInstanceNormalization", domain=_domain)(instance_norm)
for _domain in _MMCV:
    rule("MMCVDeformConv2d", "MMCVModulatedDeformConv2d", domain=_domain)(deform_conv)
    rule("grid_sampler", domain=_domain)(grid_sample)
    rule("MMCVRoiAlign", "MMCVRoIAlign", domain=_domain)(roi_align)


def _suppression_types(node: OnnxNode) -> Sequence[TensorType | None]:
    boxes = required(node, 0).type
    name = _SUPPRESSIONS.get(node.op_type, "keep_topk")
    kept = node.attributes.get(name)
    if kept is None:
        raise ModelFileError(f"{node.label} lacks its attribute {name}")
    batch = boxes.shape[0]
    if node.op_type == "TRTBatchedNMS":
        return [boxes.with_shape((batch, kept, 5)), TensorType((batch, kept), DType.INT32)]
    rows = boxes.with_shape((batch, kept))
    # Only the older plug-ins give their classes as floats.
    classes = rows.with_dtype(DType.INT32) if node.op_type == "EfficientNMS_TRT" else rows
    return [TensorType((batch, 1), DType.INT32), boxes.with_shape((batch, kept, 4)), rows, classes]


def _crop_types(node: OnnxNode) -> Sequence[TensorType | None]:
    boxes, level, size = required(node, 0).type, required(node, 1), node.attributes["pooled_size"]
    return [boxes.with_shape((*boxes.shape[:2], level.shape[1], size, size))]


def _deform_types(node: OnnxNode) -> Sequence[TensorType | None]:
    inner = _deformed(node)
    x, weight = required(inner, 0).type, required(inner, 1).type
    kernel = weight.shape[2:]
    space = window_positions(inner, x.shape[2:], kernel)
    return [x.with_shape((x.shape[0], weight.shape[0], *space))]


def _grid_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, grid = required(node, 0).type, required(node, 1)
    return [x.with_shape((*x.shape[:2], *grid.shape[1:-1]))]


def _roi_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, boxes = required(node, 0).type, required(node, 1)
    size = (node.attributes["output_height"], node.attributes["output_width"])
    return [x.with_shape((boxes.shape[0], x.shape[1], *size))]


def _gradient_types(node: OnnxNode) -> Sequence[TensorType | None]:
    """A gradient per variable, whose values are the first operands."""
    count = len(node.attributes.get("xs", ()))
    return [v.type if v is not None else None for v in node.inputs[:count]]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    ("ai.onnx.preview.training", "Gradient"): _gradient_types,
    **{
        (d, name): _suppression_types
        for d in _PLUGINS
        for name in (*_SUPPRESSIONS, "TRTBatchedNMS")
    },
    **{(d, name): _crop_types for d in _PLUGINS for name in _CROPS},
    **{
        (d, name): same_as_first
        for d in _PLUGINS
        for name in (
            "DisentangledAttention_TRT",
            "InstanceNormalization_TRT",
            "TRTInstanceNormalization",
        )
    },
    **{
        (d, name): _deform_types
        for d in _MMCV
        for name in ("MMCVDeformConv2d", "MMCVModulatedDeformConv2d")
    },
    **{(d, "grid_sampler"): _grid_types for d in _MMCV},
    **{(d, name): _roi_types for d in _MMCV for name in ("MMCVRoiAlign", "MMCVRoIAlign")},
}
