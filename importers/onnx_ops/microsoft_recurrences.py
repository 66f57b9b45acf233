"""onnxruntime's linear attention and state-space operators (domain com.microsoft), and the standard's.

The recurrence is emitted as the products that it consists of, over all tokens at once. For one token that is
the operator exactly; for more, the same multiplications as token by token, with the state kept on the chip.

Source: docs/ContribOperators.md of onnxruntime, which states operands, attributes and shapes; the delta rule:
    Yang et al., Gated Delta Networks, arXiv 2412.06464.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graph_ir.equation import bind
from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.emitter import Emitter, required, rule
from importers.onnx_ops.microsoft import MICROSOFT
from importers.onnx_values import OnnxNode


@dataclass
class Step:
    """The operands of one recurrence: [b, t, heads, d], state in the order of `state_dims`."""

    query: Value
    key: Value
    value: Value
    decay: Value | None
    """[b, t, heads] or [b, t, heads, k], logarithms."""
    beta: Value | None
    """[b, t, heads or 1]."""
    state: Value
    state_dims: str
    scale: float
    rule: str
    """linear, gated, delta or gated_delta: whether the state decays, and is corrected by what it holds."""


def text(node: OnnxNode, name: str, default: str) -> str:
    """A string attribute."""
    found = node.attributes.get(name, default)
    return found.decode() if isinstance(found, bytes) else str(found)


@rule("LinearAttention", domain=MICROSOFT)
@rule("LinearAttention")
def linear_attention(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Query, key, value [b, t, (heads d)], state [b, heads, k, v], decay and update rate."""
    heads, groups = node.attributes["q_num_heads"], node.attributes["kv_num_heads"]
    q, k, v = (
        _by_head(e, node, e.at(node, i), n, f"heads{i}")
        for i, n in enumerate((heads, groups, groups))
    )
    b, t, _, width = k.type.shape
    shape = (b, groups, width, v.type.shape[3])
    given = node.input(3)
    if given is None:
        dtype = e.result_type(node, 1) if node.output(1) is not None else q.type
        state = e.emit(node, "fill", [], dtype.with_shape(shape), {"value": 0}, "no_state")
    else:
        state = _last_slot(e, node, e.operand(given), shape)
    decay = None
    if node.input(4) is not None:
        decay = e.at(node, 4)
        if decay.type.shape[2] != groups:
            decay = e.reshape(node, decay, (b, t, groups, width), "decay_heads")
    beta = e.at(node, 5) if node.input(5) is not None else None
    scale = node.attributes.get("scale") or q.type.shape[3] ** -0.5
    kind = text(node, "update_rule", "gated_delta")
    step = Step(q, k, v, decay, beta, state, "k v", scale, kind)
    out, present = recurrence(e, node, step)
    return [e.reshape(node, out, e.result_type(node).shape, "output"), _slots(e, node, present)]


def sequences(tokens: int, rows: int) -> int:
    """How many sequences tokens in a row are taken for: equally long ones, else a single one."""
    return rows if rows and tokens % rows == 0 else 1


def recurrence(e: Emitter, node: OnnxNode, step: Step) -> tuple[Value, Value]:
    """The results [b, t, heads, v] and the last state."""
    q, k, v, state = step.query, step.key, step.value, step.state
    heads, key_heads, query_heads = v.type.shape[2], k.type.shape[2], q.type.shape[2]
    own = f"b (g r) {step.state_dims}" if heads != key_heads else f"b g {step.state_dims}"
    named = "(g r)" if heads != key_heads else "g"
    if step.decay is not None and "gated" in step.rule:
        state = _decayed(e, node, state, step.decay, step.state_dims)
    new = v
    if "delta" in step.rule:
        seen = _product(
            e, node, f"b t g k, {own} -> b t {named} v", [k, state], v.type, "retrieved"
        )
        new = e.emit(node, "sub", [v, seen], v.type, None, "gap")
    if step.beta is not None and "delta" in step.rule:
        rate = e.reshape(node, step.beta, (*step.beta.type.shape[:3], 1), "beta_column")
        new = e.emit(node, "mul", [new, rate], v.type, {"epilogue": True}, "update")
    added = _product(e, node, f"b t g k, b t {named} v -> {own}", [k, new], state.type, "added")
    state = e.emit(node, "add", [state, added], state.type, {"epilogue": True}, "state")
    if query_heads > heads:
        equation, count = f"b t (h r) k, b h {step.state_dims} -> b t (h r) v", query_heads
    elif query_heads < heads:
        equation, count = f"b t h k, b (h r) {step.state_dims} -> b t (h r) v", heads
    else:
        equation, count = f"b t h k, b h {step.state_dims} -> b t h v", heads
    out_type = q.type.with_shape((*q.type.shape[:2], count, v.type.shape[3]))
    out = _product(e, node, equation, [q, state], out_type, "output_product")
    if step.scale == 1:
        return out, state
    attrs = {"scalar": float(step.scale), "epilogue": True}
    return e.emit(node, "mul", [out], out.type, attrs, "scale"), state


