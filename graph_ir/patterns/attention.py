"""Attention written out: softmax(scale Q K^T + mask) V, with dropout and with repeated key/value heads."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from graph_ir.graph import Node, Value
from graph_ir.patterns.attention_mask import band_attrs, combine
from graph_ir.patterns.attention_scores import Operand, Scores, product_of, scores_of
from graph_ir.patterns.layout import Layout, narrow, reshaped
from graph_ir.patterns.match import Match
from graph_ir.patterns.operand import arranged, chain_to
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import Apply, Either, Number, Var
from graph_ir.tensor_type import DType, TensorType


def _last_axis(node: Node) -> bool:
    return node.attrs.get("axis", -1) in (-1, len(node.outputs[0].type.shape) - 1)


def _joins_lead(node: Node) -> bool:
    """Whether a reshape only joins or splits dims of batch and heads."""
    return node.inputs[0].type.shape[-2:] == node.outputs[0].type.shape[-2:]


def _attention(match: Match, r: Replacement) -> bool:
    softmax, dropout = match.nodes["softmax"], match.nodes.get("dropout")
    if sum(node.op == "softmax" for node in match.inner) > 1:
        return False
    product = product_of(r.root)
    if product is None or product.left.perm != tuple(range(len(product.left.perm))):
        return False
    # Of the weighted sum, the values are what the keys are of the scores, transposed.
    rows = product.right.perm
    values = Operand(match.values["values"], (*rows[:-2], rows[-1], rows[-2]))
    if values.value.type.shape != r.root.inputs[1].type.shape:
        return False
    for scores in scores_of(softmax.inputs[0], r):
        if not r.closed(match.inner | scores.inner):
            continue
        if _build(scores, values, product.perm, dropout, r):
            return True
        r.nodes.clear()
    return False


def _build(
    scores: Scores, values: Operand, perm: tuple[int, ...], dropout: Node | None, r: Replacement
) -> bool:
    lead = _lead(scores)
    if lead is None:
        return False
    sizes = _sizes(scores, lead, r)
    q, one = _in_heads(scores.query, scores, lead, sizes, "query", r)
    k, v, other = _keys_and_values(scores, values, lead, sizes, r)
    if q is None or k is None or v is None or scores.scale * one * other == 0:
        return False
    b, h, s, d = q.type.shape
    t, e = k.type.shape[2], v.type.shape[3]
    if (b, h) != sizes or k.type.shape[0] != b or h % k.type.shape[1] or k.type.shape[3] != d:
        return False
    combined = combine(scores.masks, r, (b, h, s, t))
    if combined is None:
        return False
    mask, band = combined
    attrs = {**band_attrs(band, s, t), "scale": scores.scale * one * other}
    if scores.inside is not None:
        # cap tanh(scale Q K^T / cap), as Gemma 2 bounds its scores (arXiv 2408.00118, section 2).
        attrs |= {"scale": scores.inside * one * other * scores.scale, "softcap": scores.scale}
    if dropout is not None and dropout.attrs.get("p"):
        attrs["dropout"] = float(dropout.attrs["p"])
    return _emit(r, [q, k, v, *([mask] if mask is not None else [])], attrs, (b, h, s, e), perm)


def _emit(
    r: Replacement,
    inputs: list[Value],
    attrs: Mapping[str, object],
    shape: tuple[int, ...],
    perm: tuple[int, ...],
) -> bool:
    result = r.root.outputs[0].type
    extra = [("lse", TensorType(shape[:3], DType.FLOAT32))] if r.training else []
    straight = perm == tuple(range(len(perm)))
    if straight and result.shape == shape:
        return r.finish("attention", inputs, attrs, extra)
    made = r.emit("attention", "attention", inputs, result.with_shape(shape), attrs, extra)
    if straight:
        return r.finish("reshape", [made], {"view": True}, telling=made)
    before = tuple(result.shape[perm.index(i)] for i in range(len(perm)))
    flat = r.view(made, before, "heads")
    return r.finish("transpose", [flat], {"perm": perm, "view": True}, telling=made)


def _lead(scores: Scores) -> int | None:
    """How many leading dims of the scores are the batch; the others are heads."""
    lead = len(scores.shape) - 2
    if lead < 3:
        return min(lead, 1)
    # Heads in groups that share keys, or else windows in images.
    keys = scores.keys.shape
    return 1 if lead == 3 and len(keys) == 5 and keys[2] == 1 else lead - 1


def _sizes(scores: Scores, lead: int, r: Replacement) -> tuple[int, int]:
    """Batch and heads of the scores; where they are one dim, a mask or the queries tell them apart."""
    *outer, _, _ = scores.shape
    if len(outer) != 1:
        return prod(outer[:lead]), prod(outer[lead:])
    shapes = [m.scores for m in scores.masks]
    shapes += [step.value.type.shape for step in reversed(chain_to(scores.query.value, r))]
    wide = (x[:2] for x in shapes if len(x) == 4 and x[0] * x[1] == outer[0])
    return next(wide, (outer[0], 1))


def _keys_and_values(
    scores: Scores, values: Operand, lead: int, sizes: tuple[int, int], r: Replacement
) -> tuple[Value | None, Value | None, float]:
    """Keys, values and the keys' factor; each head once, where several query heads share them."""
    done = len(r.nodes)
    for shared in (True, False):
        k, factor = _in_heads(scores.keys, scores, lead, sizes, "key", r, shared=shared)
        v, _ = _in_heads(values, scores, lead, sizes, "value", r, shared=shared)
        if k is not None and v is not None and k.type.shape[:3] == v.type.shape[:3]:
            return k, v, factor
        del r.nodes[done:]
    return None, None, 1.0


