"""GEMM cost: bounds, monotony, classification, the figures it must reproduce, and its speed."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costing.engine import Tile
from costing.gemm import gemm_cost
from costing.hardware import Hardware
from costing.hardware_file import list_hardware, load_hardware
from costing.kernel_cost import KernelCost
from graph_ir.tensor_type import DType

BF16 = DType.BFLOAT16
dims = st.integers(1, 20_000)
devices = st.sampled_from(list_hardware())


@settings(deadline=None, max_examples=150)
@given(devices, dims, dims, dims, st.integers(1, 64))
def test_time_is_never_below_any_bound(name: str, m: int, n: int, k: int, batch: int) -> None:
    device = load_hardware(name)
    cost = gemm_cost(device, BF16, m, n, k, batch)
    engine = device.engine_for("matrix", BF16)
    size = 2 if engine.supports(BF16) else 4
    moved = size * batch * (m * k + n * k + m * n)
    assert cost.time_s[0] >= 2 * batch * m * n * k / engine.peak(BF16)
    assert cost.time_s[0] >= moved / device.main_memory.bandwidth_bytes_per_s
    assert cost.time_s[0] >= device.launch.device_latency_s
    for seconds in cost.terms.values():
        assert cost.time_s[0] >= seconds[0]


@settings(deadline=None, max_examples=150)
@given(devices, dims, dims, dims, st.integers(0, 3), st.integers(1, 300))
def test_more_work_never_takes_less_time(
    name: str, m: int, n: int, k: int, grown: int, by: int
) -> None:
    device = load_hardware(name)
    small = [m, n, k, 3]
    large = list(small)
    large[grown] += by
    before = gemm_cost(device, BF16, *small).time_s[0]
    assert gemm_cost(device, BF16, *large).time_s[0] >= before * (1 - 1e-12)


@settings(deadline=None, max_examples=50)
@given(dims, dims, dims)
def test_a_batch_of_shapes_costs_what_each_costs(m: int, n: int, k: int) -> None:
    device = load_hardware("h100-sxm-80gb")
    together = gemm_cost(device, BF16, [m, 128], [n, 128], [k, 128]).time_s
    assert together[0] == gemm_cost(device, BF16, m, n, k).time_s[0]


def scaled(device: Hardware, factor: float) -> Hardware:
    """A device on which everything is `factor` times as fast."""
    engines = tuple(
        replace(
            e,
            peak_flops={k: v * factor for k, v in e.peak_flops.items()},
            tile_overhead_s=e.tile_overhead_s / factor,
            split_latency_s=e.split_latency_s / factor,
        )
        for e in device.engines
    )
    memory = tuple(
        replace(
            m,
            bandwidth_bytes_per_s=m.bandwidth_bytes_per_s * factor,
            latency_s=m.latency_s / factor,
            processor_bytes_per_s=m.processor_bytes_per_s and m.processor_bytes_per_s * factor,
        )
        for m in device.memory
    )
    launch = replace(device.launch, device_latency_s=device.launch.device_latency_s / factor)
    return replace(device, engines=engines, memory=memory, launch=launch)


@settings(deadline=None, max_examples=50)
@given(dims, dims, dims, st.floats(0.1, 10))
def test_scaling_peak_and_bandwidth_together_changes_no_bound(
    m: int, n: int, k: int, factor: float
) -> None:
    device = load_hardware("a100-sxm-80gb")
    before = gemm_cost(device, BF16, m, n, k)
    after = gemm_cost(scaled(device, factor), BF16, m, n, k)
    assert after.time_s[0] * factor == pytest.approx(before.time_s[0])
    assert bound(after) == bound(before)


@pytest.mark.parametrize(("megabytes", "share"), [(4, 0.34), (20, 0.55), (100, 0.75), (400, 0.78)])
def test_one_row_products_reach_the_known_share_of_the_a100s_bandwidth(
    megabytes: int, share: float
) -> None:
    """Kundu et al., arXiv 2407.14645: 34, 55, 75 and 80 % of bandwidth by size of the weights."""
    device = load_hardware("a100-sxm-80gb")
    side = (megabytes * 1e6 / 2) ** 0.5
    time_s = gemm_cost(device, BF16, 1, side, side).time_s[0]
    reached = megabytes * 1e6 / time_s / device.main_memory.bandwidth_bytes_per_s
    assert reached == pytest.approx(share, abs=0.13)


def bound(cost: KernelCost) -> str:
    return max(cost.terms, key=lambda term: float(cost.terms[term][0]))


def bound_of(name: str, m: int, n: int, k: int) -> str:
    return bound(gemm_cost(load_hardware(name), DType.FLOAT16, m, n, k))


@pytest.mark.parametrize(("n", "k"), [(5120, 5120), (15360, 5120), (13824, 5120), (5120, 13824)])
def test_a_200_token_prefill_of_llama_2_13b_is_bound_differently_on_a100_and_h100(
    n: int, k: int
) -> None:
    """QKV and output (5120), gate and up (13824), down: arXiv 2407.14645, section 5."""
    assert bound_of("a100-sxm-80gb", 200, n, k) == "compute"
    assert bound_of("h100-sxm-80gb", 200, n, k) == "memory:dram"
    for name in ("a100-sxm-80gb", "h100-sxm-80gb"):
        assert bound_of(name, 1, n, k) == "memory:dram"


def test_one_more_row_than_the_tiles_hold_costs_a_wave() -> None:
    """33 x 8 tiles of 128 x 256 are two waves on 132 processors; the 34th row of tiles, a third."""
    device = load_hardware("h100-sxm-80gb")
    engine = replace(
        device.engines[0], tiles=(Tile(128, 256),), split_depth_bytes=0.0, clock_headroom=0.0
    )
    whole = replace(device, engines=(engine,))
    full, over = gemm_cost(whole, BF16, [33 * 128, 33 * 128 + 1], 2048, 8192).time_s
    assert over > 1.4 * full


def test_a_contraction_cut_in_two_fills_the_processors_that_whole_tiles_leave_idle() -> None:
    """54 tiles of 256 x 128 on 108 processors: cut in two parts, they fill all of them."""
    device = load_hardware("a100-sxm-80gb")
    engine = replace(device.engines[0], tiles=(Tile(256, 128),), clock_headroom=0.0)
    split = replace(device, engines=(engine,))
    whole = replace(device, engines=(replace(engine, split_depth_bytes=0.0),))
    m, n, k = 6 * 256, 9 * 128, 65536
    ratio = gemm_cost(whole, BF16, m, n, k).time_s / gemm_cost(split, BF16, m, n, k).time_s
    assert ratio[0] == pytest.approx(2, rel=0.1)


def test_power_slows_full_processors_but_not_half_empty_ones() -> None:
    """Half the processors stay at the full clock; all of them fall back to the sustained rate."""
    device = load_hardware("h100-sxm-80gb")
    engine = replace(device.engines[0], tiles=(Tile(256, 256),), split_depth_bytes=0.0)
    plain = replace(device, engines=(replace(engine, clock_headroom=0.0),))
    clocked = replace(device, engines=(replace(engine, clock_headroom=0.16),))
    for tiles, gain in ((66, 1.16), (132 * 8, 1.0)):
        shape = (256 * tiles, 256, 65536)
        before = gemm_cost(plain, BF16, *shape).time_s[0]
        after = gemm_cost(clocked, BF16, *shape).time_s[0]
        assert before / after == pytest.approx(gain, rel=0.04)


def test_a_million_shapes_are_priced_in_two_seconds() -> None:
    device = load_hardware("h100-sxm-80gb")
    m, n, k = np.random.default_rng(0).integers(1, 16384, (3, 1_000_000))
    start = time.perf_counter()
    cost = gemm_cost(device, BF16, m, n, k)
    # Generous: the target is 2 s on an idle core, and test machines are shared.
    assert time.perf_counter() - start < 10
    assert cost.time_s.shape == (1_000_000,)
    assert np.isfinite(cost.time_s).all()