def _decayed(e: Emitter, node: OnnxNode, state: Value, decay: Value, state_dims: str) -> Value:
    """The state after all tokens' decay."""
    b, t, heads, *inner = decay.type.shape
    if t > 1:
        attrs = {"axes": (1,), "keepdims": True}
        total = decay.type.with_shape((b, 1, heads, *inner))
        decay = e.emit(node, "reduce_sum", [decay], total, attrs, "decay_of_all")
    factor = e.emit(node, "exp", [decay], decay.type, None, "decay")
    last = (*inner, 1) if state_dims == "k v" else (1, *inner)
    factor = e.reshape(node, factor, (b, heads, *(last if inner else (1, 1))), "decay_view")
    return e.emit(node, "mul", [state, factor], state.type, None, "decayed")


def _product(
    e: Emitter, node: OnnxNode, equation: str, operands: list[Value], type_: TensorType, label: str
) -> Value:
    shapes = [v.type.shape for v in operands]
    try:
        bound = bind(equation, shapes, [type_.shape])
    except ValueError as error:
        raise ModelFileError(f"{node.label}: {label} does not fit ({error})") from None
    return e.emit(node, "einsum", operands, type_, {"equation": bound}, label)


def _by_head(e: Emitter, node: OnnxNode, x: Value, heads: int, label: str) -> Value:
    b, t, width = x.type.shape
    if heads < 1 or width % heads:
        raise ModelFileError(f"{node.label}: {width} is not a multiple of {heads} heads")
    return e.reshape(node, x, (b, t, heads, width // heads), label)


def gate(e: Emitter, node: OnnxNode, x: Value, bias: Value, factor: Value) -> Value:
    """Factor softplus(x + bias), by head."""
    total = e.emit(node, "add", [x, bias], x.type, None, "gate_sum")
    soft = e.emit(node, "softplus", [total], x.type, None, "gate_softplus")
    return e.emit(node, "mul", [soft, factor], x.type, None, "gate")


@rule("LinearAttentionGate", domain=MICROSOFT)
def linear_gate(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Decays from a projection, its bias and factor; update rates from another projection."""
    decay = gate(e, node, e.at(node, 0), e.at(node, 1), e.at(node, 2))
    if node.input(3) is None:
        return [decay, None]
    b = e.at(node, 3)
    return [decay, e.emit(node, "sigmoid", [b], b.type, None, "beta")]


def _last_slot(e: Emitter, node: OnnxNode, state: Value, shape: tuple[int, ...]) -> Value:
    """The newest of several states."""
    if len(state.type.shape) == len(shape):
        return state
    starts = (state.type.shape[0] - 1, *[0] * len(shape))
    attrs = {"starts": starts, "steps": (1,) * len(starts), "view": True}
    row = e.emit(node, "slice", [state], state.type.with_shape((1, *shape)), attrs, "newest")
    return e.reshape(node, row, shape, "newest_view")


def _slots(e: Emitter, node: OnnxNode, state: Value) -> Value | None:
    """As many states as the node keeps."""
    if node.output(1) is None:
        return None
    type_ = e.result_type(node, 1)
    if type_.shape == state.type.shape:
        return state
    return e.emit(node, "expand", [state], type_, None, "window")


def _linear_types(node: OnnxNode) -> Sequence[TensorType | None]:
    heads, groups = node.attributes.get("q_num_heads", 0), node.attributes.get("kv_num_heads", 0)
    q, k, v = (required(node, i).type for i in range(3))
    if min(heads, groups) < 1 or min(len(x.shape) for x in (q, k, v)) != 3:
        raise ModelFileError(f"{node.label} needs q_num_heads, kv_num_heads and 3-D operands")
    b, t, _ = q.shape
    width = v.shape[2] // groups
    state: tuple[int, ...] = (b, groups, k.shape[2] // groups, width)
    window = node.attributes.get("state_window", 0)
    past = node.input(3)
    kept = (past.type if past is not None else q).with_shape((window, *state) if window else state)
    return [q.with_shape((b, t, max(heads, groups) * width)), kept]


def _gate_types(node: OnnxNode) -> Sequence[TensorType | None]:
    a = required(node, 0).type
    return [a, a]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    (MICROSOFT, "LinearAttention"): _linear_types,
    (MICROSOFT, "LinearAttentionGate"): _gate_types,
}
