"""Holds the errors against measured tables from growing. Skipped where the tables are absent."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/accuracy.py"
LIMITS = {
    # Mean absolute relative errors reached, with a little room.
    "gemm a100-sxm-80gb": 0.075,
    "gemm a100-sxm-80gb, m, n, k >= 1024": 0.041,
    "gemm h100-sxm-80gb": 0.067,
    "gemm h100-sxm-80gb, m, n, k >= 1024": 0.055,
    "attention context a100-sxm-80gb": 0.15,
    "attention generation a100-sxm-80gb": 0.185,
    "attention context h100-sxm-80gb": 0.135,
    "attention generation h100-sxm-80gb": 0.13,
    "all_reduce a100-sxm-80gb": 0.065,
    "all_gather a100-sxm-80gb": 0.07,
    "reduce_scatter a100-sxm-80gb": 0.08,
    "alltoall a100-sxm-80gb": 0.12,
    "all_reduce h100-sxm-80gb": 0.06,
    "all_gather h100-sxm-80gb": 0.075,
    "reduce_scatter h100-sxm-80gb": 0.08,
    "alltoall h100-sxm-80gb": 0.165,
    "conv2d fp32 a100-pcie": 0.345,
}


def accuracy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("table", ["gemm", "attention", "collectives", "convolution"])
def test_errors_do_not_grow(table: str) -> None:
    module = accuracy()
    folder = module.measured_folder()
    if folder is None:
        pytest.skip("the measured tables are not here; set OPBOUND_SHARED to the folder above them")
    for comparison in getattr(module, table)(folder):
        assert comparison.mean <= LIMITS[comparison.name], comparison.name
