"""Quantised networks of QONNX, Brevitas and FINN: numbers of few bits kept in floating point.

Source: the operator descriptions in github.com/fastmachinelearning/qonnx, docs/qonnx-custom-ops, and in
github.com/Xilinx/finn, custom_op/fpgadataflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_values import OnnxNode

_QUANT_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
_DATAFLOW = ("finn.custom_op.fpgadataflow", "finn.custom_op.fpgadataflow.hls")
_QUANTIZERS = ("Quant", "IntQuant", "FloatQuant", "BipolarQuant", "Trunc")


def quantizer(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Rounds to few levels; the result stays in floating point."""
    operands = [e.at(node, 0), *(e.operand(v) for v in node.inputs[1:2] if v is not None)]
    return [e.emit(node, "quantize", operands, e.result_type(node), {"axis": 1})]


def multi_threshold(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Counts how many of a channel's thresholds each element reaches."""
    return [emit_thresholds(e, node, e.at(node, 0), 1)]


def emit_thresholds(e: Emitter, node: OnnxNode, x: Value, index: int, label: str = "") -> Value:
    """Emits the count for the thresholds [channels or 1, steps] that are operand `index`."""
    table = e.at(node, index)
    channel = len(x.type.shape) - 1 if len(x.type.shape) == 2 else 1
    attrs = {"axis": channel}
    return e.emit(node, "count_thresholds", [x, table], e.result_type(node), attrs, label)


def matrix_unit(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A product with a weight [inputs, outputs], then thresholds if there are any."""
    x, weight = e.at(node, 0), e.at(node, 1)
    out = e.result_type(node)
    sums = e.emit(node, "matmul", [x, weight], out, None, "" if len(node.inputs) < 3 else "product")
    if node.input(2) is None:
        return [sums]
    return [emit_thresholds(e, node, sums, 2)]


for _domain in _QUANT_DOMAINS:
    rule(*_QUANTIZERS, domain=_domain)(quantizer)
    rule("MultiThreshold", domain=_domain)(multi_threshold)
for _domain in _DATAFLOW:
    rule("MVAU", "MVAU_hls", "MVAU_rtl", "MatrixVectorActivation", domain=_domain)(matrix_unit)


def _matrix_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, weight = required(node, 0).type, required(node, 1).type
    return [x.with_shape((*x.shape[:-1], weight.shape[-1]))]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    **{
        (d, name): same_as_first
        for d in _QUANT_DOMAINS
        for name in (*_QUANTIZERS, "MultiThreshold")
    },
    **{
        (d, name): _matrix_types
        for d in _DATAFLOW
        for name in ("MVAU", "MVAU_hls", "MVAU_rtl", "MatrixVectorActivation")
    },
}
