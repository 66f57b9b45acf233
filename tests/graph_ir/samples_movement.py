"""Samples of operators that rearrange or look up elements, and of the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from op_sample import Sample, index, normal, sample


def movement() -> list[Sample]:
    x, flat = normal(4, 3, 6), normal(3, 24)
    pieces = [normal(4, n, 6) for n in (2, 3, 1)]

    def reshape(old: Sequence[int], new: Sequence[int]) -> Sample:
        label = f"{'x'.join(map(str, old))}-{'x'.join(map(str, new))}"
        return sample(
            "reshape",
            [normal(*old)],
            new,
            {"view": True},
            lambda x: x.reshape(tuple(new)),
            label=label,
        )

    ring = [normal(2, 3, 5) for _ in range(4)]
    return [
        # A ring's second chunk; and what rank 1 of 4 received: its own, then those of ranks 0, 3 and 2.
        sample(
            "ring_chunk",
            [normal(2, 12, 5)],
            (2, 4, 5),
            {"dim": 1, "index": 1, "view": True},
            lambda x: x.chunk(3, 1)[1],
        ),
        sample(
            "ring_join",
            ring,
            (2, 12, 5),
            {"dim": 1, "index": 1},
            lambda own, first, last, third: torch.cat((first, own, third, last), 1),
        ),
        reshape((3, 20), (3, 4, 5)),
        reshape((4, 6), (8, 3)),
        reshape((2, 3), (3, 2)),
        reshape((2, 1, 15), (30,)),
        reshape((4, 3, 5), (2, 2, 1, 15)),
        sample("expand", [normal()], (2, 3), torch=lambda x: x.expand(2, 3), label="number"),
        sample(
            "expand", [normal(1, 4)], (3, 1, 4), torch=lambda x: x.expand(3, 1, 4), label="lead"
        ),
        sample(
            "concat",
            [normal(2, 3), normal(2, 4)],
            (2, 7),
            {"axis": -1},
            lambda *xs: torch.cat(xs, -1),
            label="last",
        ),
        sample(
            "split",
            [normal(2, 6)],
            [((2, 3), "float64")] * 2,
            {"axis": -1},
            lambda x: x.chunk(2, -1),
            label="last",
        ),
        sample("detach", [x], torch=lambda x: x, grads=()),
        sample("transpose", [x], (6, 4, 3), {"perm": (2, 0, 1)}, lambda x: x.permute(2, 0, 1)),
        sample("expand", [normal(3, 1, 5)], (2, 3, 4, 5), torch=lambda x: x.expand(2, 3, 4, 5)),
        sample(
            "slice",
            [x],
            (4, 2, 3),
            {"starts": (0, 1, 1), "steps": (1, 1, 2)},
            lambda x: x[:, 1:3, 1:7:2],
        ),
        sample(
            "slice",
            [x],
            (4, 3, 6),
            {"starts": (0, 0, 5), "steps": (1, 1, -1)},
            lambda x: x.flip(2),
            label="reversed",
        ),
        sample(
            "split",
            [flat],
            [((3, 8), "float64")] * 3,
            {"axis": 1, "view": True},
            lambda x: x.split(8, 1),
            label="even",
        ),
        sample(
            "split",
            [flat],
            [((3, n), "float64") for n in (10, 2, 12)],
            {"axis": 1},
            lambda x: x.split([10, 2, 12], 1),
            label="uneven",
        ),
        sample(
            "concat", pieces, (4, 6, 6), {"axis": 1}, lambda *xs: torch.cat(xs, 1), label="uneven"
        ),
        sample(
            "concat",
            [normal(4, 5) for _ in range(3)],
            (4, 15),
            {"axis": 1},
            lambda *xs: torch.cat(xs, 1),
            label="even",
        ),
        sample(
            "slice_update",
            [x, normal(4, 2, 6)],
            attrs={"axis": 1, "start": 1},
            torch=lambda x, u: torch.slice_scatter(x, u, 1, 1, 3),
        ),
        sample(
            "slice_update",
            [x, normal(4, 2, 6)],
            attrs={"axis": 1, "start": 2, "clipped": True},
            torch=lambda x, u: torch.slice_scatter(x, u[:, :1], 1, 2, 3),
            label="clipped",
            grads=(),
        ),
        sample("pad", [x], (4, 6, 6), {"before": (0, 2, 0)}, lambda x: F.pad(x, (0, 0, 2, 1))),
        sample(
            "pad",
            [x],
            (4, 3, 6),
            {"before": (0, 1, -1)},
            lambda x: F.pad(x, (-1, 1, 1, -1)),
            label="shift",
        ),
        sample("triangle", [x], attrs={"diagonal": 1}, torch=lambda x: x.tril(1), label="lower"),
        sample(
            "triangle",
            [x],
            attrs={"upper": True, "diagonal": -1},
            torch=lambda x: x.triu(-1),
            label="upper",
        ),
        sample("flip", [x], attrs={"axes": (0, 2)}, torch=lambda x: x.flip(0, 2)),
        sample(
            "interpolate",
            [normal(2, 3, 4, 5)],
            (2, 3, 8, 10),
            {"mode": "nearest"},
            lambda x: F.interpolate(x, scale_factor=2),
            label="nearest",
        ),
        sample(
            "interpolate",
            [normal(2, 3, 4, 5)],
            (2, 3, 7, 10),
            {"mode": "linear"},
            lambda x: F.interpolate(x, size=(7, 10), mode="bilinear"),
            label="linear",
        ),
    ]


def lookups() -> list[Sample]:
    table, picks, x = normal(7, 4), index(7, 3, 5), normal(4, 6, 3)
    elements = index(6, 4, 2, 3)
    # Without repetitions: which of two updates of one place wins is nobody's business.
    places = np.argsort(normal(4, 6, 3), axis=1)[:, :2]
    logs, target = F.log_softmax(torch.from_numpy(normal(5, 7)), -1).numpy(), index(7, 5)
    mean = {"divisor": 5}
    return [
        sample("gather", [table, picks], (3, 5, 4), {"axis": 0}, lambda t, i: F.embedding(i, t)),
        sample(
            "gather",
            [x, index(6, 5)],
            (4, 5, 3),
            {"axis": 1},
            lambda x, i: torch.index_select(x, 1, i),
            label="inner",
        ),
        sample("gather", [table, np.array(2)], (4,), {"axis": 0}, lambda t, i: t[i], label="one"),
        sample(
            "gather_elements",
            [x, elements],
            elements.shape,
            {"axis": 1},
            lambda x, i: torch.gather(x, 1, i),
        ),
        sample(
            "gather_elements",
            [x, elements[:3]],
            (3, 2, 3),
            {"axis": 1},
            lambda x, i: torch.gather(x, 1, i),
            label="fewer",
        ),
        sample(
            "scatter_elements",
            [x, places, normal(4, 2, 3)],
            attrs={"axis": 1},
            torch=lambda x, i, u: x.scatter(1, i, u),
        ),
        sample(
            "scatter_elements",
            [x, elements, normal(4, 2, 3)],
            attrs={"axis": 1, "reduction": "add"},
            torch=lambda x, i, u: x.scatter_add(1, i, u),
            label="add",
        ),
        sample(
            "histogram",
            [index(4, 3, 5)],
            (4,),
            dtype="int64",
            torch=lambda x: torch.bincount(x.flatten(), minlength=4),
        ),
        sample("nll_loss", [logs, target], (), torch=F.nll_loss, label="mean"),
        sample("nll_loss", [logs, target], (), mean, F.nll_loss, label="divisor"),
        sample(
            "nll_loss",
            [logs, target],
            (5,),
            torch=lambda x, t: F.nll_loss(x, t, reduction="none"),
            label="rows",
        ),
    ]
