"""Measured convolutions in fp32 against the faster of their algorithms.

NeuSight times calls one by one (events around one call of `torch.nn.Conv2d` on an idle card, the five
fastest of 25) and profiles each shape in between. So a row is the host's call and the kernels it
launches, at the clock of a card that rests between calls; not a kernel in a queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from costing.engine import MATRIX
from costing.gemm import gemm_cost
from costing.hardware_file import load_hardware
from costing.winograd import TAPS, WinogradShape, winograd_cost
from graph_ir.tensor_type import DType
from opbound.validation_measured import (
    CARDS,
    Array,
    Comparison,
    Table,
    column,
    device_of,
    read_rows,
)

_CALL_S = 52e-6
"""The host's time for a convolution, before its first kernel: pytorch/pytorch#51390 measures 51.95 us."""
_SLOWER_PER_SHAPE_S = 60e-9
"""A fault of the table: with every shape measured before, each call takes the host longer. The shortest
call of 400 successive rows rises steadily, from 61 us in the first 400 to 320 us in the last, whatever
the shapes are; the rows are in the order of measurement (they are NeuSight's random shapes, seed 42)."""
_BEFORE_SLOWER = 400
_SLOWING_TABLE = "NVIDIA_A100_80GB_PCIe.csv.gz"


def convolution(folder: Path) -> Iterator[Comparison]:
    """Measured convolutions of each card: all as they are, then apart from the table's fault.

    The fault is the table's own and no property of a card: a prediction does not know it. So the first
    comparison leaves it in.
    """
    for path in sorted((folder / "conv").glob("*.csv.gz")):
        device = device_of(path.name.removesuffix(".csv.gz"), path, CARDS)
        result = _calls(device, read_rows(path))
        yield result
        if path.name == _SLOWING_TABLE:
            order = np.arange(len(result.measured_s), dtype=np.float64)
            yield result.where("before the host slows down", order < _BEFORE_SLOWER)
            yield replace(
                result,
                name=f"{result.name}, with the host's growing delay",
                predicted_s=result.predicted_s + _SLOWER_PER_SHAPE_S * order,
            )


def _calls(device: str, table: Table) -> Comparison:
    batch, c_in, c_out, tap, size, stride, pad = (
        column(table, name)
        for name in (
            *("B", "Input_Channel", "Output_Channel", "Kernel_Szie"),
            *("Input_Size", "Stride", "Padding"),
        )
    )
    out = np.floor((size + 2 * pad - tap) / stride) + 1
    hardware = load_hardware(device).at_base_clock()
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
    has_winograd = hardware.engine_for(MATRIX, DType.FLOAT32).winograd
    by_winograd = (tap == TAPS) & (stride == 1) & has_winograd
    kernels: Array = np.where(by_winograd, np.minimum(implicit, winograd), implicit)
    predicted = _CALL_S + hardware.launch.switch_s + kernels
    return Comparison(f"conv2d fp32 {device}", predicted, column(table, "Latency") * 1e-3)
