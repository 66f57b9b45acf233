"""Fused scaled-dot-product attention: the scores never reach memory.

Operands query[b, (g r), s, d], key[b, g, t, d], value[b, g, t, e] and, optionally, a mask that broadcasts
to [b, (g r), s, t]; r query heads share a key/value head. A mask's batch may also be an inner factor w of
b: images share the mask of each of their windows. Results: output[b, (g r), s, e] and the
logarithms of the softmax sums [b, (g r), s] that the backward pass needs.
Attributes: `causal`, `window` (beside `causal`: each query sees that many keys at most, its own the last),
`scale`, `dropout`, and `softcap`: scores are bounded to c tanh(scores / c) before the mask.

With the attribute `parts` the keys are p runs of t, to each of which attention is a result of its own:
output[p, b, (g r), s, e] and sums[p, b, (g r), s]. The whole is their mean with the weights softmax(sums)
over p, which is how few queries share out many keys (Flash-Decoding; Dao et al. 2023,
https://pytorch.org/blog/flash-decoding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_ir.equation import Dim, Equation
from graph_ir.evaluate import Array
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.gradients import GradientBuilder
    from graph_ir.graph import Node, Value


def _dims(
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    masks: Sequence[TensorType],
    parts: int | None = None,
) -> dict[str, Any]:
    groups = key[1]
    heads: tuple[str, ...] = ("g",) if query[1] == groups else ("g", "r")
    batch: tuple[str, ...] = ("b",)
    sizes = {"b": query[0], "g": groups, "s": query[2], "t": key[2], "d": query[3], "e": value[3]}
    keys: tuple[str, ...] = ("t",)
    apart: tuple[Dim, ...] = ()
    if parts is not None:
        keys, apart = ("p", "t"), (("p",),)
        sizes |= {"p": parts, "t": key[2] // parts}
    if query[1] != groups:
        sizes["r"] = query[1] // groups
    windows = next((t.shape[0] for t in masks if len(t.shape) == 4 and t.shape[0] > 1), query[0])
    if windows != query[0]:
        batch = ("b", "w")
        sizes |= {"b": query[0] // windows, "w": windows}
    return {
        "sizes": sizes,
        "q": (batch, heads, ("s",), ("d",)),
        "k": (batch, ("g",), keys, ("d",)),
        "v": (batch, ("g",), keys, ("e",)),
        "o": (*apart, batch, heads, ("s",), ("e",)),
        "lse": (*apart, batch, heads, ("s",)),
        "full": (batch, heads, ("s",), keys),
    }


def _mask_dims(mask: Sequence[int], d: Mapping[str, Any]) -> tuple[Dim, ...]:
    names = [n if size > 1 else () for n, size in zip(d["full"][-len(mask) :], mask, strict=True)]
    if len(mask) == 4 and mask[0] > 1:
        names[0] = d["full"][0][-1:]
    return tuple(names)


def _equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    query, key, value = (t.shape for t in inputs[:3])
    d = _dims(query, key, value, inputs[3:], attrs.get("parts"))
    masks = [_mask_dims(t.shape, d) for t in inputs[3:]]
    results = (d["o"], d["lse"])[: len(outputs)]
    # d and e are contracted or produced together with a softmax over t; only whole heads, the batch and
    # the queries can be split. A causal mask counts positions, so splitting s would need an offset.
    fixed = {"t", "d", "e", *(["s"] if attrs.get("causal") else [])}
    return Equation((d["q"], d["k"], d["v"], *masks), results, d["sizes"], frozenset(fixed), None)


def _backward_equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    _, query, key, value, *rest = inputs
    d = _dims(query.shape, key.shape, value.shape, rest[2:])
    masks = [_mask_dims(t.shape, d) for t in rest[2:]]
    fixed = {"t", "d", "e", *(["s"] if attrs.get("causal") else [])}
    return Equation(
        (d["o"], d["q"], d["k"], d["v"], d["o"], d["lse"], *masks),
        (d["q"], d["k"], d["v"], *masks)[: len(outputs)],
        d["sizes"],
        frozenset(fixed),
    )


def _products(node: Node, score_products: int, value_products: int) -> int:
    size = node.equation.sizes
    heads = size["b"] * size.get("w", 1) * size["g"] * size.get("r", 1)
    scores = heads * size["s"] * size["t"] * size.get("p", 1)
    return 2 * scores * (score_products * size["d"] + value_products * size["e"])


def _flops(node: Node) -> int:
    """Scores and weighted values, the full rectangle even if causal (PyTorch's convention)."""
    return _products(node, 1, 1)


def _backward_flops(node: Node) -> int:
    """Five products: the scores again, dV, dP, dQ and dK (Dao 2022, arXiv 2205.14135, algorithm 4)."""
    return _products(node, 3, 2)


def causal_fraction(node: Node) -> float:
    """Share of the score rectangle that a causal mask leaves, as `attend` masks it."""
    if not node.attrs.get("causal"):
        return 1.0
    share = node.attrs.get("causal_share")
    if share is not None:
        return float(share)
    s, t = node.equation.sizes["s"], node.equation.sizes["t"]
    window = node.attrs.get("window")
    if window is not None:
        return window_share(s, t, window)
    if t < s:
        return ((t + 1) / 2 + (s - t)) / s
    return (t - s + (s + 1) / 2) / t


def window_share(queries: int, keys: int, window: int) -> float:
    """Share of the score rectangle that a causal window leaves.

    Query i sees keys up to i + max(keys - queries, 0), and no more than `window` of them.
    """
    ends = np.arange(queries) + max(keys - queries, 0)
    seen = np.minimum(ends, keys - 1) - np.maximum(ends - window, -1)
    return float(np.maximum(seen, 0).sum() / (queries * keys))


def attention_in_parts(node: Node, parts: int) -> dict[str, Any]:
    """Attributes of the same attention with its keys in parts."""
    attrs = {**node.attrs, "parts": parts, "first_key": 0}
    if not attrs.get("causal"):
        return attrs
    queries, keys = node.equation.sizes["s"], node.equation.sizes["t"]
    ends = np.arange(queries) + max(keys - queries, 0) + 1
    starts = ends - attrs.get("window", keys)
    length = keys // parts
    first = np.arange(parts)[:, None] * length
    seen = np.minimum(ends, first + length) - np.maximum(starts, first)
    # The part that is seen most is the one to wait for.
    share = float(np.maximum(seen, 0).sum(axis=1).max() / (queries * length))
    return {**attrs, "first_query": max(keys - queries, 0), "causal_share": share}


def localize_attention(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    """Some of the queries under a causal mask, or some of the parts of the keys."""
    if name != "p":
        return localize_queries(node, name, start, stop)
    own: dict[str, Any] = {"parts": stop - start}
    if node.attrs.get("causal"):
        own["first_key"] = node.attrs["first_key"] + start * node.equation.sizes["t"]
    return own


def localize_queries(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    """Some of the queries under a causal mask: where they stand, and the work they have to do.

    Devices take queries from both ends of the sequence, so that each does the average work (zigzag,
    Llama 3, arXiv 2407.21783, section 3.3.2).
    """
    if name != "s" or not node.attrs.get("causal"):
        return {}
    return {"first_query": start, "causal_share": causal_fraction(node)}


def attend(
    query: Array, key: Array, value: Array, mask: Array | None, attrs: Mapping[str, Any]
) -> tuple[Array, Array, Array]:
    """Plain attention. Returns (output, log of the softmax sums, probabilities).

    Causal: with more keys than queries (a KV cache) the last query attends to every key; with fewer, query
    i attends to the first i + 1 keys. The attributes `first_query` and `first_key` say otherwise where the
    first ones stand, `second_query` and `second_key` where their second halves begin. A query that no key
    is left to has the sum 0, whose logarithm is minus infinity, and the output 0.
    """
    scale = attrs.get("scale")
    repeat = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, repeat, axis=1), np.repeat(value, repeat, axis=1)
    scores = np.einsum("bhsd,bhtd->bhst", query, key) * (scale or query.shape[-1] ** -0.5)
    if attrs.get("softcap"):
        scores = attrs["softcap"] * np.tanh(scores / attrs["softcap"])
    if attrs.get("causal"):
        s, t = scores.shape[-2:]
        last = _positions(s, attrs, "query", max(t - s, 0))[:, None]
        keys = _positions(t, attrs, "key", 0)
        seen = (keys <= last) & (keys > last - attrs.get("window", np.inf))
        scores = np.where(seen, scores, -np.inf)
    if mask is not None:
        mask = _over_batch(mask, scores.shape[0])
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    top = scores.max(axis=-1, keepdims=True)
    if "first_key" in attrs:
        top = np.maximum(top, np.finfo(scores.dtype).min)
    total = np.exp(scores - top).sum(axis=-1, keepdims=True)
    probabilities = np.exp(scores - top) / (np.maximum(total, 1) if "first_key" in attrs else total)
    output = np.einsum("bhst,bhte->bhse", probabilities, value)
    return output, (np.log(total) + top)[..., 0], probabilities


def _over_batch(mask: Array, batch: int) -> Array:
    """A mask of windows, once per image."""
    windows = mask.shape[0] if mask.ndim == 4 else 1
    found: Array = mask if windows in (1, batch) else np.tile(mask, (batch // windows, 1, 1, 1))
    return found


def _positions(count: int, attrs: Mapping[str, Any], what: str, start: int) -> Array:
    """Where the queries or keys of a device stand in the sequence."""
    first, second = attrs.get(f"first_{what}", start), attrs.get(f"second_{what}")
    if second is None:
        return np.asarray(np.arange(count) + first)
    half = np.arange(count // 2)
    return np.asarray(np.concatenate((half + first, half + second)))


def _evaluate(
    node: Node, query: Array, key: Array, value: Array, *mask: Array
) -> tuple[Array, ...]:
    parts = node.attrs.get("parts")
    if parts is None:
        return attend(query, key, value, mask[0] if mask else None, node.attrs)[: len(node.outputs)]
    length = key.shape[2] // parts
    runs = []
    for i in range(parts):
        own = slice(i * length, (i + 1) * length)
        of_part = mask[0] if mask else None
        if of_part is not None and of_part.shape[-1] > 1:
            of_part = of_part[..., own]
        attrs = {**node.attrs, "first_key": node.attrs["first_key"] + i * length}
        runs.append(attend(query, key[:, :, own], value[:, :, own], of_part, attrs))
    return np.stack([r[0] for r in runs]), np.stack([r[1] for r in runs])


def _evaluate_backward(
    node: Node,
    grad: Array,
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
    *mask: Array,
) -> tuple[Array, ...]:
    attrs = node.attrs
    scale = attrs.get("scale") or query.shape[-1] ** -0.5
    _, own, p = attend(query, key, value, mask[0] if mask else None, node.attrs)
    # The saved sums are those over all keys, also where this device holds some of them.
    p = p * np.exp(own - lse)[..., None]
    groups, repeat = key.shape[1], query.shape[1] // key.shape[1]
    wide_k, wide_v = np.repeat(key, repeat, axis=1), np.repeat(value, repeat, axis=1)
    dp = np.einsum("bhse,bhte->bhst", grad, wide_v)
    of_mask = p * (dp - (grad * out).sum(axis=-1, keepdims=True))
    ds = of_mask * scale
    if attrs.get("softcap"):
        raw = np.einsum("bhsd,bhtd->bhst", query, wide_k) * scale
        ds = ds * (1 - np.tanh(raw / attrs["softcap"]) ** 2)

    def per_group(x: Array) -> Array:
        return np.asarray(x.reshape(x.shape[0], groups, repeat, *x.shape[2:]).sum(axis=2))

    dq = np.einsum("bhst,bhtd->bhsd", ds, wide_k)
    dk = per_group(np.einsum("bhst,bhsd->bhtd", ds, query))
    dv = per_group(np.einsum("bhst,bhse->bhte", p, grad))
    found = (dq, dk, dv, *(_summed_to(m.shape, of_mask) for m in mask))
    return found[: len(node.outputs)]


def _summed_to(shape: Sequence[int], full: Array) -> Array:
    """The gradient of scores, summed over what a mask of this shape is broadcast to."""
    shape = (*[1] * (4 - len(shape)), *shape)
    apart = full.reshape(-1, shape[0], *full.shape[1:]).sum(axis=0)
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return np.asarray(apart.sum(axis=axes, keepdims=True).reshape(shape))


def _gradient(
    b: GradientBuilder, node: Node, grads: Sequence[Value | None]
) -> Sequence[Value | None]:
    grad = grads[0]
    if grad is None:
        return [None] * len(node.inputs)
    query, key, value, *masks = node.inputs
    added = [m.type for m in masks if b.needs(m) and m.type.dtype.is_float]
    results = b.emit(
        node,
        "attention_backward",
        [grad, query, key, value, *node.outputs, *masks],
        [query.type, key.type, value.type, *added],
        node.attrs,
    )
    return [*results, *[None] * (len(masks) - len(added))]


def _merge_equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    full: tuple[Dim, ...] = (("b",), ("h",), ("s",), ("e",))
    sizes = dict(zip("bhse", inputs[0].shape, strict=True))
    return Equation((full, full[:3]) * 2, (full, full[:3]), sizes, reduction=None)


def _merge(
    node: Node, output: Array, lse: Array, other: Array, other_lse: Array
) -> tuple[Array, Array]:
    top = np.maximum(lse, other_lse)
    one, two = np.exp(lse - top), np.exp(other_lse - top)
    total = one + two
    merged = (output * one[..., None] + other * two[..., None]) / total[..., None]
    return merged, np.log(total) + top


register(
    # Attention to two sets of keys from the attention to each: output and logarithm of the sums, twice. Per
    # element out - w (out - other), with a weight per row (Liu et al. 2023, arXiv 2310.01889, section 3).
    OpDef(
        "attention_merge",
        "elementwise",
        _merge_equation,
        flops=3,
        engine="vector",
        evaluate=_merge,
    ),
    OpDef(
        "attention",
        "attention",
        _equation,
        flops=_flops,
        engine="matrix",
        gradient=_gradient,
        evaluate=_evaluate,
        executed_fraction=causal_fraction,
        localize=localize_attention,
    ),
    OpDef(
        "attention_backward",
        "attention",
        _backward_equation,
        flops=_backward_flops,
        engine="matrix",
        evaluate=_evaluate_backward,
        executed_fraction=causal_fraction,
        localize=localize_queries,
    ),
)
