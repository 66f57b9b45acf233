"""onnxruntime's gated delta net (domain com.microsoft): tokens of all sequences in a row.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_ops.microsoft_recurrences import Step, gate, recurrence, sequences, text
from importers.onnx_values import OnnxNode


@rule("GatedDeltaNet", domain=MICROSOFT)
def gated_delta_net(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Tokens of all sequences in a row, each head's state [v, k]; gates may be computed inside."""
    q, k, v, batch = _packed_operands(e, node)
    t = q.type.shape[1]
    heads, width = v.type.shape[2], v.type.shape[3]
    shape = (batch, heads, width, k.type.shape[3])
    if node.input(6) is not None:
        state = _fewer_rows(e, node, e.at(node, 6), batch)
    else:
        state = e.emit(node, "fill", [], q.type.with_shape(shape), {"value": 0}, "no_state")
    if node.attributes.get("qk_l2_norm", 0):
        q, k = (_unit(e, node, x, name) for x, name in ((q, "query"), (k, "key")))
    decay, beta = (
        e.reshape(node, e.at(node, i), (batch, t, *required(node, i).shape[-rank:]), f"gate{i}")
        if node.input(i) is not None
        else None
        for i, rank in ((4, 1 if _is_scalar(node) else 2), (5, 1))
    )
    if decay is not None and node.input(7) is not None and node.input(8) is not None:
        decay = gate(e, node, decay, e.at(node, 8), e.at(node, 7))
    if beta is not None and text(node, "beta_activation", "none") == "sigmoid":
        beta = e.emit(node, "sigmoid", [beta], beta.type, None, "beta")
    scale = node.attributes.get("scale") or k.type.shape[3] ** -0.5
    kind = text(node, "update_rule", "gated_delta")
    step = Step(q, k, v, decay, beta, state, "v k", scale, kind)
    out, present = recurrence(e, node, step)
    found: list[Value | None] = [e.reshape(node, out, e.result_type(node).shape, "output")]
    for i in range(1, len(node.outputs)):
        wanted = e.result_type(node, i) if node.output(i) is not None else None
        if wanted is None or wanted.shape == present.type.shape:
            found.append(present if wanted is not None else None)
        else:
            found.append(e.emit(node, "fill", [], wanted, None, f"result{i}"))
    return found


def _is_scalar(node: OnnxNode) -> bool:
    """Whether a head decays as a whole, or there is no decay."""
    decay = node.input(4)
    leading = len(required(node, 0).shape) - (1 if node.input(1) is None else 2)
    return decay is None or len(decay.shape) == leading + 1


def _packed_operands(e: Emitter, node: OnnxNode) -> tuple[Value, Value, Value, int]:
    """Query, key and value [b, t, heads, d], and b."""
    query, state = e.at(node, 0), node.input(6)
    if node.input(1) is None:
        if state is None:
            raise ModelFileError(f"{node.label}: a packed operand needs the state")
        _, heads, width, inner = state.shape
        tokens, total = query.type.shape[:-1], query.type.shape[-1]
        keys = (total - heads * width) // 2
        types = [query.type.with_shape((*tokens, n)) for n in (keys, keys, heads * width)]
        attrs = {"axis": len(tokens), "view": True}
        parts = e.emit_all(node, "split", [query], types, attrs, "packed")
        shapes = [(keys // inner, inner)] * 2 + [(heads, width)]
    else:
        parts = (query, e.at(node, 1), e.at(node, 2))
        shapes = [(p.type.shape[-2], p.type.shape[-1]) for p in parts]
    if len(required(node, 0).shape) == 4:
        b, t = required(node, 0).shape[:2]
    else:
        tokens_ = required(node, 0).shape[0]
        lengths = node.input(3)
        rows = state.shape[0] if state is not None else lengths.shape[0] - 1 if lengths else 1
        b = sequences(tokens_, rows)
        t = tokens_ // b
    q, k, v = (
        e.reshape(node, p, (b, t, *shape), f"heads{i}")
        for i, (p, shape) in enumerate(zip(parts, shapes, strict=True))
    )
    return q, k, v, b


def _unit(e: Emitter, node: OnnxNode, x: Value, label: str) -> Value:
    """Rows of length 1."""
    shape = (*x.type.shape[:-1], 1)
    attrs = {"axes": (len(shape) - 1,), "keepdims": True}
    norm = e.emit(node, "reduce_norm", [x], x.type.with_shape(shape), attrs, f"{label}_norm")
    return e.emit(node, "div", [x, norm], x.type, None, f"{label}_unit")


def _fewer_rows(e: Emitter, node: OnnxNode, state: Value, rows: int) -> Value:
    """The states of the first sequences."""
    if state.type.shape[0] == rows:
        return state
    rank = len(state.type.shape)
    attrs = {"starts": (0,) * rank, "steps": (1,) * rank, "view": True}
    type_ = state.type.with_shape((rows, *state.type.shape[1:]))
    return e.emit(node, "slice", [state], type_, attrs, "first_states")


def _delta_types(node: OnnxNode) -> Sequence[TensorType | None]:
    q, state, value = required(node, 0).type, node.input(6), node.input(2)
    if state is not None:
        _, heads, width, inner = state.shape
        rows = state.shape[0]
    elif value is not None:
        heads, width = value.shape[-2:]
        inner = q.shape[-1]
        lengths = node.input(3)
        rows = (
            lengths.shape[0] - 1 if lengths is not None else q.shape[0] if len(q.shape) == 4 else 1
        )
    else:
        raise ModelFileError(f"{node.label}: a packed operand needs the state")
    if node.input(1) is None:
        tokens, heads_k = q.shape[:-1], (q.shape[-1] - heads * width) // (2 * inner)
    else:
        tokens, heads_k = q.shape[:-2], q.shape[-2]
    slots = node.attributes.get("state_update_capacity", 0)
    kept = state.type if state is not None else q.with_shape((rows, heads, width, inner))
    update = kept.with_shape((rows, slots * (heads + heads_k * inner + heads * width)))
    return [q.with_shape((*tokens, max(heads, heads_k), width)), kept, update]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, "GatedDeltaNet"): _delta_types,
}
