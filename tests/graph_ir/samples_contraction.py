"""Samples of products, convolutions and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from op_sample import Array, Sample, normal, sample

from graph_ir.equation import bind


def products() -> list[Sample]:
    bilinear = bind("b s i, o i j, b s j -> b s o", [(2, 3, 4), (5, 4, 6), (2, 3, 6)], [(2, 3, 5)])
    compound = bind("b (h d) s, h d n -> b s n", [(2, 6, 5), (3, 2, 4)], [(2, 5, 4)])
    return [
        sample("linear", [normal(2, 3, 4), normal(5, 4)], (2, 3, 5), torch=F.linear),
        sample(
            "linear",
            [normal(1, 3, 4), normal(5, 4)],
            (1, 3, 5),
            torch=F.linear,
            label="batch-of-one",
        ),
        sample("matmul", [normal(2, 3, 4), normal(2, 4, 5)], (2, 3, 5), torch=torch.matmul),
        sample(
            "matmul",
            [normal(2, 1, 3, 4), normal(6, 4, 5)],
            (2, 6, 3, 5),
            torch=torch.matmul,
            label="broadcast",
        ),
        sample("matmul", [normal(3, 4), normal(4, 5)], (3, 5), torch=torch.matmul, label="plain"),
        sample(
            "grouped_matmul",
            [normal(6, 4), normal(3, 4, 5)],
            (6, 5),
            torch=lambda x, w: torch.cat(
                [rows @ part for rows, part in zip(x.split(2), w, strict=True)]
            ),
        ),
        sample(
            "einsum",
            [normal(2, 3, 4), normal(5, 4, 6), normal(2, 3, 6)],
            (2, 3, 5),
            {"equation": bilinear},
            lambda x, w, y: torch.einsum("bsi,oij,bsj->bso", x, w, y),
        ),
        sample(
            "einsum",
            [normal(2, 6, 5), normal(3, 2, 4)],
            (2, 5, 4),
            {"equation": compound},
            lambda x, w: torch.einsum("bhds,hdn->bsn", x.reshape(2, 3, 2, 5), w),
            label="compound",
        ),
    ]


def conv_sample(
    image: Sequence[int], weight: Sequence[int], groups: int = 1, label: str = "", **window: Any
) -> Sample:
    rank = len(weight) - 2
    given = {
        k: tuple(window.get(k, (v,) * rank))
        for k, v in {"stride": 1, "padding": 0, "dilation": 1}.items()
    }
    function = getattr(F, f"conv{rank}d")

    def run(x: Any, w: Any) -> Any:
        return function(x, w, None, given["stride"], given["padding"], given["dilation"], groups)

    x, w = normal(*image), normal(*weight)
    shape = run(torch.from_numpy(x), torch.from_numpy(w)).shape
    return sample("conv", [x, w], shape, {**given, "groups": groups}, run, label=label)


def conv_transpose_sample(
    image: Sequence[int],
    weight: Sequence[int],
    groups: int = 1,
    extra: int = 0,
    label: str = "",
    **window: Any,
) -> Sample:
    rank = len(weight) - 2
    given = {
        k: tuple(window.get(k, (v,) * rank))
        for k, v in {"stride": 1, "padding": 0, "dilation": 1}.items()
    }
    function = getattr(F, f"conv_transpose{rank}d")

    def run(x: Any, w: Any) -> Any:
        return function(
            x, w, None, given["stride"], given["padding"], extra, groups, given["dilation"]
        )

    x, w = normal(*image), normal(*weight)
    shape = run(torch.from_numpy(x), torch.from_numpy(w)).shape
    return sample("conv_transpose", [x, w], shape, {**given, "groups": groups}, run, label=label)


def convolutions() -> list[Sample]:
    return [
        conv_sample((3, 4, 6, 5), (2, 4, 3, 2), label="plain"),
        conv_sample(
            (2, 4, 7, 6),
            (5, 4, 3, 3),
            stride=(2, 1),
            padding=(1, 2),
            dilation=(1, 2),
            label="window",
        ),
        conv_sample((2, 6, 5, 4), (9, 2, 3, 3), groups=3, padding=(1, 1), label="groups"),
        conv_sample(
            (2, 5, 4, 4), (5, 1, 3, 3), groups=5, stride=(2, 2), padding=(1, 1), label="depthwise"
        ),
        conv_sample((2, 3, 5, 4), (4, 3, 1, 1), label="pointwise"),
        conv_sample((2, 3, 5, 4), (4, 3, 1, 1), stride=(2, 2), label="pointwise-strided"),
        conv_sample((2, 3, 5, 6), (4, 3, 1, 3), padding=(0, 1), stride=(1, 2), label="one-row"),
        conv_sample((2, 3, 9), (4, 3, 4), stride=(3,), padding=(1,), label="one-dim"),
        conv_sample((1, 2, 4, 3, 5), (3, 2, 2, 1, 3), padding=(1, 0, 1), label="three-dims"),
        conv_transpose_sample(
            (2, 4, 3, 5), (4, 3, 3, 2), stride=(2, 1), padding=(1, 0), extra=0, label="plain"
        ),
        conv_transpose_sample(
            (2, 6, 3, 4),
            (6, 2, 3, 3),
            groups=3,
            stride=(2, 2),
            padding=(1, 1),
            extra=1,
            label="groups",
        ),
        conv_transpose_sample((2, 3, 5), (3, 2, 3), dilation=(2,), label="dilation"),
    ]


def attention_sample(
    heads: int,
    groups: int,
    s: int = 5,
    t: int = 5,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    label: str = "",
) -> Sample:
    q, k, v = normal(2, heads, s, 4), normal(2, groups, t, 4), normal(2, groups, t, 6)
    arrays = [q, k, v] + ([mask] if mask is not None else [])

    def run(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        if causal and (s != t or window):
            mask = torch.ones(s, t, dtype=torch.bool).tril(t - s)
        if window:
            mask = mask.triu(t - s - window + 1)
        return F.scaled_dot_product_attention(
            q, k, v, mask, 0.0, causal and mask is None, scale=scale, enable_gqa=heads != groups
        )

    attrs = {"causal": causal, "scale": scale, "dropout": 0.0}
    if window:
        attrs["window"] = window
    results = [((2, heads, s, 6), "float64"), ((2, heads, s), "float64")]
    return sample("attention", arrays, results, attrs, run, label=label, grads=(0, 1, 2))


def attention_in_parts(causal: bool) -> Sample:
    """Queries at the end of the sequence and its keys in two runs, each attended to by itself."""
    s, t, parts = 3, 8, 2
    arrays = [normal(2, 6, s, 4), normal(2, 3, t, 4), normal(2, 3, t, 6)]

    def run(q: Any, k: Any, v: Any) -> Any:
        seen = torch.ones(s, t, dtype=torch.bool)
        seen = (seen.tril(t - s) if causal else seen).chunk(parts, 1)
        runs = zip(k.chunk(parts, 2), v.chunk(parts, 2), seen, strict=True)
        return torch.stack(
            [F.scaled_dot_product_attention(q, k, v, m, enable_gqa=True) for k, v, m in runs]
        )

    attrs = {"causal": causal, "parts": parts, "first_key": 0, "first_query": t - s}
    results = [((parts, 2, 6, s, 6), "float64"), ((parts, 2, 6, s), "float64")]
    label = "causal parts" if causal else "parts"
    return sample("attention", arrays, results, attrs, run, label=label, grads=())


def attention() -> list[Sample]:
    return [
        attention_sample(3, 3, 5, 7, label="plain"),
        attention_sample(3, 3, 6, 6, causal=True, window=3, label="window"),
        attention_sample(4, 2, 3, 7, causal=True, window=4, label="window with a cache"),
        attention_sample(6, 3, 5, 7, label="grouped"),
        attention_sample(6, 2, causal=True, label="causal"),
        attention_sample(3, 3, 4, 7, causal=True, label="causal-cached"),
        attention_sample(3, 3, 4, 7, scale=0.2, mask=normal(4, 7), label="bias"),
        attention_sample(6, 3, 4, 7, mask=normal(2, 6, 4, 7), label="full-bias"),
        attention_sample(6, 3, 4, 7, mask=np.arange(7) < [[[[5]]], [[[7]]]], label="padding"),
        attention_in_parts(causal=False),
        attention_in_parts(causal=True),
        attention_merge(),
        *rotary(),
    ]


def attention_merge() -> Sample:
    """Attention to two sets of keys, merged, is attention to all of them."""
    q, k, v = normal(2, 3, 5, 4), normal(2, 3, 7, 4), normal(2, 3, 7, 6)
    arrays = []
    for keys, values in ((k[:, :, :2], v[:, :, :2]), (k[:, :, 2:], v[:, :, 2:])):
        scores = torch.from_numpy(np.einsum("bhsd,bhtd->bhst", q, keys))
        mixed = torch.softmax(scores, dim=-1) @ torch.from_numpy(values)
        arrays += [mixed.numpy(), torch.logsumexp(scores, dim=-1).numpy()]

    def whole(*_: Any) -> Any:
        scores = torch.from_numpy(np.einsum("bhsd,bhtd->bhst", q, k))
        mixed = torch.softmax(scores, dim=-1) @ torch.from_numpy(v)
        return mixed, torch.logsumexp(scores, dim=-1)

    results = [((2, 3, 5, 6), "float64"), ((2, 3, 5), "float64")]
    return sample("attention_merge", arrays, results, torch=whole)


def rotary() -> list[Sample]:
    def halves(x: Any, cos: Any, sin: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    def pairs(x: Any, cos: Any, sin: Any) -> Any:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1)
        return x * cos + turned.flatten(-2) * sin

    x = normal(2, 3, 5, 4)
    return [
        sample(
            "rotary_embedding",
            [x, normal(*shape), normal(*shape)],
            attrs={"rotate": run.__name__},
            torch=run,
            label=f"{run.__name__}-{len(shape)}",
            grads=(0,),
        )
        for run in (halves, pairs)
        for shape in ((5, 4), (2, 1, 5, 4))
    ]
