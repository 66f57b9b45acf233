"""Samples of the parts that layer norm and RMS norm are taken into."""

from __future__ import annotations

from typing import Any

import torch
from op_sample import Sample, normal, sample

WIDTH = 5


def _statistics(x: Any, centred: bool) -> list[Any]:
    mean = [x.mean(-1)] if centred else []
    variance = x.var(-1, correction=0) if centred else x.pow(2).mean(-1)
    return [*mean, torch.rsqrt(variance + 0.1)]


def _normalised(x: Any, statistics: Any) -> Any:
    *mean, inverse = (s[..., None] for s in statistics)
    return (x - mean[0] if mean else x) * inverse


def norm_parts() -> list[Sample]:
    x, dy, weight, bias = normal(2, 3, WIDTH), normal(2, 3, WIDTH), normal(WIDTH), normal(WIDTH)
    found = []
    for centred in (True, False):
        attrs = {"rank": 1, "width": WIDTH, "eps": 0.1, "centred": centred}
        count = 2 if centred else 1
        rows = ((2, 3), "float64")
        label = "layer" if centred else "rms"
        given = [s.numpy() for s in _statistics(torch.from_numpy(x), centred)]

        def sums(x: Any, centred: bool = centred) -> Any:
            terms = [x, x * x] if centred else [x * x]
            return torch.stack([t.sum(-1) for t in terms])

        def statistics(s: Any, centred: bool = centred) -> Any:
            *mean, square = s / WIDTH
            return (*mean, torch.rsqrt(square - mean[0] ** 2 + 0.1 if mean else square + 0.1))

        def scale(x: Any, *rest: Any, count: int = count) -> Any:
            y = _normalised(x, rest[:count]) * rest[count]
            return y + rest[count + 1] if len(rest) > count + 1 else y

        def backward_sums(dy: Any, x: Any, *rest: Any, count: int = count) -> Any:
            g = dy * rest[count] if len(rest) > count else dy
            terms = [g, g * _normalised(x, rest[:count])]
            return torch.stack([t.sum(-1) for t in terms[-count:]])

        def backward_scale(dy: Any, x: Any, *rest: Any, centred: bool = centred) -> Any:
            """What autograd finds; the statistics and sums are those of x and dy."""
            leaves = [t.clone().requires_grad_() for t in (x, rest[-1], rest[-1])]
            y = _normalised(leaves[0], _statistics(leaves[0], centred)) * leaves[1] + leaves[2]
            y.backward(dy)
            return tuple(t.grad for t in leaves)

        moments = sums(torch.from_numpy(x)).numpy()
        given_sums = backward_sums(*map(torch.from_numpy, (dy, x, *given, weight))).numpy()
        found += [
            sample("norm_sums", [x], (count, 2, 3), attrs, sums, label=label),
            sample("norm_statistics", [moments], [rows] * count, attrs, statistics, label=label),
            sample("norm_scale", [x, *given, weight, bias], attrs=attrs, torch=scale, label=label),
            sample(
                "norm_backward_sums",
                [dy, x, *given, weight],
                (count, 2, 3),
                attrs,
                backward_sums,
                label=label,
            ),
            sample(
                "norm_backward_scale",
                [dy, x, *given, given_sums, weight],
                [(x.shape, "float64"), *[((WIDTH,), "float64")] * 2],
                {**attrs, "sums": True},
                backward_scale,
                label=label,
            ),
        ]
    return found
