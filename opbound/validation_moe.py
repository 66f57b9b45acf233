"""Measured layers of experts against two grouped products and what lies around them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from costing.gemm import gemm_cost
from costing.hardware import Hardware
from costing.hardware_file import load_hardware
from graph_ir.tensor_type import DType
from opbound.validation_measured import Array, Comparison, Table, column, tables

_TRITON, _CUTLASS = "triton_tritonexperts", "flashinfer_cutlass_flashinferexperts"
_ROUTING_KERNELS = 4
"""Launches that sort the tokens by expert and align them to tiles (vLLM's moe_align_block_size)."""
_QUANTISING_KERNELS = 2
_BF16_BYTES, _FP8_BYTES = 2, 1


def moe(folder: Path) -> Iterator[Comparison]:
    """Experts' layers, by data type and by how the tokens are shared out.

    Rows in `fp8`, scaled by tensor, are left out: they take three times as long as those scaled by block,
    and 3.5 times as long as reading their weights.
    """
    for device, table in tables(folder, "moe"):
        for found in _layers(load_hardware(device), table):
            # Other libraries' kernels are other tables.
            if len(found.measured_s):
                yield found


def _layers(hardware: Hardware, table: Table) -> Iterator[Comparison]:
    even = _rows(table, "bfloat16", _TRITON, "balanced")
    experts = _Experts(hardware, even)
    name = f"moe bf16 {hardware.name}"
    result = _compared(f"{name}, balanced", even, experts.bf16_s(*experts.even()))
    yield result
    yield result.where("without expert parallelism", experts.expert_parallel == 1)
    for alpha in (1.01, 1.2):
        skewed = [
            row
            for row in _rows(table, "bfloat16", _TRITON, f"power_law_{alpha}")
            if row["moe_ep_size"] == "1"
        ]
        experts = _Experts(hardware, skewed)
        seconds = experts.bf16_s(*experts.skewed(alpha))
        shares = f"power law {alpha}, without expert parallelism"
        yield _compared(f"{name}, {shares}", skewed, seconds)
    for library, kernels in (("Triton", _TRITON), ("CUTLASS", _CUTLASS)):
        blocks = _rows(table, "fp8_block", kernels, "balanced")
        experts = _Experts(hardware, blocks)
        seconds = experts.fp8_s(*experts.even(), permutes=library == "CUTLASS")
        yield _compared(f"moe fp8 in blocks {hardware.name}, balanced, {library}", blocks, seconds)


def _rows(table: Table, dtype: str, kernels: str, shares: str) -> Table:
    return [
        row
        for row in table
        if (row["moe_dtype"], row["distribution"]) == (dtype, shares)
        and row["kernel_source"].endswith(kernels)
    ]


def _compared(name: str, table: Table, predicted_s: Array) -> Comparison:
    return Comparison(name, predicted_s, column(table, "latency") * 1e-3)


class _Experts:
    """The layers of a table, one per row."""

    def __init__(self, hardware: Hardware, table: Table) -> None:
        self.hardware = hardware
        self.tokens, self.hidden, inter, self.chosen, self.experts, tp, self.expert_parallel = (
            column(table, name)
            for name in (
                *("num_tokens", "hidden_size", "inter_size", "topk", "num_experts"),
                *("moe_tp_size", "moe_ep_size"),
            )
        )
        self.inner = inter / tp
        self.rows = self.tokens * self.chosen
        self.here = np.maximum(self.rows / self.expert_parallel, 1.0)
        """Rows of the experts on this device."""

    def even(self) -> tuple[Array, Array]:
        """Rows of each expert, and experts that have any, where tokens are shared out evenly."""
        working = np.minimum(self.experts / self.expert_parallel, np.ceil(self.here))
        return np.ceil(self.here / working), working

    def skewed(self, alpha: float) -> tuple[Array, Array]:
        """The same for shares that follow x^-alpha: rows are the mean after padding to the tile.

        The shares are the distribution's quantiles, between 1 and 0.8 tokens of all (between 0.01 and 2
        where there are fewer rows than experts), as aiconfigurator draws them. vLLM's default tiles have
        16 rows up to a token per expert, then 64.
        """
        known: dict[tuple[float, ...], tuple[float, float]] = {}
        for tokens, experts, chosen in zip(self.tokens, self.experts, self.chosen, strict=True):
            key = (tokens, experts, chosen)
            if key in known:
                continue
            low, high = (1.0, max(0.8 * tokens, 1.01)) if tokens * chosen > experts else (0.01, 2.0)
            place, power = (np.arange(experts) + 0.5) / experts, 1 - alpha
            shares = ((high**power - low**power) * place + low**power) ** (1 / power)
            counts = np.round(shares / shares.sum() * tokens * chosen)
            working = min(max(float((counts > 0).sum()), chosen), tokens * chosen)
            tile = 16 if tokens <= experts else 64
            padded = max(float((np.ceil(counts / tile) * tile).sum()), tokens * chosen)
            known[key] = (np.ceil(padded / working), working)
        found = [known[key] for key in zip(self.tokens, self.experts, self.chosen, strict=True)]
        each, working_experts = np.array(found).T
        return each, working_experts

    def bf16_s(self, each: Array, working: Array) -> Array:
        """The Triton kernels of vLLM.

        A row is kept for every token and expert chosen, also where expert parallelism has the expert
        elsewhere: those rows are written as zeros, activated and summed like the others.
        """
        zeros = (self.rows - self.here) * (2 * self.inner + self.hidden)
        moved = _BF16_BYTES * (self.rows * 3 * self.inner + self._summed(self.rows) + zeros)
        return self._layer_s(DType.BFLOAT16, each, working, moved, 2 + _ROUTING_KERNELS)

    def fp8_s(self, each: Array, working: Array, *, permutes: bool) -> Array:
        """Operands in fp8 with a scale per block: quantised before each product; results in bf16.

        Args:
            each: rows of each expert.
            working: experts that have any.
            permutes: whether rows are sorted by expert, those of other devices left out.
        """
        rows = self.here if permutes else self.rows
        moved = (_BF16_BYTES + _FP8_BYTES) * self.tokens * self.hidden
        moved = moved + (2 * _BF16_BYTES + _FP8_BYTES) * rows * self.inner
        moved = moved + _BF16_BYTES * self._summed(rows)
        moved = moved + (2 * _FP8_BYTES * rows * self.hidden if permutes else 0.0)
        kernels = 2 + _ROUTING_KERNELS + _QUANTISING_KERNELS
        return self._layer_s(DType.FLOAT8_E4M3, each, working, moved, kernels)

    def _summed(self, rows: Array) -> Array:
        """Elements read and written where each token's rows become one."""
        summed: Array = rows * self.hidden + self.tokens * self.hidden
        return summed

    def _layer_s(
        self, dtype: DType, each: Array, working: Array, moved_bytes: Array, kernels: int
    ) -> Array:
        def grouped(n: Array, k: Array) -> Array:
            cost = gemm_cost(self.hardware, dtype, each, n, k, working, out_dtype=DType.BFLOAT16)
            return cost.time_s

        level = self.hardware.main_memory
        launch_s = self.hardware.launch.device_latency_s + level.latency_s
        products = grouped(2 * self.inner, self.hidden) + grouped(self.hidden, self.inner)
        seconds: Array = products + moved_bytes / level.sustained_bytes_per_s + kernels * launch_s
        return seconds
