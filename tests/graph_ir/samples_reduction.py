"""Samples of norms, reductions, pooling, sorting and sums along a dim."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from op_sample import Sample, normal, sample


def selective_scan(u, dt, a, b, c):  # type: ignore[no-untyped-def]
    """Mamba's recurrence step by step."""
    state, ys = torch.zeros(*u.shape[:2], a.shape[1], dtype=u.dtype), []
    for i in range(u.shape[2]):
        step = dt[:, :, i, None]
        state = torch.exp(step * a) * state + step * u[:, :, i, None] * b[:, None, :, i]
        ys.append((state * c[:, None, :, i]).sum(-1))
    return torch.stack(ys, -1)


def norms() -> list[Sample]:
    x, image = normal(2, 3, 5), normal(3, 6, 4, 5)
    weight, bias, channel, shift = normal(5), normal(5), normal(6), normal(6)
    rows, groups, channels = ((2, 3), "float64"), ((3, 2), "float64"), ((6,), "float64")
    running = [normal(6), normal(6, low=0.5, high=2)]
    whole = (x.shape, "float64")
    return [
        *(
            sample(
                n,
                [normal(2, 3, 5)],
                attrs={"axis": a},
                torch=lambda x, n=n, a=a: getattr(F, n)(x, a),
                label=str(a),
            )
            for n in ("softmax", "log_softmax")
            for a in (-1, 1)
        ),
        sample(
            "layer_norm",
            [x, weight, bias],
            [whole, rows, rows],
            torch=lambda x, w, b: F.layer_norm(x, (5,), w, b),
        ),
        sample(
            "layer_norm",
            [x, weight, bias],
            torch=lambda x, w, b: F.layer_norm(x, (5,), w, b),
            label="one-result",
        ),
        sample(
            "layer_norm",
            [x, weight],
            [whole, rows, rows],
            torch=lambda x, w: F.layer_norm(x, (5,), w),
            label="no-bias",
        ),
        sample(
            "layer_norm",
            [x],
            [whole, ((2,), "float64"), ((2,), "float64")],
            {"rank": 2, "eps": 0.1},
            lambda x: F.layer_norm(x, (3, 5), eps=0.1),
            label="plain",
        ),
        sample(
            "rms_norm",
            [x, weight],
            [whole, rows],
            {"eps": 0.1},
            lambda x, w: F.rms_norm(x, (5,), w, 0.1),
        ),
        sample(
            "rms_norm",
            [x],
            attrs={"eps": 0.1},
            torch=lambda x: F.rms_norm(x, (5,), eps=0.1),
            label="one-result",
        ),
        sample(
            "group_norm",
            [image, channel, shift],
            attrs={"groups": 2},
            torch=lambda x, w, b: F.group_norm(x, 2, w, b),
        ),
        sample(
            "group_norm",
            [image, channel, shift],
            [(image.shape, "float64"), groups, groups],
            {"groups": 2},
            lambda x, w, b: F.group_norm(x, 2, w, b),
            label="statistics",
        ),
        sample("group_norm", [image], attrs={"groups": 6}, torch=F.instance_norm, label="instance"),
        sample(
            "batch_norm",
            [image, channel, shift, *running],
            torch=lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b),
            label="inference",
            grads=(0, 1, 2),
        ),
        sample(
            "batch_norm",
            [image, channel, shift],
            [(image.shape, "float64"), channels, channels],
            {"training": True},
            lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
            label="training",
        ),
        sample(
            "local_response_norm",
            [image],
            attrs={"size": 3, "alpha": 0.3, "beta": 0.75, "bias": 1.0},
            torch=lambda x: F.local_response_norm(x, 3, 0.3, 0.75, 1.0),
        ),
    ]


