"""Predictions against measured tables, by shape: GEMM, attention, collectives, convolution.

    python benchmarks/accuracy.py [FOLDER]

FOLDER holds the measured tables; without it OPBOUND_SHARED/measured or ../shared/measured is taken.
Prints the mean absolute relative error of each table, and how it splits. No table is fitted by row:
each device has one file, `costing/hardware_specs/*.yaml`.
"""

from __future__ import annotations

import csv
import gzip
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costing.attention import AttentionShape, attention_cost
from costing.collectives import collective_cost
from costing.gemm import gemm_cost
from costing.hardware import Hardware
from costing.hardware_file import load_hardware
from graph_ir.tensor_type import DType


@dataclass(frozen=True)
class Comparison:
    name: str
    predicted_s: np.ndarray
    measured_s: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        return np.abs(self.predicted_s / self.measured_s - 1)

    @property
    def mean(self) -> float:
        return float(self.errors.mean())

    def where(self, name: str, mask: np.ndarray) -> Comparison:
        return Comparison(f"{self.name}, {name}", self.predicted_s[mask], self.measured_s[mask])


def measured_folder() -> Path | None:
    shared = Path(os.environ.get("OPBOUND_SHARED", Path(__file__).parents[1] / "../shared"))
    folder = (shared / "measured").resolve()
    return folder if folder.is_dir() else None


def rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def column(table: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in table])


GEMM = {
    "a100-sxm-80gb": "a100_sxm__sglang-0.5.10.csv.gz",
    "h100-sxm-80gb": "h100_sxm__vllm-0.24.0.csv.gz",
}
ATTENTION = {"a100-sxm-80gb": "a100_sxm__vllm-0.14.0", "h100-sxm-80gb": "h100_sxm__vllm-0.24.0"}
SYSTEMS = {"a100-sxm-80gb": "a100_sxm", "h100-sxm-80gb": "h100_sxm"}


def gemm(folder: Path) -> Iterator[Comparison]:
    for device, file in GEMM.items():
        table = rows(folder / "gemm" / file)
        # The fp8 rows of the tables include the quantisation of the operands: not compared.
        table = [row for row in table if row["gemm_dtype"] == "bfloat16"]
        m, n, k = (column(table, name) for name in "mnk")
        cost = gemm_cost(load_hardware(device), DType.BFLOAT16, m, n, k)
        result = Comparison(f"gemm {device}", cost.time_s, column(table, "latency") * 1e-3)
        yield result
        yield result.where("m, n, k >= 1024", (m >= 1024) & (n >= 1024) & (k >= 1024))


def attention(folder: Path) -> Iterator[Comparison]:
    for device, file in ATTENTION.items():
        hardware = load_hardware(device)
        for kind in ("context", "generation"):
            table = rows(folder / "attention" / f"{kind}__{file}.csv.gz")
            b, h, g = (
                column(table, name) for name in ("batch_size", "num_heads", "num_key_value_heads")
            )
            new, d, cached = (column(table, name) for name in ("isl", "head_dim", "step"))
            queries = new if kind == "context" else np.ones_like(new)
            shape = AttentionShape(b, h, g, queries, cached + queries, d)
            cost = attention_cost(hardware, DType.BFLOAT16, shape)
            # The measured layer also writes the new keys and values to the paged cache.
            moved = 2 * 2 * 2 * b * g * queries * d
            level = hardware.main_memory
            copy = moved / level.sustained_bytes_per_s + level.latency_s
            time = cost.time_s + copy + hardware.launch.device_latency_s
            yield Comparison(f"attention {kind} {device}", time, column(table, "latency") * 1e-3)


def collectives(folder: Path) -> Iterator[Comparison]:
    table = rows(folder / "collectives/nccl_a100_h100.csv.gz")
    names = {"alltoall": "all_to_all"}
    for device, system in SYSTEMS.items():
        for op in ("all_reduce", "all_gather", "reduce_scatter", "alltoall"):
            predicted, measured = [], []
            for count in (2, 4, 8):
                part = [
                    r
                    for r in table
                    if (r["system"], r["op_name"], int(r["num_gpus"])) == (system, op, count)
                    and r["nccl_dtype"] == "half"
                ]
                message = 2 * column(part, "message_size")
                cost = collective_cost(load_hardware(device), names.get(op, op), message, count)
                predicted.append(cost.time_s)
                measured.append(column(part, "latency") * 1e-3)
            yield Comparison(f"{op} {device}", np.concatenate(predicted), np.concatenate(measured))


def a100_pcie() -> Hardware:
    """The A100 80 GB on PCIe: the same die with 1.935 TB/s (NVIDIA A100 data sheet)."""
    device = load_hardware("a100-sxm-80gb")
    memory = (*device.memory[:-1], replace(device.main_memory, bandwidth_bytes_per_s=1.935e12))
    return replace(device, memory=memory)


def convolution(folder: Path) -> Iterator[Comparison]:
    table = rows(folder / "conv/NVIDIA_A100_80GB_PCIe.csv.gz")
    batch, c_in, c_out, tap, size, stride, pad = (
        column(table, name)
        for name in (
            "B",
            "Input_Channel",
            "Output_Channel",
            "Kernel_Szie",
            "Input_Size",
            "Stride",
            "Padding",
        )
    )
    out = np.floor((size + 2 * pad - tap) / stride) + 1
    cost = gemm_cost(
        a100_pcie(),
        DType.FLOAT32,
        batch * out * out,
        c_out,
        c_in * tap * tap,
        a_bytes=4 * batch * c_in * size * size,
        b_bytes=4 * c_out * c_in * tap * tap,
    )
    result = Comparison("conv2d fp32 a100-pcie", cost.time_s, column(table, "Latency") * 1e-3)
    yield result


TABLES = (gemm, attention, collectives, convolution)


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else measured_folder()
    if folder is None:
        print("no measured tables: name their folder")
        return 2
    print(f"{'table':55s} {'rows':>7s} {'mean':>7s} {'median':>7s} {'bias':>7s}")
    for table in TABLES:
        for c in table(folder):
            bias = float(np.exp(np.log(c.predicted_s / c.measured_s).mean()) - 1)
            median = float(np.median(c.errors))
            print(f"{c.name:55s} {len(c.errors):7d} {c.mean:7.1%} {median:7.1%} {bias:+7.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
