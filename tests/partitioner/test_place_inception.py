"""Inception-V3 (Szegedy et al. 2015, arXiv 1512.00567, table 1), the network of the placement literature."""

from __future__ import annotations

import time

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from costing.collectives import collective_cost  # noqa: E402
from costing.hardware_file import load_hardware  # noqa: E402
from costing.kernels import eager_groups, price_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.placing import Placement, exact, place  # noqa: E402


class Conv(nn.Sequential):
    def __init__(
        self, inner: int, outer: int, kernel: object, stride: int = 1, padding: object = 0
    ):
        super().__init__(
            nn.Conv2d(inner, outer, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(outer, eps=0.001),
            nn.ReLU(),
        )


class Branches(nn.Module):
    """Several ways from one input, concatenated."""

    def __init__(self, *ways: nn.Module) -> None:
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([way(x) for way in self.ways], 1)


def pool() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1)


def module_a(c: int, pooled: int) -> nn.Module:
    return Branches(
        Conv(c, 64, 1),
        nn.Sequential(Conv(c, 48, 1), Conv(48, 64, 5, 1, 2)),
        nn.Sequential(Conv(c, 64, 1), Conv(64, 96, 3, 1, 1), Conv(96, 96, 3, 1, 1)),
        nn.Sequential(pool(), Conv(c, pooled, 1)),
    )


def module_c(n: int) -> nn.Module:
    row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
    return Branches(
        Conv(768, 192, 1),
        nn.Sequential(Conv(768, n, 1), Conv(n, n, **row), Conv(n, 192, **column)),
        nn.Sequential(
            Conv(768, n, 1),
            Conv(n, n, **column),
            Conv(n, n, **row),
            Conv(n, n, **column),
            Conv(n, 192, **row),
        ),
        nn.Sequential(pool(), Conv(768, 192, 1)),
    )


def module_e(c: int) -> nn.Module:
    def fork(n: int) -> nn.Module:
        return Branches(Conv(n, 384, (1, 3), padding=(0, 1)), Conv(n, 384, (3, 1), padding=(1, 0)))

    return Branches(
        Conv(c, 320, 1),
        nn.Sequential(Conv(c, 384, 1), fork(384)),
        nn.Sequential(Conv(c, 448, 1), Conv(448, 384, 3, 1, 1), fork(384)),
        nn.Sequential(pool(), Conv(c, 192, 1)),
    )


def inception_v3() -> nn.Module:
    shrink_b = Branches(
        Conv(288, 384, 3, 2),
        nn.Sequential(Conv(288, 64, 1), Conv(64, 96, 3, 1, 1), Conv(96, 96, 3, 2)),
        nn.MaxPool2d(3, 2),
    )
    row, column = Conv(192, 192, (1, 7), padding=(0, 3)), Conv(192, 192, (7, 1), padding=(3, 0))
    shrink_d = Branches(
        nn.Sequential(Conv(768, 192, 1), Conv(192, 320, 3, 2)),
        nn.Sequential(Conv(768, 192, 1), row, column, Conv(192, 192, 3, 2)),
        nn.MaxPool2d(3, 2),
    )
    return nn.Sequential(
        *(Conv(3, 32, 3, 2), Conv(32, 32, 3), Conv(32, 64, 3, 1, 1), nn.MaxPool2d(3, 2)),
        *(Conv(64, 80, 1), Conv(80, 192, 3), nn.MaxPool2d(3, 2)),
        *(module_a(192, 32), module_a(256, 64), module_a(288, 64), shrink_b),
        *(module_c(128), module_c(160), module_c(160), module_c(192), shrink_d),
        *(module_e(1280), module_e(2048), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(2048, 1000),
    )


@pytest.fixture(scope="module")
def found() -> tuple[Placement, float]:
    hardware = load_hardware("a100-sxm-80gb")
    model = load(inception_v3(), example_inputs=(torch.zeros(32, 3, 299, 299),))
    parameters = sum(v.type.elements for v in model.graph.parameters)
    assert parameters == 23_834_568  # what is published, without the auxiliary classifier
    kernels = eager_groups(model.graph)
    costs = price_graph(model.graph, hardware, kernels)

    def transfer_s(size: int) -> float:
        return float(collective_cost(hardware, "send", size, 2).time_s[0])

    began = time.process_time()
    placed = place(model.graph, kernels, lambda n: costs[n].time_s, transfer_s, 2, limit_s=30)
    return placed, time.process_time() - began


def test_two_devices_are_faster_than_one(found: tuple[Placement, float]) -> None:
    placed, _ = found
    assert 1 < placed.speedup <= placed.work_s / placed.critical_path_s
    assert placed.makespan_s <= placed.greedy_s
    assert placed.bound_s <= placed.makespan_s
    assert placed.segments >= 11  # at least one per inception module


@pytest.mark.skipif(not exact.available(), reason="highspy is not installed")
def test_it_is_solved_in_bounded_time(found: tuple[Placement, float]) -> None:
    placed, seconds = found
    assert seconds < 40
    assert placed.gap < 0.02
    assert not placed.notes


def test_only_branches_are_cut(found: tuple[Placement, float]) -> None:
    """Outside the modules everything lies on one device: the stem is a chain."""
    placed, _ = found
    stem = [o for o in placed.operators if o.node.op == "conv"][:5]
    assert len({o.device for o in stem}) == 1
