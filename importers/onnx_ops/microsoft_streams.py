"""onnxruntime's operators around recurrences (domain com.microsoft): causal convolutions, gates, norms.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.equation import bind
from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.elementwise import same_as_first
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_ops.microsoft_recurrences import sequences, text
from importers.onnx_ops.normalization import emit_norm
from importers.onnx_values import OnnxNode


@rule("CausalConvWithState", domain=MICROSOFT)
def causal_conv(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Each channel's own window over the present and past positions; the last ones are kept."""
    x, weight = e.at(node, 0), e.at(node, 1)
    shape = x.type.shape
    if node.attributes.get("channels_last", 0):
        b, t, *inner = shape
        channels = weight.type.shape[0]
        shape = (b, channels, *inner[:-1], t) if len(inner) > 1 else (b, channels, t)
        # The kernel reads channels where they lie; only the record wants them second.
        x = e.reshape(node, x, shape, "channels")
    result = _windows(e, node, x, weight, 2)
    return [e.reshape(node, result, e.result_type(node).shape, "result"), _kept(e, node, x, 1, 3)]


@rule("VarlenCausalConvWithState", domain=MICROSOFT)
def packed_causal_conv(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The same over tokens of several sequences in a row."""
    x, weight = e.at(node, 0), e.at(node, 1)
    tokens, channels = x.type.shape
    rows = sequences(tokens, required(node, 4).shape[0])
    x = e.reshape(node, x, (rows, channels, tokens // rows), "channels")
    result = e.reshape(node, _windows(e, node, x, weight, 3), e.result_type(node).shape, "result")
    return [result, _kept(e, node, x, 1, 4), _kept(e, node, x, 2, 4)]


def _windows(e: Emitter, node: OnnxNode, x: Value, weight: Value, bias: int) -> Value:
    kernel = weight.type.shape[2:]
    rank = len(kernel)
    if len(x.type.shape) != rank + 2:
        raise ModelFileError(
            f"{node.label}: windows of {list(kernel)} do not fit {list(x.type.shape)}"
        )
    dilation = node.attributes.get("dilation", 1)
    before = (*[(k - 1) // 2 for k in kernel[:-1]], (kernel[-1] - 1) * dilation)
    attrs = {
        "stride": (1,) * rank,
        "dilation": (*[1] * (rank - 1), dilation),
        "padding": before,
        "groups": weight.type.shape[0],
    }
    result = e.emit(node, "conv", [x, weight], x.type, attrs)
    result = e.add_bias(node, result, node.input(bias), channel=1)
    if text(node, "activation", "none") in ("silu", "swish"):
        result = e.emit(node, "silu", [result], x.type, {"epilogue": True}, "activation")
    return result


def _kept(e: Emitter, node: OnnxNode, x: Value, result: int, past: int) -> Value | None:
    """A new state: the last positions, behind those that the old one holds."""
    if node.output(result) is None:
        return None
    out = e.result_type(node, result)
    held = node.input(past)
    if held is not None and held.shape == out.shape:
        return e.emit(node, "copy", [e.operand(held)], out, None, f"state{result}")
    return e.emit(node, "fill", [], out, None, f"state{result}")


@rule("GatedRMSNorm", domain=MICROSOFT)
def gated_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """An RMS norm of each head times an activation of a gate."""
    x, gate = e.at(node, 0), e.at(node, 2)
    width = required(node, 1).shape[-1]
    if not width or x.type.shape[-1] % width:
        raise ModelFileError(f"{node.label}: rows of {x.type.shape[-1]} have no norms of {width}")
    heads = e.reshape(node, x, (*x.type.shape[:-1], x.type.shape[-1] // width, width), "heads")
    attrs = {"rank": 1, "eps": node.attributes.get("epsilon", 1e-5)}
    normal = emit_norm(e, node, "rms_norm", [heads, e.at(node, 1)], attrs)
    normal = e.reshape(node, normal, x.type.shape, "rows")
    op = "sigmoid" if text(node, "activation", "silu") == "sigmoid" else "silu"
    opened = e.emit(node, op, [gate], gate.type, None, "gate")
    return [e.emit(node, "mul", [normal, opened], x.type, {"epilogue": True}, "gated")]


def _branches(e: Emitter, node: OnnxNode, x: Value) -> Value:
    """[..., branches, width] of grouped or flat streams."""
    count = node.attributes.get("num_branches", 0)
    if not count:
        return x
    return e.reshape(node, x, (*x.type.shape[:-1], count, x.type.shape[-1] // count), "branches")


@rule("BranchwiseRMSNorm", domain=MICROSOFT)
def branch_norm(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """An RMS norm of each branch, with a weight of its own or a common one."""
    x = _branches(e, node, e.at(node, 0))
    attrs = {"rank": 1, "eps": node.attributes.get("epsilon", 1e-5)}
    result = emit_norm(e, node, "rms_norm", [x], attrs)
    if node.input(1) is not None:
        scale = e.at(node, 1)
        if scale.type.elements != x.type.shape[-1]:
            scale = e.reshape(node, scale, x.type.shape[-2:], "scale")
        result = e.emit(node, "mul", [result, scale], x.type, {"epilogue": True}, "scaled")
    return [e.reshape(node, result, e.result_type(node).shape, "result")]


@rule("HyperConnectionPreMix", domain=MICROSOFT)
def pre_mix(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A weighted sum of the streams."""
    x, gate = _branches(e, node, e.at(node, 0)), e.at(node, 1)
    if gate.type.elements == x.type.elements // x.type.shape[-1]:
        gate = e.reshape(node, gate, (*x.type.shape[:-1], 1), "gate")
    else:
        gate = e.reshape(node, gate, x.type.shape, "gate")
    weighted = e.emit(node, "mul", [x, gate], x.type, None, "weighted")
    out = e.result_type(node)
    attrs = {"axes": (len(x.type.shape) - 2,), "keepdims": False, "epilogue": True}
    total = e.emit(node, "reduce_sum", [weighted], out, attrs, "sum")
    return [e.scale(node, total, node.attributes.get("reduction_scale", 1.0))]


@rule("HyperConnectionPostMix", domain=MICROSOFT)
def post_mix(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The streams mixed among each other, plus a block's result times a gate per stream."""
    x, block, gate = _branches(e, node, e.at(node, 0)), e.at(node, 1), e.at(node, 2)
    column = e.reshape(node, block, (*block.type.shape[:-1], 1, block.type.shape[-1]), "row")
    if gate.type.elements == x.type.elements // x.type.shape[-1]:
        gate = e.reshape(node, gate, (*x.type.shape[:-1], 1), "gate")
    injected = e.broadcast(node, "mul", [gate, column], "injected")
    if node.input(3) is not None:
        mix = e.at(node, 3)
        shapes = [mix.type.shape, x.type.shape]
        equation = bind("... c k, ... c h -> ... k h", shapes, [x.type.shape])
        x = e.emit(node, "einsum", [mix, x], x.type, {"equation": equation}, "mixed")
    result = e.emit(node, "add", [x, injected], x.type, {"epilogue": True}, "sum")
    return [e.reshape(node, result, e.result_type(node).shape, "result")]


@rule("EngramGate", domain=MICROSOFT)
def engram_gate(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A value times a gate, which is the product of a normalised key and query."""
    key, query, value = (e.at(node, i) for i in range(3))
    attrs: dict[str, int | float] = {"rank": 1, "eps": node.attributes.get("epsilon", 1e-5)}
    normal = []
    for name, x, weight in (("key", key, 3), ("query", query, 4)):
        unit = emit_norm(e, node, "rms_norm", [x], attrs, f"{name}_norm")
        normal.append(
            e.emit(node, "mul", [unit, e.at(node, weight)], x.type, None, f"{name}_scaled")
        )
    products = e.emit(node, "mul", normal, key.type, None, "products")
    column = key.type.with_shape((*key.type.shape[:-1], 1))
    last = {"axes": (len(key.type.shape) - 1,), "keepdims": True}
    dot = e.emit(node, "reduce_sum", [products], column, last, "dot")
    root = e.emit(
        node, "sqrt", [e.emit(node, "abs", [dot], column, None, "size")], column, None, "root"
    )
    signed = e.emit(
        node,
        "mul",
        [root, e.emit(node, "sign", [dot], column, None, "sign")],
        column,
        None,
        "signed",
    )
    gate = e.emit(node, "sigmoid", [signed], column, None, "gate")
    b, t, width = value.type.shape
    row = e.reshape(node, value, (b, t, 1, width), "value_row")
    result = e.emit(node, "mul", [gate, row], key.type, None, "gated")
    if node.output(1) is None:
        return [result, None]
    unit = emit_norm(e, node, "rms_norm", [result], attrs, "result_norm")
    scaled = e.emit(
        node, "mul", [unit, e.at(node, 5)], key.type, {"epilogue": True}, "result_scaled"
    )
    return [result, scaled]


def _conv_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, kernel, past = required(node, 0).type, required(node, 1).shape, node.input(3)
    if past is not None:
        return [x, past.type]
    length = (kernel[-1] - 1) * node.attributes.get("dilation", 1)
    if node.attributes.get("channels_last", 0):
        shape: tuple[int, ...] = (x.shape[0], length, *x.shape[2:])
    else:
        shape = (*x.shape[:-1], length)
    window = node.attributes.get("state_window", 0)
    return [x, x.with_shape((window, *shape) if window else shape)]


def _packed_conv_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, state = required(node, 0).type, required(node, 4).type
    slots = node.attributes.get("state_update_capacity", 0)
    return [x, state, x.with_shape((state.shape[0], slots, x.shape[1]))]


def _pre_mix_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x, count = required(node, 0).type, node.attributes.get("num_branches", 0)
    if count:
        return [x.with_shape((*x.shape[:-1], x.shape[-1] // count))]
    return [x.with_shape((*x.shape[:-2], x.shape[-1]))]


def _engram_types(node: OnnxNode) -> Sequence[TensorType | None]:
    key = required(node, 0).type
    return [key, key]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, "CausalConvWithState"): _conv_types,
    (MICROSOFT, "VarlenCausalConvWithState"): _packed_conv_types,
    (MICROSOFT, "GatedRMSNorm"): same_as_first,
    (MICROSOFT, "BranchwiseRMSNorm"): same_as_first,
    (MICROSOFT, "HyperConnectionPostMix"): same_as_first,
    (MICROSOFT, "HyperConnectionPreMix"): _pre_mix_types,
    (MICROSOFT, "EngramGate"): _engram_types,
}