def _in_heads(
    operand: Operand,
    scores: Scores,
    lead: int,
    sizes: tuple[int, int],
    label: str,
    r: Replacement,
    *,
    shared: bool = False,
) -> tuple[Value | None, float]:
    """An operand as [batch, heads, tokens, width], and the number that scales it."""
    outer = (*[1] * (len(scores.shape) - len(operand.shape)), *operand.shape[:-2])
    heads, whole = outer[lead:], scores.shape[lead:-2]
    # Heads that are one for all, in every group or altogether, stand last.
    own = next((i for i, n in enumerate(heads) if n != whole[i]), len(heads))
    if outer[:lead] != scores.shape[:lead] or prod(heads[own:]) != 1:
        return None, 1.0
    parts = sizes if len(outer) == 1 else (prod(outer[:lead]), prod(heads))

    def change(layout: Layout) -> Layout | None:
        moved = reshaped(tuple(layout[p] for p in operand.perm), (*parts, *operand.shape[-2:]))
        if moved is None or not shared:
            return moved
        return (moved[0], narrow(moved[1]), *moved[2:])

    steps = chain_to(operand.value, r, scaled=label != "value")
    return arranged(steps, change, label, r), steps[-1].factor


_PLAIN = Apply("softmax", name="softmax", where=_last_axis)
# Rows that see nothing are made zeros: exporters guard against their NaN.
_SOFTMAX = Either(_PLAIN, Apply("where", Apply("isnan", _PLAIN), Number(0), _PLAIN))
_DROPPED = Either(Apply("dropout", _SOFTMAX, name="dropout"), _SOFTMAX)
_JOINED = Either(
    Apply("reshape", _DROPPED, where=_joins_lead),
    Apply("dropout", Apply("reshape", _SOFTMAX, where=_joins_lead), name="dropout"),
)
_WEIGHTS = Either(_DROPPED, _JOINED)

PATTERNS = (
    Pattern(
        "attention",
        Apply("matmul einsum", _WEIGHTS, Var("values")),
        _attention,
    ),
)
