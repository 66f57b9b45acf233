"""Attention written out: softmax(scale Q K^T + mask) V, with dropout and with repeated key/value heads."""

from __future__ import annotations

from collections.abc import Mapping

from graph_ir.graph import Node, Value
from graph_ir.patterns.attention_fused import before_repeats
from graph_ir.patterns.attention_mask import combine
from graph_ir.patterns.attention_scores import Scores, scaled_by, scores_of
from graph_ir.patterns.match import Match, plain
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import Apply, Either, Var
from graph_ir.tensor_type import DType, TensorType

_LABELS = ("query", "key", "value")


def _last_axis(node: Node) -> bool:
    return node.attrs.get("axis", -1) in (-1, len(node.outputs[0].type.shape) - 1)


def _joins_lead(node: Node) -> bool:
    """Whether a reshape only joins batch and heads into one dim, for a batched product."""
    given, made = node.inputs[0].type.shape, node.outputs[0].type.shape
    return len(given) == 4 and made == (given[0] * given[1], *given[2:])


def _plain_product(node: Node) -> bool:
    return "equation" not in node.attrs


def _attention(match: Match, r: Replacement) -> bool:
    softmax, dropout = match.nodes["softmax"], match.nodes.get("dropout")
    for scores in scores_of(softmax.inputs[0], r):
        if not r.closed(match.inner | scores.inner):
            continue
        if _build(scores, match.values["values"], dropout, r):
            return True
        r.nodes.clear()
    return False


def _build(scores: Scores, values: Value, dropout: Node | None, r: Replacement) -> bool:
    query, factor = _unscaled(scores.query, r)
    keys, other = _keys(scores.keys, r)
    scale = scores.scale * factor * other
    lead = _lead(scores)
    if lead is None or scale == 0:
        return False
    given = zip((query, keys, values), _LABELS, strict=True)
    q, k, v = (_heads(value, lead, r, label) for value, label in given)
    if q is None or k is None or v is None:
        return False
    q = plain(q, r.producers)
    narrow = before_repeats(k, r), before_repeats(v, r)
    if narrow[0].type.shape[1] == narrow[1].type.shape[1]:
        k, v = narrow
    b, h, s, d = q.type.shape
    if k.type.shape[0] != b or h % k.type.shape[1] or k.type.shape[3] != d:
        return False
    if v.type.shape[:3] != k.type.shape[:3]:
        return False
    t, e = k.type.shape[2], v.type.shape[3]
    combined = combine(scores.masks, r, (b, h, s, t))
    if combined is None:
        return False
    mask, causal = combined
    attrs = {"causal": causal, "scale": scale}
    if dropout is not None and dropout.attrs.get("p"):
        attrs["dropout"] = float(dropout.attrs["p"])
    operands = [_in_place(x, label, r) for x, label in zip((q, k, v), _LABELS, strict=True)]
    return _emit(r, [*operands, *([mask] if mask is not None else [])], attrs, (b, h, s, e))


def _emit(
    r: Replacement, inputs: list[Value], attrs: Mapping[str, object], shape: tuple[int, ...]
) -> bool:
    result = r.root.outputs[0].type
    extra = [("lse", TensorType(shape[:3], DType.FLOAT32))] if r.training else []
    if result.shape == shape:
        return r.finish("attention", inputs, attrs, extra)
    made = r.emit("attention", "attention", inputs, result.with_shape(shape), attrs, extra)
    return r.finish("reshape", [made], {"view": True}, telling=made)


def _unscaled(value: Value, r: Replacement) -> tuple[Value, float]:
    """Queries or keys before a number scales them, and the number."""
    node = r.producers.get(value)
    if node is None or not r.read_once(value):
        return value, 1.0
    source, factor = scaled_by(node)
    if source is None or not source.type.dtype.is_float:
        return value, 1.0
    return source, factor


def _keys(transposed: Value, r: Replacement) -> tuple[Value, float]:
    """Keys [..., tokens, width] of their transpose, and the number that scales them."""
    transposed, outer = _unscaled(plain(transposed, r.producers), r)
    transposed = plain(transposed, r.producers)
    shape = transposed.type.shape
    rank = len(shape)
    swap = (*range(rank - 2), rank - 1, rank - 2)
    source, perm = transposed, swap
    node = r.producers.get(transposed)
    if node is not None and node.op == "transpose":
        source = node.inputs[0]
        perm = tuple(node.attrs["perm"][i] for i in swap)
    if perm == tuple(range(rank)):
        keys, inner = _unscaled(plain(source, r.producers), r)
        return plain(keys, r.producers), outer * inner
    return _transposed(source, perm, "keys", r), outer


def _transposed(source: Value, perm: tuple[int, ...], label: str, r: Replacement) -> Value:
    """A transpose that is not made in memory: the kernels of attention read any strides."""
    made = source.type.with_shape(tuple(source.type.shape[p] for p in perm))
    return r.emit(label, "transpose", [source], made, {"perm": perm, "view": True})


def _in_place(value: Value, label: str, r: Replacement) -> Value:
    """An operand without the copy that transposes it for this attention alone."""
    node = r.producers.get(value)
    if node is None or node.op != "transpose" or node.attrs.get("view") or not r.read_once(value):
        return value
    return _transposed(node.inputs[0], tuple(node.attrs["perm"]), label, r)


def _lead(scores: Scores) -> tuple[int, int] | None:
    """Batch and heads of the scores; a mask tells them apart where they are one dim."""
    shape = scores.shape
    if len(shape) == 4:
        return shape[0], shape[1]
    if len(shape) == 3:
        wide = next((m.scores for m in scores.masks if len(m.scores) == 4), None)
        if wide is not None and wide[0] * wide[1] == shape[0]:
            return wide[0], wide[1]
        return (shape[0], 1) if wide is None else None
    return (1, 1) if len(shape) == 2 else None


def _heads(value: Value, lead: tuple[int, int], r: Replacement, label: str) -> Value | None:
    """An operand as [batch, heads, tokens, width]."""
    shape = value.type.shape
    if len(shape) == 4:
        return value
    if len(shape) > 4 or (len(shape) == 3 and shape[0] != lead[0] * lead[1]):
        return None
    return r.view(value, (*lead, *shape[-2:]), label)


_SOFTMAX = Apply("softmax", name="softmax", where=_last_axis)
_DROPPED = Either(Apply("dropout", _SOFTMAX, name="dropout"), _SOFTMAX)
_JOINED = Either(
    Apply("reshape", _DROPPED, where=_joins_lead),
    Apply("dropout", Apply("reshape", _SOFTMAX, where=_joins_lead), name="dropout"),
)
_WEIGHTS = Either(_DROPPED, _JOINED)

PATTERNS = (
    Pattern(
        "attention",
        Apply("matmul", _WEIGHTS, Var("values"), where=_plain_product),
        _attention,
    ),
)
