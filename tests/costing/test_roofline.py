"""Streaming kernels and attention: bounds, the ridge point, composition."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costing.attention import AttentionShape, attention_cost
from costing.engine import Engine
from costing.hardware import Hardware, Launch, MemoryLevel
from costing.hardware_file import list_hardware, load_hardware
from costing.op_cost import OpCost
from costing.roofline import streaming_cost
from graph_ir.tensor_type import DType

devices = st.sampled_from(list_hardware())
amounts = st.floats(1e9, 1e15)
F32 = DType.FLOAT32


def dram_bound(device: Hardware) -> str:
    return f"memory:{device.main_memory.name}"


@settings(deadline=None)
@given(devices, amounts, st.sampled_from(["vector", "matrix"]))
def test_the_bound_flips_exactly_at_the_ridge_point(name: str, moved: float, kind: str) -> None:
    device = load_hardware(name)
    ridge = device.ridge_point(F32, kind)
    above = streaming_cost(device, F32, moved * ridge * (1 + 1e-9), moved, 0, kind=kind)
    below = streaming_cost(device, F32, moved * ridge * (1 - 1e-9), moved, 0, kind=kind)
    assert above.bound == "compute"
    assert below.bound == dram_bound(device)


@settings(deadline=None)
@given(devices, st.floats(0, 1e15), st.floats(0, 1e12), st.floats(0, 1e12))
def test_time_is_latency_and_the_largest_term(
    name: str, flops: float, read: float, written: float
) -> None:
    device = load_hardware(name)
    cost = streaming_cost(device, F32, flops, read, written)
    others = [seconds for term, seconds in cost.terms.items() if term != "latency"]
    assert cost.time_s == pytest.approx(cost.terms["latency"] + max(others))
    assert cost.bound == max(cost.terms, key=lambda term: cost.terms[term])
    assert 0 <= cost.utilization <= 1


@settings(deadline=None)
@given(amounts, amounts, st.floats(0.01, 100))
def test_scaling_all_rates_together_changes_no_bound(
    flops: float, moved: float, factor: float
) -> None:
    device = load_hardware("h100-sxm-80gb")
    faster = replace(
        device,
        engines=tuple(
            replace(e, peak_flops={k: v * factor for k, v in e.peak_flops.items()})
            for e in device.engines
        ),
        memory=tuple(
            replace(
                m,
                bandwidth_bytes_per_s=m.bandwidth_bytes_per_s * factor,
                latency_s=m.latency_s / factor,
            )
            for m in device.memory
        ),
        launch=replace(
            device.launch,
            device_latency_s=device.launch.device_latency_s / factor,
            switch_s=device.launch.switch_s / factor,
        ),
    )
    before = streaming_cost(device, F32, flops, moved, moved)
    after = streaming_cost(faster, F32, flops, moved, moved)
    assert after.bound == before.bound
    assert after.time_s * factor == pytest.approx(before.time_s)


def test_a_kernel_after_another_takes_the_switch_longer() -> None:
    device = load_hardware("h100-sxm-80gb")
    same = replace(device, launch=replace(device.launch, switch_s=0.0))
    for moved in (4, 1e9):
        apart = streaming_cost(device, F32, 1, moved, moved).time_s
        again = streaming_cost(same, F32, 1, moved, moved).time_s
        assert apart - again == pytest.approx(device.launch.switch_s)
    assert device.launch.switch_s > 0


def test_an_empty_kernel_is_bound_by_latency() -> None:
    cost = streaming_cost(load_hardware("a100-sxm-80gb"), F32, 1, 4, 4)
    assert cost.bound == "latency"
    assert cost.time_s > 0


def test_costs_add_and_multiply() -> None:
    device = load_hardware("a100-sxm-80gb")
    one = streaming_cost(device, F32, 1e9, 1e9, 5e8)
    three = one + one + one
    assert three.flops == 3 * one.flops == (one * 3).flops
    assert three.time_s == pytest.approx(3 * one.time_s) == pytest.approx((3 * one).time_s)
    assert three.utilization == pytest.approx(one.utilization)
    assert three.bound == one.bound
    assert (OpCost() + one).engine == one.engine
    mixed = one + streaming_cost(device, F32, 1e15, 1, 1)
    assert mixed.bound == "compute"


heads = st.sampled_from([1, 2, 8, 32])
tokens = st.integers(1, 4096)


@settings(deadline=None)
@given(devices, st.integers(1, 64), heads, tokens, tokens, st.sampled_from([64, 128]))
def test_attention_time_is_never_below_its_terms(
    name: str, batch: int, head_count: int, queries: int, cached: int, dim: int
) -> None:
    device = load_hardware(name)
    shape = AttentionShape(batch, head_count, head_count, queries, queries + cached, dim)
    for causal in (True, False):
        for backward in (True, False):
            cost = attention_cost(device, DType.BFLOAT16, shape, causal, backward)
            for seconds in cost.terms.values():
                assert cost.time_s[0] >= seconds[0]


@settings(deadline=None)
@given(devices, st.integers(1, 8), heads, st.integers(256, 4096))
def test_attention_relations(name: str, batch: int, head_count: int, s: int) -> None:
    device = load_hardware(name)
    shape = AttentionShape(batch, head_count, head_count, s, s, 128)

    def compute(causal: bool, backward: bool) -> float:
        cost = attention_cost(device, DType.BFLOAT16, shape, causal, backward)
        return float(cost.terms["compute"][0]) - device.main_memory.latency_s

    # The mask leaves (s + 1) / 2s of the scores; the backward pass multiplies 2.5 times as much.
    assert compute(True, False) == pytest.approx(compute(False, False) * (s + 1) / (2 * s))
    assert compute(False, True) > 1.4 * compute(False, False)


def test_decoding_is_bound_by_the_cache_on_every_gpu() -> None:
    """One token of Llama-2-13B after 200: 40 heads of 128."""
    for name in ("a100-sxm-80gb", "h100-sxm-80gb"):
        device = load_hardware(name)
        terms = attention_cost(device, DType.FLOAT16, AttentionShape(1, 40, 40, 1, 201, 128)).terms
        assert max(terms, key=lambda term: float(terms[term][0])) == "memory:dram"
        prefill = attention_cost(device, DType.FLOAT16, AttentionShape(1, 40, 40, 200, 200, 128))
        assert max(prefill.terms, key=lambda term: float(prefill.terms[term][0])) == "memory:dram"


def test_shared_keys_cost_less_to_read() -> None:
    device = load_hardware("h100-sxm-80gb")
    grouped = attention_cost(device, DType.BFLOAT16, AttentionShape(16, 64, 8, 1, 8192, 128))
    own = attention_cost(device, DType.BFLOAT16, AttentionShape(16, 64, 64, 1, 8192, 128))
    assert own.traffic_bytes["dram"][0] == pytest.approx(
        8 * grouped.traffic_bytes["dram"][0], rel=0.01
    )
    assert own.time_s[0] > 4 * grouped.time_s[0]


def test_operands_that_a_cache_keeps_ask_no_farther_level():
    cache = MemoryLevel("l3", 32e6, 100e9, 1.0, 0.0, keeps_bytes=16e6)
    main = MemoryLevel("dram", 1e10, 10e9, 1.0, 0.0)
    engine = Engine("e", ("vector",), 1, {"float32": 1e15}, {"default": 1.0})
    device = Hardware("d", "", (engine,), (cache, main), (), Launch(1e-6, 1e-6, hidden=True))
    kept = streaming_cost(device, DType.FLOAT32, 1, 8e6, 8e6)
    assert kept.bound == "memory:l3"
    assert kept.time_s == pytest.approx(1e-6 + 16e6 / 100e9)
    gone = streaming_cost(device, DType.FLOAT32, 1, 8e6, 8e6 + 4)
    assert gone.bound == "memory:dram"
    assert gone.time_s == pytest.approx(1e-6 + 16e6 / 10e9, rel=1e-5)
