"""The standard domain's Attention and RotaryEmbedding (opset 23 and later)."""

from __future__ import annotations

from collections.abc import Sequence

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_ops.emitter import Emitter, rule
from importers.onnx_values import OnnxNode


@rule("Attention")
def attention(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Q, K, V as [b, heads, s, d], or [b, s, heads d]; a cache goes in front of K and V."""
    q, k, v = (e.at(node, i) for i in range(3))
    heads = (node.attributes.get("q_num_heads"), node.attributes.get("kv_num_heads"))
    flat = len(q.type.shape) == 3
    if flat:
        if not all(heads):
            raise ModelFileError(f"{node.label} has 3-D operands but no q_num_heads, kv_num_heads")
        q = to_heads(e, node, q, int(heads[0] or 0), "query")
        k = to_heads(e, node, k, int(heads[1] or 0), "key")
        v = to_heads(e, node, v, int(heads[1] or 0), "value")
    if node.input(4) is not None and node.input(5) is not None:
        k = append(e, node, e.at(node, 4), k, "present_key")
        v = append(e, node, e.at(node, 5), v, "present_value")
    mask = [e.at(node, 3)] if node.input(3) is not None else []
    result = emit_attention(
        e,
        node,
        [q, k, v, *mask],
        causal=bool(node.attributes.get("is_causal", 0)),
        scale=node.attributes.get("scale"),
    )
    if flat:
        result = from_heads(e, node, result, e.result_type(node).shape)
    present = [k, v] if len(node.outputs) > 1 else []
    return [result, *present, *[None] * (len(node.outputs) - 1 - len(present))]


def emit_attention(
    e: Emitter,
    node: OnnxNode,
    operands: Sequence[Value],
    *,
    causal: bool,
    scale: float | None,
    label: str = "",
) -> Value:
    """Fused attention over [b, heads, s, d] operands; in training with what its backward pass needs."""
    q, _, v, *_ = operands
    shape = (*q.type.shape[:3], v.type.shape[3])
    attrs: dict[str, object] = {"causal": causal}
    if scale:
        attrs["scale"] = float(scale)
    types = [q.type.with_shape(shape)]
    if e.training:
        types.append(TensorType(q.type.shape[:3], DType.FLOAT32))
    return e.emit_all(node, "attention", operands, types, attrs, label)[0]


def to_heads(e: Emitter, node: OnnxNode, x: Value, heads: int, label: str) -> Value:
    """[b, s, (h d)] -> [b, h, s, d]."""
    b, s, width = x.type.shape
    split = e.reshape(node, x, (b, s, heads, width // heads), f"{label}_heads")
    return e.transpose(node, split, (0, 2, 1, 3), f"{label}_transpose")


def from_heads(e: Emitter, node: OnnxNode, x: Value, shape: Sequence[int]) -> Value:
    """[b, h, s, d] -> [b, s, (h d)]."""
    moved = e.transpose(node, x, (0, 2, 1, 3), "output_transpose")
    return e.reshape(node, moved, shape, "output")


def append(e: Emitter, node: OnnxNode, past: Value, new: Value, label: str) -> Value:
    """A cache and what this step adds to it, along the tokens."""
    if past.type.shape[2] == 0:
        return new
    b, h, _, d = new.type.shape
    shape = (b, h, past.type.shape[2] + new.type.shape[2], d)
    return e.emit(node, "concat", [past, new], new.type.with_shape(shape), {"axis": 2}, label)


@rule("RotaryEmbedding")
def rotary(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """X cos + rotate(x) sin, in one kernel: two products and a sum per element."""
    operands = e.operands(node)
    return [e.emit(node, "rotary_embedding", operands, e.result_type(node))]
