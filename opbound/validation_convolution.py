"""Measured convolutions in fp32 against the faster of their algorithms.

NeuSight times calls one by one (events around one call of `torch.nn.Conv2d` on an idle card, the five
fastest of 25) and profiles each shape in between. So a row is the host's call and the kernels it
launches, at the clock of a card that rests between calls; not a kernel in a queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from costing.gemm import gemm_cost
from costing.hardware_file import load_hardware
from costing.winograd import TAPS, WinogradShape, winograd_cost
from graph_ir.tensor_type import DType
from opbound.validation_measured import Array, Comparison, column, read_rows

_CALL_S = 52e-6
"""The host's time for a convolution, before its first kernel: pytorch/pytorch#51390 measures 51.95 us."""
_SLOWER_PER_SHAPE_S = 60e-9
"""A fault of the table: with every shape measured before, each call takes the host longer. The shortest
call of 400 successive rows rises steadily, from 61 us in the first 400 to 320 us in the last, whatever
the shapes are; the rows are in the order of measurement (they are NeuSight's random shapes, seed 42)."""
_BEFORE_SLOWER = 400


def convolution(folder: Path) -> Iterator[Comparison]:
    """3 x 3 convolutions with stride 1."""
    table = read_rows(folder / "conv/NVIDIA_A100_80GB_PCIe.csv.gz")
    batch, c_in, c_out, tap, size, stride, pad = (
        column(table, name)
        for name in (
            *("B", "Input_Channel", "Output_Channel", "Kernel_Szie"),
            *("Input_Size", "Stride", "Padding"),
        )
    )
    out = np.floor((size + 2 * pad - tap) / stride) + 1
    hardware = load_hardware("a100-pcie-80gb").at_base_clock()
    implicit = gemm_cost(
        hardware,
        DType.FLOAT32,
        batch * out * out,
        c_out,
        c_in * tap * tap,
        a_bytes=4 * batch * c_in * size * size,
        b_bytes=4 * c_out * c_in * tap * tap,
        splits=False,
    ).time_s
    shape = WinogradShape(batch, out, out, c_in, c_out)
    winograd = winograd_cost(hardware, DType.FLOAT32, shape).time_s
    by_winograd = (tap == TAPS) & (stride == 1)
    kernels: Array = np.where(by_winograd, np.minimum(implicit, winograd), implicit)
    order = np.arange(len(table), dtype=np.float64)
    host = _CALL_S + _SLOWER_PER_SHAPE_S * order
    measured = column(table, "Latency") * 1e-3
    switch = hardware.launch.switch_s
    result = Comparison("conv2d fp32 a100-pcie-80gb", host + kernels + switch, measured)
    yield result
    yield result.where("before the host slows down", order < _BEFORE_SLOWER)