def reductions() -> list[Sample]:
    x = normal(2, 3, 5)
    found = []
    for name, function in {
        "reduce_sum": torch.sum,
        "reduce_mean": torch.mean,
        "reduce_max": torch.amax,
        "reduce_min": torch.amin,
        "reduce_norm": torch.linalg.vector_norm,
    }.items():
        for axes, keep, shape in (
            ((1,), False, (2, 5)),
            ((0, 2), True, (1, 3, 1)),
            ((0, 1, 2), False, ()),
        ):
            found.append(
                sample(
                    name,
                    [x],
                    shape,
                    {"axes": axes, "keepdims": keep},
                    lambda x, f=function, a=axes, k=keep: f(x, dim=a, keepdim=k),
                    label=f"{len(axes)}",
                )
            )
    image, window = normal(2, 3, 7, 6), {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)}
    dilated = {"kernel": (2, 3), "stride": (2, 1), "dilation": (2, 1)}
    ceil = {"kernel": (3, 3), "stride": (2, 2), "count_include_pad": False}
    return [
        *found,
        sample("reduce_sum", [x], (2, 3, 5), {"axes": ()}, lambda x: x, label="none"),
        sample("reduce_sum", [x], (2, 3), {"axes": (-1,)}, lambda x: x.sum(-1), label="last"),
        sample("reduce_mean", [x], (), None, torch.mean, label="all"),
        sample("softmax", [normal(4)], torch=lambda x: torch.softmax(x, 0), label="vector"),
        sample(
            "selective_scan",
            [
                normal(2, 3, 4),
                normal(2, 3, 4, low=0.1),
                -normal(3, 5, low=0.1),
                normal(2, 5, 4),
                normal(2, 5, 4),
            ],
            [((2, 3, 4), "float64"), ((2, 3, 5), "float64")],
            torch=selective_scan,
        ),
        sample("determinant", [normal(5, 3, 3)], (5,), torch=torch.linalg.det),
        *(
            sample(
                "triangular_solve",
                [normal(2, 5, 4, 4) + 4 * np.eye(4), normal(2, 5, 4, 3)],
                (2, 5, 4, 3),
                {"rows": 2, "upper": upper, "unit": unit},
                lambda a, b, upper=upper, unit=unit: torch.linalg.solve_triangular(
                    a, b, upper=upper, unitriangular=unit
                ),
                label=f"{upper}-{unit}",
            )
            for upper in (False, True)
            for unit in (False, True)
        ),
        sample("reduce_prod", [x], (2, 5), {"axes": (1,)}, lambda x: torch.prod(x, 1)),
        sample("max_pool", [image], (2, 3, 4, 4), window, lambda x: F.max_pool2d(x, (3, 2), 2, 1)),
        sample(
            "max_pool",
            [image - 9],
            (2, 3, 3, 4),
            dilated,
            lambda x: F.max_pool2d(x, (2, 3), (2, 1), 0, (2, 1)),
            label="dilated",
        ),
        sample(
            "max_pool",
            [image],
            [((2, 3, 4, 4), "float64"), ((2, 3, 4, 4), "int64")],
            window,
            lambda x: F.max_pool2d(x, (3, 2), 2, 1),
            label="places-kept",
        ),
        sample(
            "avg_pool",
            [image],
            (2, 3, 4, 4),
            window | {"count_include_pad": True},
            lambda x: F.avg_pool2d(x, (3, 2), 2, 1),
            label="with-padding",
        ),
        sample(
            "avg_pool",
            [image],
            (2, 3, 4, 4),
            window,
            lambda x: F.avg_pool2d(x, (3, 2), 2, 1, count_include_pad=False),
        ),
        sample(
            "avg_pool",
            [image],
            (2, 3, 3, 3),
            ceil,
            lambda x: F.avg_pool2d(x, 3, 2, 0, True, count_include_pad=False),
            label="ceil",
        ),
        sample(
            "topk",
            [x],
            [((2, 3, 2), "float64"), ((2, 3, 2), "int64")],
            {"axis": -1},
            lambda x: torch.topk(x, 2, -1),
        ),
        sample(
            "sort",
            [x],
            [((2, 3, 5), "float64"), ((2, 3, 5), "int64")],
            {"axis": 1},
            lambda x: torch.sort(x, 1),
        ),
        sample(
            "sort",
            [x],
            [((2, 3, 5), "float64"), ((2, 3, 5), "int64")],
            {"axis": -1, "descending": True},
            lambda x: torch.sort(x, -1, descending=True),
            label="descending",
        ),
        sample(
            "argmax",
            [x],
            (2, 5),
            {"axis": 1},
            lambda x: torch.argmax(x, 1),
            dtype="int64",
            grads=(),
        ),
        sample(
            "argmin",
            [x],
            (2, 3),
            {"axis": 2},
            lambda x: torch.argmin(x, 2),
            dtype="int64",
            grads=(),
        ),
        sample("cumsum", [x], attrs={"axis": 1}, torch=lambda x: torch.cumsum(x, 1)),
        sample(
            "cumsum",
            [x],
            attrs={"axis": -1, "reverse": True},
            label="reverse",
            torch=lambda x: torch.flip(torch.cumsum(torch.flip(x, [-1]), -1), [-1]),
        ),
        sample("cumprod", [x], attrs={"axis": 1}, torch=lambda x: torch.cumprod(x, 1)),
    ]
