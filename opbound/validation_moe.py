"""Measured layers of experts against two grouped products and what lies around them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from costing.gemm import gemm_cost
from costing.hardware_file import load_hardware
from graph_ir.tensor_type import DType
from opbound.validation_measured import Array, Comparison, column, read_rows

_ROUTING_KERNELS = 4
"""Launches that sort the tokens by expert and align them to tiles (vLLM's moe_align_block_size)."""


def moe(folder: Path) -> Iterator[Comparison]:
    """Experts' layers in bf16 whose tokens are shared out evenly.

    vLLM's kernel keeps a row for every token and expert chosen, also where expert parallelism has the
    expert elsewhere: those rows are written as zeros, activated and summed like the others.
    """
    table = [
        row
        for row in read_rows(folder / "moe/h100_sxm__vllm-0.24.0.csv.gz")
        if row["moe_dtype"] == "bfloat16" and row["distribution"] == "balanced"
    ]
    hardware = load_hardware("h100-sxm-80gb")
    tokens, hidden, inter, chosen, experts, tp, ep = (
        column(table, name)
        for name in (
            *("num_tokens", "hidden_size", "inter_size", "topk", "num_experts"),
            *("moe_tp_size", "moe_ep_size"),
        )
    )
    inner = inter / tp
    rows = tokens * chosen
    here = np.maximum(rows / ep, 1.0)
    working = np.minimum(experts / ep, np.ceil(here))
    each = np.ceil(here / working)

    def grouped(n: Array, k: Array) -> Array:
        return gemm_cost(hardware, DType.BFLOAT16, each, n, k, working).time_s

    level = hardware.main_memory
    size = DType.BFLOAT16.bits / 8
    activated = rows * 3 * inner
    summed = rows * hidden + tokens * hidden
    zeros = (rows - here) * (2 * inner + hidden)
    launch_s = hardware.launch.device_latency_s + level.latency_s
    around = size * (activated + summed + zeros) / level.sustained_bytes_per_s
    predicted = (
        grouped(2 * inner, hidden)
        + grouped(hidden, inner)
        + around
        + (2 + _ROUTING_KERNELS) * launch_s
    )
    measured = column(table, "latency") * 1e-3
    result = Comparison("moe bf16 h100-sxm-80gb, balanced", predicted, measured)
    yield result
    yield result.where("without expert parallelism", ep == 1)
