"""Measured tables of single operators against the cost model, where their folder is present.

The tables are third parties' and are not shipped: `OPBOUND_SHARED` names the folder above `measured/`,
and without it `../shared` beside the program is tried. No table is fitted by row: each device has one
file, `costing/hardware_specs/*.yaml`.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costing.attention import AttentionShape, attention_cost
from costing.collectives import collective_cost
from costing.gemm import gemm_cost
from costing.hardware_file import load_hardware
from graph_ir.errors import OpboundError, did_you_mean
from graph_ir.tensor_type import DType

Array = NDArray[np.float64]
Table = list[dict[str, str]]


@dataclass(frozen=True)
class Comparison:
    """Predicted and measured seconds of a table's rows."""

    name: str
    predicted_s: Array
    measured_s: Array
    weights: Array | None = None
    """Of the rows in the mean; none: all alike."""

    @property
    def errors(self) -> Array:
        """Absolute relative errors."""
        return np.abs(self.predicted_s / self.measured_s - 1)

    @property
    def mean(self) -> float:
        """Mean of the absolute relative errors."""
        return float(np.average(self.errors, weights=self.weights))

    def where(self, name: str, mask: NDArray[np.bool_]) -> Comparison:
        """The rows where `mask` is true."""
        weights = None if self.weights is None else self.weights[mask]
        parts = self.predicted_s[mask], self.measured_s[mask]
        return Comparison(f"{self.name}, {name}", *parts, weights)


def measured_folder() -> Path | None:
    """Where the measured tables lie; None if they are not here."""
    shared = Path(os.environ.get("OPBOUND_SHARED", Path(__file__).parents[1] / "../shared"))
    folder = (shared / "measured").resolve()
    return folder if folder.is_dir() else None


def read_rows(path: Path) -> Table:
    """The rows of a compressed table."""
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def column(table: Table, name: str) -> Array:
    """A column of numbers."""
    return np.array([float(row[name]) for row in table])


SYSTEMS = {
    "a100_sxm": "a100-sxm-80gb",
    "h100_sxm": "h100-sxm-80gb",
    "h200_sxm": "h200-sxm-141gb",
    "b200_sxm": "b200",
    "gb200_sxm": "gb200",
    "l40s": "l40s",
}
"""Devices by the name that aiconfigurator gives their systems, which begins its tables' names."""


CARDS = {
    "NVIDIA_A100_80GB_PCIe": "a100-pcie-80gb",
    "NVIDIA_A100-PCIE-40GB": "a100-pcie-40gb",
    "Tesla_V100-PCIE-32GB": "v100-pcie-32gb",
    "Tesla_V100-SXM2-32GB": "v100-sxm2-32gb",
    "Tesla_T4": "t4",
    "NVIDIA_A10": "a10",
    "NVIDIA_A30": "a30",
    "NVIDIA_A100-SXM4-80GB": "a100-sxm-80gb",
    "NVIDIA_L4": "l4",
    "NVIDIA_L40S": "l40s",
    "NVIDIA_H100_80GB_HBM3": "h100-sxm-80gb",
    "NVIDIA_H200": "h200-sxm-141gb",
    "NVIDIA_B200": "b200",
    "AMD_Instinct_MI210": "mi210",
    "AMD_Instinct_MI250": "mi250x",
    "AMD_Instinct_MI300X": "mi300x",
}
"""Devices by the name that the driver gives a card, by which NeuSight's tables are named."""


def tables(folder: Path, kind: str, prefix: str = "") -> Iterator[tuple[str, Table]]:
    """The tables of one kind that lie there, each with its device's name.

    Args:
        folder: the measured tables.
        kind: the folder within it, of files `SYSTEM__SOFTWARE.csv.gz`.
        prefix: what stands before the system in a file's name.

    Raises:
        OpboundError: if a table's system has no device file.
    """
    for path in sorted((folder / kind).glob(f"{prefix}*.csv.gz")):
        system = path.name.removeprefix(prefix).split("__")[0]
        yield device_of(system, path), read_rows(path)


def device_of(name: str, path: Path, known: Mapping[str, str] = SYSTEMS) -> str:
    """The device file's name for a table's system or card.

    Raises:
        OpboundError: if there is none.
    """
    if name not in known:
        raise OpboundError(f"{path}: no device file for {name!r}; {did_you_mean(name, known)}")
    return known[name]


def gemm(folder: Path) -> Iterator[Comparison]:
    """Products in bf16."""
    for device, table in tables(folder, "gemm"):
        # The fp8 rows of the tables include the quantisation of the operands: not compared.
        table = [row for row in table if row["gemm_dtype"] == "bfloat16"]
        m, n, k = (column(table, name) for name in "mnk")
        cost = gemm_cost(load_hardware(device), DType.BFLOAT16, m, n, k)
        result = Comparison(f"gemm {device}", cost.time_s, column(table, "latency") * 1e-3)
        yield result
        yield result.where("m, n, k >= 1024", (m >= 1024) & (n >= 1024) & (k >= 1024))


def attention(folder: Path) -> Iterator[Comparison]:
    """The core of attention, prefill and decode."""
    for kind in ("context", "generation"):
        for device, table in tables(folder, "attention", f"{kind}__"):
            hardware = load_hardware(device)
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
    """NCCL within a node."""
    for path in sorted((folder / "collectives").glob("*.csv.gz")):
        found: dict[tuple[str, str], Table] = {}
        for row in read_rows(path):
            if row["nccl_dtype"] == "half":
                found.setdefault((row["system"], row["op_name"]), []).append(row)
        for (system, op), table in found.items():
            hardware = load_hardware(device_of(system, path))
            count, message = column(table, "num_gpus"), 2 * column(table, "message_size")
            predicted = np.empty_like(message)
            for ranks in np.unique(count):
                part = count == ranks
                name = "all_to_all" if op == "alltoall" else op
                predicted[part] = collective_cost(hardware, name, message[part], int(ranks)).time_s
            yield Comparison(f"{op} {hardware.name}", predicted, column(table, "latency") * 1e-3)
