"""Winograd's convolutions: where they apply, what they can gain, and what a resting card loses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costing.hardware_file import load_hardware
from costing.node_cost import NodePricer
from costing.op_cost import OpCost
from costing.winograd import WinogradShape, winograd_cost
from graph_ir.graph import GraphBuilder
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph

FP32 = DType.FLOAT32
A100 = load_hardware("a100-pcie-80gb")


def convolution(
    c_in: int = 256,
    c_out: int = 256,
    taps: int = 3,
    stride: int = 1,
    dtype: DType = FP32,
    device: str = "a100-pcie-80gb",
) -> list[OpCost]:
    """Prices of a convolution of 32 images of 28 x 28, of its inputs' and of its weights' gradient."""
    out = 28 // stride
    b = GraphBuilder()
    x = b.add_input("x", TensorType((32, c_in, 28, 28), dtype), "parameter")
    w = b.add_input("w", TensorType((c_out, c_in, taps, taps), dtype), "parameter")
    attrs = {"stride": (stride, stride), "padding": (taps // 2, taps // 2)}
    (y,) = b.emit("conv", [x, w], [TensorType((32, c_out, out, out), dtype)], attrs)
    pricer = NodePricer(load_hardware(device))
    nodes = training_graph(b.build([y]), optimizer="sgd").nodes
    return [pricer.cost(node) for node in nodes if node.op == "conv"]


def rate(cost: OpCost) -> float:
    """Counted FLOP/s over the engine's peak."""
    return cost.flops / cost.time_s / A100.engine_for("matrix", FP32).peak(FP32)


def test_three_by_three_taps_beat_the_direct_peak_but_not_fourfold() -> None:
    forward, inputs, weights = (rate(cost) for cost in convolution())
    assert 1 < forward < 4  # F(4 x 4) multiplies 36 times where 9 * 16 are counted
    assert inputs == pytest.approx(forward)
    assert weights < 1


@pytest.mark.parametrize(
    "other", [{"stride": 2}, {"taps": 1}, {"taps": 5}, {"device": "epyc-9654"}], ids=str
)
def test_other_convolutions_multiply_what_is_counted(other: dict[str, object]) -> None:
    device = load_hardware(str(other.get("device", "a100-pcie-80gb")))
    peak = device.engine_for("matrix", FP32).peak(FP32)
    assert all(c.time_s >= c.flops / peak for c in convolution(**other))  # type: ignore[arg-type]


def test_a_matrix_engine_has_no_such_kernels() -> None:
    cost = convolution(dtype=DType.FLOAT16)[0]
    assert cost.time_s >= cost.flops / A100.engine_for("matrix", DType.FLOAT16).peak(DType.FLOAT16)


def test_the_multiplications_are_those_of_the_algorithm() -> None:
    """F(2 x 2, 3 x 3) with Lavin's and Gray's matrices: 16 products per tile give the convolution."""
    to_inputs = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float)
    to_taps = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    to_result = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float)
    random = np.random.default_rng(0)
    tile, taps = random.normal(size=(4, 4)), random.normal(size=(3, 3))
    products = (to_inputs @ tile @ to_inputs.T) * (to_taps @ taps @ to_taps.T)
    direct = [[(tile[y : y + 3, x : x + 3] * taps).sum() for x in (0, 1)] for y in (0, 1)]
    assert np.allclose(to_result @ products @ to_result.T, direct)
    # As many products, at least, are priced: 28 x 28 outputs are whole tiles of both kinds.
    cost = winograd_cost(A100, FP32, WinogradShape(32, 28, 28, 256, 256))
    multiplied = (cost.terms["compute"][0] - A100.main_memory.latency_s) * A100.engine_for(
        "matrix", FP32
    ).sustained(FP32)
    pairs = 32 * 28 * 28 * 256 * 256
    assert multiplied == pytest.approx(2 * pairs * 36 / 16) or multiplied == pytest.approx(
        2 * pairs * products.size / 4
    )


sides = st.integers(1, 200)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 64), sides, sides, st.integers(1, 2048), st.integers(1, 2048))
def test_time_is_never_below_any_term(n: int, h: int, w: int, c_in: int, c_out: int) -> None:
    cost = winograd_cost(A100, FP32, WinogradShape(n, h, w, c_in, c_out))
    assert all(cost.time_s[0] >= seconds[0] > 0 for seconds in cost.terms.values())


def test_a_resting_card_computes_slower_and_streams_as_fast() -> None:
    resting = A100.at_base_clock()
    full, slow = A100.engine_for("matrix", FP32), resting.engine_for("matrix", FP32)
    assert slow.sustained(FP32) == pytest.approx(full.sustained(FP32) * 1065 / 1410)
    assert resting.main_memory == A100.main_memory
    assert resting.at_base_clock() == resting
    assert load_hardware("t4").at_base_clock() == load_hardware("t4")  # its file states no clock
