"""Every shipped device behaves: no cliff, larger work takes longer, nothing beats its own peak."""

import numpy as np
import pytest

from costing.attention import AttentionShape, attention_cost
from costing.collectives import collective_cost
from costing.engine import MATRIX
from costing.gemm import gemm_cost
from costing.hardware_file import list_hardware, load_hardware
from costing.roofline import streaming_cost
from graph_ir.tensor_type import DType

SIZES = 2.0 ** np.arange(4, 14.5, 0.5).round(1)
DTYPES = (DType.FLOAT32, DType.BFLOAT16, DType.INT8)


@pytest.mark.parametrize("name", list_hardware())
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.label)
def test_products_grow_without_cliffs(name: str, dtype: DType) -> None:
    device = load_hardware(name)
    engine = device.engine_for(MATRIX, dtype)
    side = np.floor(SIZES)
    for m, n, k in ((side, side, side), (side, 4096, 4096), (4096, 4096, side), (1, 4096, side)):
        m, n, k = np.broadcast_arrays(m, n, k)
        time_s = gemm_cost(device, dtype, m, n, k).time_s
        steps = time_s[1:] / time_s[:-1]
        work = (m * n * k)[1:] / (m * n * k)[:-1]
        # A tile more or a better kernel changes the time; a cliff is more than the work explains.
        assert steps.min() > 0.8, (m[1:][steps.argmin()], steps.min())
        assert (steps / work).max() < 1.8, (m[1:][(steps / work).argmax()], steps.max())
        assert (2 * m * n * k / time_s <= engine.peak(dtype)).all()


@pytest.mark.parametrize("name", list_hardware())
def test_large_products_reach_what_the_file_says(name: str) -> None:
    device = load_hardware(name)
    for dtype in (DType.FLOAT32, DType.BFLOAT16):
        engine = device.engine_for(MATRIX, dtype)
        rate = 2 * 16384**3 / gemm_cost(device, dtype, 16384, 16384, 16384).time_s[0]
        assert 0.8 <= rate / engine.sustained(dtype) <= 1.0 + engine.clock_headroom


@pytest.mark.parametrize("name", list_hardware())
def test_attention_grows_with_its_tokens(name: str) -> None:
    device = load_hardware(name)
    tokens = np.floor(SIZES)
    level = device.main_memory
    for queries in (tokens, np.ones_like(tokens)):
        cost = attention_cost(
            device, DType.BFLOAT16, AttentionShape(8, 32, 8, queries, tokens, 128)
        )
        assert (np.diff(cost.time_s) > -0.1 * cost.time_s[:-1]).all()
        assert (cost.time_s >= cost.traffic_bytes[level.name] / level.bandwidth_bytes_per_s).all()


@pytest.mark.parametrize("name", list_hardware())
def test_streams_approach_the_memory_and_never_pass_it(name: str) -> None:
    device = load_hardware(name)
    sizes = 2.0 ** np.arange(10, 33)
    costs = [streaming_cost(device, DType.FLOAT32, s / 8, s / 2, s / 2) for s in sizes]
    assert np.all(np.diff([cost.time_s for cost in costs]) >= 0)
    assert all(0 <= cost.utilization <= 1 for cost in costs)
    assert costs[-1].bound == f"memory:{device.main_memory.name}"
    assert costs[-1].utilization == pytest.approx(device.main_memory.efficiency, rel=0.02)


@pytest.mark.parametrize("name", [n for n in list_hardware() if load_hardware(n).links])
def test_collectives_grow_with_the_message(name: str) -> None:
    device = load_hardware(name)
    sizes = 2.0 ** np.arange(9, 31)
    for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        for link in device.links:
            ranks = min(link.devices or 16, 8)
            time_s = collective_cost(device, op, sizes, ranks).time_s
            assert (np.diff(time_s) > 0).all()
            # At least the ranks' shares cross the innermost link once.
            assert (time_s > sizes * (ranks - 1) / ranks / device.links[0].device_bytes_per_s).all()
