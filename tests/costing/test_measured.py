"""Holds the errors against measured tables from growing. Skipped where the tables are absent."""

import pytest

from opbound.validation_measured import measured_folder
from opbound.validation_operators import SOURCES

LIMITS = {
    # Mean absolute relative errors reached, with a little room.
    "gemm a100-sxm-80gb": 0.073,
    "gemm a100-sxm-80gb, m, n, k >= 1024": 0.038,
    "gemm h100-sxm-80gb": 0.064,
    "gemm h100-sxm-80gb, m, n, k >= 1024": 0.052,
    "attention context a100-sxm-80gb": 0.093,
    "attention generation a100-sxm-80gb": 0.084,
    "attention context h100-sxm-80gb": 0.12,
    "attention generation h100-sxm-80gb": 0.12,
    "all_reduce a100-sxm-80gb": 0.065,
    "all_gather a100-sxm-80gb": 0.07,
    "reduce_scatter a100-sxm-80gb": 0.08,
    "alltoall a100-sxm-80gb": 0.06,
    "all_reduce h100-sxm-80gb": 0.06,
    "all_gather h100-sxm-80gb": 0.075,
    "reduce_scatter h100-sxm-80gb": 0.08,
    "alltoall h100-sxm-80gb": 0.12,
    "conv2d fp32 a100-pcie-80gb": 0.25,
    "conv2d fp32 a100-pcie-80gb, with the host's growing delay": 0.123,
    "conv2d fp32 a100-pcie-80gb, before the host slows down": 0.136,
    "moe bf16 h100-sxm-80gb, balanced": 0.197,
    "moe bf16 h100-sxm-80gb, balanced, without expert parallelism": 0.195,
    "moe bf16 h100-sxm-80gb, power law 1.01, without expert parallelism": 0.21,
    "moe bf16 h100-sxm-80gb, power law 1.2, without expert parallelism": 0.217,
    "moe fp8 in blocks h100-sxm-80gb, balanced, Triton": 0.215,
    "moe fp8 in blocks h100-sxm-80gb, balanced, CUTLASS": 0.2,
    "fx nodes a100-pcie-80gb, forward, sum over a model": 0.025,
    "fx nodes a100-pcie-80gb, backward, sum over a model": 0.018,
    "fx nodes a100-pcie-40gb, forward, sum over a model": 0.12,
    "fx nodes a100-pcie-40gb, forward, sum over a model, BERT at the base clock": 0.047,
    "fx nodes v100-pcie-32gb, forward, sum over a model": 0.038,
    "fx nodes v100-pcie-32gb, backward, sum over a model": 0.022,
    "fx nodes a100-pcie-80gb, forward, by time": 0.053,
    "fx nodes a100-pcie-80gb, backward, by time": 0.056,
    "fx nodes a100-pcie-40gb, forward, by time": 0.061,
    "fx nodes v100-pcie-32gb, forward, by time": 0.052,
    "fx nodes v100-pcie-32gb, backward, by time": 0.08,
}


@pytest.fixture(scope="module")
def means() -> dict[str, float]:
    folder = measured_folder()
    if folder is None:
        pytest.skip("the measured tables are not here; set OPBOUND_SHARED to the folder above them")
    return {found.name: found.mean for compare in SOURCES for found in compare(folder)}


@pytest.mark.parametrize("name", LIMITS)
def test_errors_do_not_grow(name: str, means: dict[str, float]) -> None:
    assert means[name] <= LIMITS[name]
