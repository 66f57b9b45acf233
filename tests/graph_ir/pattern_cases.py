"""Meanings written out in the ways that frontends write them, with the operators they must become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import pi, sqrt

import numpy as np
from pattern_graph import Maker

from graph_ir.graph import Value
from graph_ir.tensor_type import DType, TensorType

HALF = DType.BFLOAT16
LOW = np.array(-3e38)


@dataclass(frozen=True)
class Case:
    """A written-out meaning."""

    name: str
    build: Callable[[Maker], Value]
    wanted: str
    """The operators it becomes, but for views."""

    def __str__(self) -> str:
        return self.name


def inverse(m: Maker, x: Value, how: str) -> Value:
    if how == "rsqrt":
        return m.rsqrt(x)
    if how == "reciprocal":
        return m.reciprocal(m.sqrt(x))
    return m.div(1.0, m.sqrt(x)) if how == "quotient" else m.pow(x, -0.5)


def layer_norm(m: Maker, how: str = "sqrt", *, twice: bool = False, weight: bool = True) -> Value:
    x = m.weight(2, 3, 8)
    centred = m.sub(x, m.mean(x))
    again = m.sub(x, m.mean(x)) if twice else centred
    square = m.mul(again, again) if twice else m.pow(again, 2)
    variance = m.add(m.mean(square), 1e-3)
    y = (
        m.div(centred, m.sqrt(variance))
        if how == "sqrt"
        else m.mul(inverse(m, variance, how), centred)
    )
    return m.add(m.weight(8), m.mul(y, m.weight(1, 1, 8))) if weight else y


def folded_layer_norm(m: Maker) -> Value:
    x = m.weight(2, 3, 8)
    mean = m.mean(x)
    centred = m.sub(x, mean)
    gain = m.mul(m.rsqrt(m.add(m.mean(m.mul(centred, centred)), 1e-3)), m.weight(8))
    return m.add(m.mul(x, gain), m.sub(m.weight(8), m.mul(mean, gain)))


def rms_norm(
    m: Maker, dtype: DType = HALF, how: str = "rsqrt", *, t5: bool = False, weight: bool = True
) -> Value:
    x = m.weight(2, 3, 8, dtype=dtype)
    wide = m.cast(x, DType.FLOAT32)
    variance = m.add(m.mean(m.pow(wide, 2)), 1e-3)
    y = m.cast(m.mul(x if t5 else wide, inverse(m, variance, how)), dtype)
    return m.mul(m.weight(8, dtype=dtype), y) if weight else y


def layer_norm_by_squares(m: Maker) -> Value:
    x = m.weight(2, 3, 8)
    mean = m.mean(x)
    variance = m.sub(m.mean(m.mul(x, x)), m.mul(mean, mean))
    y = m.mul(m.sub(x, mean), m.rsqrt(m.add(variance, 1e-3)))
    return m.add(m.mul(y, m.weight(8)), m.weight(8))


def layer_norm_weighted_first(m: Maker) -> Value:
    x = m.weight(2, 3, 8)
    centred = m.sub(x, m.mean(x))
    root = m.sqrt(m.add(m.mean(m.pow(centred, 2)), 1e-3))
    return m.add(m.div(m.mul(m.weight(8), centred), root), m.weight(8))


def rms_norm_of_sum(m: Maker, how: str) -> Value:
    x = m.weight(2, 3, 8)
    total = m.reduce("sum", m.mul(x, x), keepdims=how != "flat")
    total = m.reshape(total, 2, 3, 1) if how == "flat" else total
    mean = m.mul(total, 0.125) if how == "mul" else m.div(total, 8.0)
    return m.mul(m.mul(x, m.rsqrt(m.add(mean, 1e-3))), m.weight(8))


def silu(m: Maker, how: str) -> Value:
    x = m.weight(4, 5)
    if how == "steep":
        return m.mul(x, m.sigmoid(m.mul(x, 1.702)))
    decay = m.add(m.exp(m.neg(x)), 1.0)
    return m.div(x, decay) if how == "quotient" else m.mul(m.reciprocal(decay), x)


def softplus_far(m: Maker) -> Value:
    x = m.weight(4, 5)
    far = m.builder.emit("greater", [x], [x.type.with_dtype(DType.BOOL)], {"scalar": 20.0})[0]
    return m.where(far, x, m.log1p(m.exp(x)))


def hard_sigmoid(m: Maker, *, shift: bool) -> Value:
    x = m.weight(4, 5)
    if shift:
        return m.clamp(m.add(m.div(x, 6.0), 0.5), min=0.0, max=1.0)
    return m.div(m.clamp(m.add(x, 3.0), min=0.0, max=6.0), 6.0)


def exp_of_log_softmax(m: Maker) -> Value:
    return m.exp(m.log_softmax(m.weight(4, 5), axis=-1))


def rotary_parts(m: Maker, how: str) -> Value:
    """Both parts turned on their own, each angle once in the tables."""
    x, cos, sin = m.weight(2, 3, 5, 8), m.input(5, 4), m.input(1, 1, 5, 4)
    if how == "halves":
        a, b = m.slice(x, 0, 4), m.slice(x, 4, 8)
    else:
        wide = m.reshape(x, 2, 3, 5, 4, 2)
        a, b = (m.reshape(m.slice(wide, i, i + 1), 2, 3, 5, 4) for i in (0, 1))
    first = m.sub(m.mul(a, cos), m.mul(b, sin))
    second = m.add(m.mul(b, cos), m.mul(a, sin))
    if how == "halves":
        return m.concat(first, second)
    columns = [m.reshape(v, 2, 3, 5, 4, 1) for v in (first, second)]
    return m.reshape(m.concat(*columns), 2, 3, 5, 8)


def gelu_erf(m: Maker, order: int) -> Value:
    x = m.weight(4, 5)
    inner = m.div(x, sqrt(2)) if order % 2 else m.mul(x, 1 / sqrt(2))
    phi = m.add(m.erf(inner), 1.0)
    return [
        lambda: m.mul(m.mul(x, phi), 0.5),
        lambda: m.mul(m.mul(x, 0.5), phi),
        lambda: m.mul(m.mul(phi, 0.5), x),
        lambda: m.div(m.mul(phi, x), 2.0),
    ][order]()


def gelu_tanh(m: Maker, order: int) -> Value:
    x = m.weight(4, 5)
    if order == 0:
        inner = m.mul(m.add(x, m.mul(m.pow(x, 3.0), 0.044715)), sqrt(2 / pi))
    elif order == 1:
        inner = m.mul(m.add(m.mul(0.044715, m.mul(x, m.mul(x, x))), x), 0.7978845608028654)
    else:
        inner = m.mul(m.mul(x, 0.7978845608), m.add(1.0, m.mul(m.mul(0.044715, x), x)))
    return m.mul(m.mul(x, m.add(m.tanh(inner), 1.0)), 0.5)


def hard_swish(m: Maker, order: int) -> Value:
    x = m.weight(4, 5)
    if order == 2:
        return m.mul(m.hardsigmoid(x), x)
    relu6 = m.clamp(m.add(x, 3.0), min=0.0, max=6.0)
    return m.mul(x, m.div(relu6, 6.0)) if order else m.div(m.mul(x, relu6), 6.0)


def softmax(m: Maker, *, shift: bool, log: bool = False) -> Value:
    x = m.weight(4, 5)
    shifted = m.sub(x, m.reduce("max", x)) if shift else x
    powers = m.exp(shifted)
    total = m.reduce("sum", powers)
    return m.sub(shifted, m.log(total)) if log else m.div(powers, total)


def log_of_softmax(m: Maker) -> Value:
    return m.log(m.softmax(m.weight(4, 5), axis=-1))


def group_norm(m: Maker, *, written_out: bool) -> Value:
    x = m.weight(2, 6, 4, 5)
    y = m.reshape(x, 2, 3, 40)
    if written_out:
        centred = m.sub(y, m.mean(y))
        y = m.div(centred, m.sqrt(m.add(m.mean(m.pow(centred, 2)), 1e-3)))
    else:
        ones, zeros = m.constant(np.ones(3)), m.constant(np.zeros(3))
        y = m.op("group_norm", [y, ones, zeros], y.type.shape, groups=3, eps=1e-3)
    y = m.reshape(y, 2, 6, 4, 5)
    return m.add(m.mul(y, m.weight(6, 1, 1)), m.weight(1, 6, 1, 1))


def instance_norm(m: Maker) -> Value:
    x = m.weight(2, 6, 4, 5)
    centred = m.sub(x, m.mean(x, 2, 3))
    spread = m.sqrt(m.add(m.mean(m.pow(centred, 2), 2, 3), 1e-3))
    return m.add(m.mul(m.div(centred, spread), m.weight(6, 1, 1)), m.weight(6, 1, 1))


def rotary(m: Maker, *, heads_last: bool = False) -> Value:
    x = m.weight(2, 5, 3, 8) if heads_last else m.weight(2, 3, 5, 8)
    table = (5, 1, 8) if heads_last else (1, 1, 5, 8)
    turned = m.concat(m.neg(m.slice(x, 4, 8)), m.slice(x, 0, 4))
    return m.add(m.mul(turned, m.input(*table)), m.mul(x, m.input(*table)))


def attention_side_by_side(m: Maker, how: str) -> Value:
    """The heads of the result put side by side, as a copy."""
    view = {"view": True} if how != "transpose" else {}
    y = m.op("transpose", [attention(m)], (2, 5, 4, 7), perm=(0, 2, 1, 3), **view)
    y = m.copy(y) if how == "copy" else y
    return m.op("reshape", [y], (2, 5, 28), **({} if how == "reshape" else {"view": True}))


def attention_fused(m: Maker) -> Value:
    """Already one operator, but of repeated heads."""
    q, k, v = m.weight(2, 4, 5, 8), m.weight(2, 2, 6, 8), m.weight(2, 2, 6, 7)
    k, v = (repeated(m, w, 2, copies=True) for w in (k, v))
    sums = TensorType((2, 4, 5), DType.FLOAT32)
    types = [TensorType((2, 4, 5, 7), DType.FLOAT32), sums]
    return m.builder.emit("attention", [q, k, v], types, {"causal": False})[0]


def attention_strided(m: Maker) -> Value:
    """Copies that transpose each operand, as ONNX has them."""
    q, k, v = (m.weight(2, 5, 4, 8) for _ in range(3))
    q, v = (m.op("transpose", [x], (2, 4, 5, 8), perm=(0, 2, 1, 3)) for x in (q, v))
    k = m.op("transpose", [k], (2, 4, 8, 5), perm=(0, 2, 3, 1))
    return m.matmul(m.softmax(m.matmul(q, k), axis=-1), v)


def rotary_pairs(m: Maker) -> Value:
    x = m.weight(2, 3, 5, 8)
    even, odd = (
        m.op("slice", [x], (2, 3, 5, 4), starts=(0, 0, 0, i), steps=(1, 1, 1, 2)) for i in (0, 1)
    )
    columns = [m.reshape(v, 2, 3, 5, 4, 1) for v in (m.neg(odd), even)]
    turned = m.reshape(m.concat(*columns), 2, 3, 5, 8)
    return m.add(m.mul(x, m.input(5, 8)), m.mul(turned, m.input(5, 8)))


def attention(
    m: Maker,
    mask: str = "",
    *,
    scale: str = "div",
    groups: int = 4,
    copies: bool = False,
    wide: bool = False,
    dropout: float | None = None,
    s: int = 5,
    t: int = 6,
) -> Value:
    q, k, v = m.weight(2, 4, s, 8), m.weight(2, groups, t, 8), m.weight(2, groups, t, 7)
    if groups not in (1, 4):
        k, v = (repeated(m, w, 4 // groups, copies=copies) for w in (k, v))
    keys = m.swap(k)
    if scale == "both":
        q, keys = m.mul(q, 0.6), m.mul(keys, 0.6)
    scores = m.matmul(q, keys)
    if scale in ("div", "mul"):
        scores = m.div(scores, 2.5) if scale == "div" else m.mul(0.4, scores)
    scores = masked(m, scores, mask)
    if wide:
        scores = m.cast(scores, DType.FLOAT32)
    weights = m.softmax(scores, axis=-1)
    if dropout is not None:
        weights = m.dropout(weights, dropout)
    if copies:
        weights = m.copy(weights)
    return m.matmul(weights, v)


def repeated(m: Maker, x: Value, times: int, *, copies: bool = False) -> Value:
    b, g, t, d = x.type.shape
    wide = m.op("expand", [m.reshape(x, b, g, 1, t, d)], (b, g, times, t, d))
    return m.reshape(m.copy(wide) if copies else wide, b, g * times, t, d)


def masked(m: Maker, scores: Value, how: str) -> Value:
    s, t = scores.type.shape[-2:]
    for part in how.split():
        if part == "add":
            scores = m.add(scores, m.input(2, 1, s, t))
        elif part == "keep":
            keep = m.input(1, 1, s, t, dtype=DType.BOOL)
            scores = m.where(keep, scores, m.constant(LOW))
        elif part == "drop":
            drop = m.op("logical_not", [m.input(s, t, dtype=DType.BOOL)], (s, t))
            scores = m.where(drop, m.constant(LOW), scores)
        elif part == "causal":
            tril = np.tril(np.ones((s, t), dtype=bool), t - s)
            scores = m.where(m.constant(tril, DType.BOOL), scores, m.constant(LOW))
        elif part == "bias":
            scores = m.add(scores, m.weight(4, s, t))
        elif part == "cap":
            scores = m.mul(m.tanh(m.div(scores, 1.5)), 1.5)
        elif part == "zeros":
            keep = m.input(2, 1, s, t, dtype=DType.BOOL)
            none, cut = m.constant(np.array(0.0)), m.constant(LOW)
            made = TensorType((2, 1, s, t), DType.FLOAT32)
            scores = m.add(scores, m.builder.emit("where", [keep, none, cut], [made])[0])
        else:
            triangle = np.triu(np.full((1, 1, s, t), -3e38), 1 + t - s)
            scores = m.add(scores, m.constant(triangle))
    return scores


def attention_joined(m: Maker, *, mask: bool) -> Value:
    """Batch and heads as one dim, apart only where the mask is added."""
    q, k, v = m.weight(8, 5, 6), m.weight(8, 7, 6), m.weight(8, 7, 6)
    scores = m.matmul(q, m.swap(k))
    if mask:
        scores = m.add(m.reshape(scores, 2, 4, 5, 7), m.input(2, 1, 5, 7))
        scores = m.reshape(scores, 8, 5, 7)
    return m.matmul(m.softmax(scores, axis=-1), v)


def attention_flat_keys(m: Maker) -> Value:
    """Keys are transposed once, from where the projection left them."""
    q, k, v = m.weight(2, 4, 5, 8), m.weight(2, 7, 4, 8), m.weight(2, 4, 7, 8)
    return m.matmul(m.softmax(m.matmul(q, m.transpose(k, 0, 2, 3, 1)), axis=-1), v)


def attention_einsum(m: Maker, *, heads_last: bool) -> Value:
    """Equations in place of transposes."""
    from graph_ir.equation import bind

    def einsum(text: str, a: Value, b: Value, *shape: int) -> Value:
        equation = bind(text, [a.type.shape, b.type.shape], [shape])
        return m.op("einsum", [a, b], shape, equation=equation)

    if heads_last:
        q, k, v = m.weight(2, 5, 4, 8), m.weight(2, 6, 4, 8), m.weight(2, 6, 4, 7)
        scores = einsum("b s h d, b t h d -> b h s t", q, k, 2, 4, 5, 6)
        weights = m.softmax(m.add(scores, m.input(2, 1, 5, 6)), axis=-1)
        return einsum("b h s t, b t h e -> b s h e", weights, v, 2, 5, 4, 7)
    q, k, v = m.weight(2, 4, 5, 8), m.weight(2, 4, 6, 8), m.weight(2, 4, 6, 7)
    scores = einsum("b h s d, b h t d -> b h s t", q, k, 2, 4, 5, 6)
    weights = m.softmax(m.mul(scores, 0.3), axis=-1)
    return einsum("b h s t, b h t e -> b h s e", weights, v, 2, 4, 5, 7)


def attention_in_groups(m: Maker) -> Value:
    """Query heads in groups of a dim of their own, which share a key head by broadcasting."""
    q = m.reshape(m.weight(2, 4, 5, 8), 2, 2, 2, 5, 8)
    k = m.swap(m.reshape(m.weight(2, 2, 6, 8), 2, 2, 1, 6, 8))
    v = m.reshape(m.weight(2, 2, 6, 7), 2, 2, 1, 6, 7)
    scores = m.mul(m.matmul(q, k), 0.3)
    return m.reshape(m.matmul(m.softmax(scores, axis=-1), v), 2, 4, 5, 7)


def attention_in_windows(m: Maker, *, bias: bool) -> Value:
    """Three windows in each of two images, whose masks are the same in both (Swin)."""
    q, k, v = (m.weight(6, 4, 5, 8) for _ in range(3))
    scores = m.mul(m.matmul(q, m.swap(k)), 0.3)
    if bias:
        scores = m.add(scores, m.weight(1, 4, 5, 5))
    scores = m.add(m.reshape(scores, 2, 3, 4, 5, 5), m.input(1, 3, 1, 5, 5))
    return m.matmul(m.softmax(m.reshape(scores, 6, 4, 5, 5), axis=-1), v)


def attention_turned(m: Maker) -> Value:
    """Products of keys with queries, transposed."""
    q, k, v = m.weight(2, 4, 5, 8), m.weight(2, 4, 6, 8), m.weight(2, 4, 6, 7)
    scores = m.mul(m.swap(m.matmul(k, m.swap(q))), 0.3)
    return m.matmul(m.softmax(scores, axis=-1), v)


def attention_guarded(m: Maker) -> Value:
    """Queries that see no key get zeros, as exporters write out a boolean mask."""
    q, k, v = m.weight(2, 4, 5, 8), m.weight(2, 4, 6, 8), m.weight(2, 4, 6, 7)
    weights = m.softmax(masked(m, m.matmul(q, m.swap(k)), "zeros"), axis=-1)
    nothing = m.builder.emit("isnan", [weights], [weights.type.with_dtype(DType.BOOL)])[0]
    return m.matmul(m.where(nothing, m.constant(np.array(0.0)), weights), v)


def attention_wide_mask(m: Maker) -> Value:
    """Batch and heads as one dim, also of the mask, which is copied for every head."""
    q, k, v = (m.reshape(m.weight(2, 4, n, 6), 8, n, 6) for n in (5, 7, 7))
    mask = m.op("expand", [m.input(2, 1, 5, 7)], (2, 4, 5, 7))
    scores = m.add(m.matmul(q, m.swap(k)), m.reshape(mask, 8, 5, 7))
    return m.matmul(m.softmax(scores, axis=-1), v)


def attention_tiled(m: Maker) -> Value:
    """Key heads repeated, transposed as three dims, and scaled, as exporters write grouped queries."""
    q, k, v = m.weight(2, 4, 5, 8), m.weight(2, 2, 6, 8), m.weight(2, 2, 6, 7)
    wide = m.reshape(repeated(m, k, 2, copies=True), 8, 6, 8)
    keys = m.reshape(m.op("transpose", [wide], (8, 8, 6), perm=(0, 2, 1)), 2, 4, 8, 6)
    scores = m.matmul(m.mul(q, 0.6), m.mul(keys, 0.6))
    return m.matmul(m.softmax(scores, axis=-1), repeated(m, v, 2))


CASES = [
    *(Case(f"layer_norm-{h}", partial(layer_norm, how=h), "layer_norm") for h in
      ("sqrt", "rsqrt", "reciprocal", "quotient", "power")),
    Case("layer_norm-twice", partial(layer_norm, twice=True), "layer_norm"),
    Case("layer_norm-bare", partial(layer_norm, weight=False), "layer_norm"),
    Case("layer_norm-folded", folded_layer_norm, "layer_norm"),
    *(Case(f"rms_norm-{h}", partial(rms_norm, how=h), "rms_norm") for h in
      ("rsqrt", "reciprocal", "quotient", "power")),
    Case("rms_norm-t5", partial(rms_norm, t5=True), "rms_norm"),
    Case("rms_norm-bare", partial(rms_norm, weight=False), "rms_norm"),
    Case("rms_norm-wide", partial(rms_norm, dtype=DType.FLOAT32), "rms_norm"),
    Case("layer_norm-squares", layer_norm_by_squares, "layer_norm"),
    Case("layer_norm-weighted-first", layer_norm_weighted_first, "layer_norm"),
    *(Case(f"rms_norm-sum-{h}", partial(rms_norm_of_sum, how=h), "rms_norm") for h in
      ("div", "mul", "flat")),
    *(Case(f"silu-{h}", partial(silu, how=h), "silu") for h in ("steep", "quotient", "product")),
    Case("softplus-far", softplus_far, "softplus"),
    *(Case(f"hardsigmoid-{s}", partial(hard_sigmoid, shift=s), "hardsigmoid") for s in
      (True, False)),
    Case("softmax-of-log_softmax", exp_of_log_softmax, "softmax"),
    *(Case(f"rotary-parts-{h}", partial(rotary_parts, how=h), "rotary_embedding") for h in
      ("halves", "pairs")),
    *(Case(f"gelu-{i}", partial(gelu_erf, order=i), "gelu") for i in range(4)),
    *(Case(f"gelu_tanh-{i}", partial(gelu_tanh, order=i), "gelu_tanh") for i in range(3)),
    *(Case(f"hardswish-{i}", partial(hard_swish, order=i), "hardswish") for i in range(3)),
    Case("silu", lambda m: m.mul(x := m.weight(4, 5), m.sigmoid(x)), "silu"),
    Case("softplus", lambda m: m.log(m.add(m.exp(m.weight(4, 5)), 1.0)), "softplus"),
    Case("mish", lambda m: m.mul(x := m.weight(4), m.tanh(m.log1p(m.exp(x)))), "mish"),
    Case("softmax", partial(softmax, shift=True), "softmax"),
    Case("softmax-unshifted", partial(softmax, shift=False), "softmax"),
    Case("log_softmax", partial(softmax, shift=True, log=True), "log_softmax"),
    Case("log_softmax-of-softmax", log_of_softmax, "log_softmax"),
    Case("group_norm-written-out", partial(group_norm, written_out=True), "group_norm"),
    Case("group_norm-instance-norm", partial(group_norm, written_out=False), "group_norm"),
    Case("instance_norm", instance_norm, "group_norm"),
    Case("rotary", rotary, "rotary_embedding"),
    Case("rotary-heads-last", partial(rotary, heads_last=True), "rotary_embedding"),
    Case("rotary-pairs", rotary_pairs, "rotary_embedding"),
    *(Case(f"attention-then-{k}", partial(attention_side_by_side, how=k), "attention") for k in
      ("copy", "reshape", "transpose")),
    Case("attention-fused", attention_fused, "attention"),
    Case("attention-strided", attention_strided, "attention"),
    Case("attention-copies", partial(attention, groups=2, copies=True), "attention"),
    *(Case(f"attention-{s}", partial(attention, scale=s), "attention") for s in
      ("none", "div", "mul", "both")),
    *(Case(f"attention-{k}", partial(attention, mask=k), "attention") for k in
      ("add", "keep", "causal", "triangle")),
    Case("attention-drop", partial(attention, mask="drop"), "attention"),
    Case("attention-add-add", partial(attention, mask="add add"), "add attention"),
    Case("attention-keep-add", partial(attention, mask="keep add"), "where attention"),
    Case("attention-add-keep", partial(attention, mask="add keep"), "where attention"),
    Case("attention-causal-add", partial(attention, mask="causal add"), "attention"),
    Case("attention-wide-softmax", partial(attention, mask="add", wide=True), "attention"),
    Case("attention-dropout", partial(attention, mask="add", dropout=0.0), "attention"),
    Case("attention-grouped", partial(attention, groups=2), "attention"),
    Case("attention-one-group", partial(attention, groups=1), "attention"),
    Case("attention-joined", partial(attention_joined, mask=False), "attention"),
    Case("attention-joined-mask", partial(attention_joined, mask=True), "attention"),
    Case("attention-bias", partial(attention, mask="bias"), "attention"),
    Case("attention-bias-add", partial(attention, mask="bias add"), "add attention"),
    Case("attention-cap", partial(attention, mask="cap"), "attention"),
    Case("attention-cap-add", partial(attention, mask="cap bias"), "attention"),
    Case("attention-zeros", partial(attention, mask="zeros"), "attention"),
    Case("attention-einsum", partial(attention_einsum, heads_last=False), "attention"),
    Case("attention-einsum-heads-last", partial(attention_einsum, heads_last=True), "attention"),
    Case("attention-in-groups", attention_in_groups, "attention"),
    Case("attention-in-windows", partial(attention_in_windows, bias=False), "attention"),
    Case("attention-in-windows-bias", partial(attention_in_windows, bias=True), "add attention"),
    Case("attention-turned", attention_turned, "attention"),
    Case("attention-guarded", attention_guarded, "attention"),
    Case("attention-wide-mask", attention_wide_mask, "attention"),
    Case("attention-tiled", attention_tiled, "attention"),
    Case("attention-flat-keys", attention_flat_keys, "attention"),
]  # fmt: skip
