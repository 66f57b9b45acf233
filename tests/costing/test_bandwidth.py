"""What main memory's bandwidth does to operators and steps, on shipped devices and on one unlike them all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costing.hardware import Hardware
from costing.hardware_file import load_hardware
from costing.node_cost import node_cost
from costing.op_cost import COMPUTE, OpCost
from costing.schedule import Schedule
from costing.step import step_cost
from graph_ir.graph import GraphBuilder, Node
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph

# A superconducting unit: picoseconds where a GPU has microseconds, two levels of fast memory, no launches.
CRYOGENIC = """
name: cryogenic
title: A superconducting processing unit, imagined
sources: {plan: imagined}
engines:
  - name: array
    kinds: [matrix, vector]
    processors: {value: 64 arrays, source: plan}
    peak:
      bfloat16: {value: 2.4 PFLOPS, source: plan}
      float32: {value: 0.1 PFLOPS, source: plan}
    efficiency:
      default: {value: 80 %, source: plan}
    tiles: {value: [128x128, 64x64, 32x32], source: plan}
memory:
  - name: jsram_l1
    capacity: {value: 24 MB, source: plan}
    bandwidth: {value: 4000 TB/s, source: plan}
    efficiency: {value: 100 %, source: plan}
    latency: {value: 0 ns, source: plan}
  - name: jsram_l2
    capacity: {value: 4 GB, source: plan}
    bandwidth: {value: 1000 TB/s, source: plan}
    efficiency: {value: 100 %, source: plan}
    latency: {value: 0.1 ns, source: plan}
  - name: cryo_dram
    capacity: {value: 64 GB, source: plan}
    bandwidth: {value: 0.5 TB/s, source: plan}
    efficiency: {value: 90 %, source: plan}
    latency: {value: 30 ns, source: plan}
launch:
  device_latency: {value: 5 ns, source: plan}
  host: {value: 0 ns, source: plan}
  hidden: true
"""
SHIPPED = ("h100-sxm-80gb", "t4", "mi300x", "tpu-v5e", "epyc-9654", "gaudi2")


@pytest.fixture(scope="module")
def cryogenic(tmp_path_factory: pytest.TempPathFactory) -> Hardware:
    file: Path = tmp_path_factory.mktemp("device") / "cryogenic.yaml"
    file.write_text(CRYOGENIC, encoding="utf-8")
    return load_hardware(str(file))


def with_bandwidth(device: Hardware, per_s: float) -> Hardware:
    main = replace(device.main_memory, bandwidth_bytes_per_s=per_s)
    return replace(device, memory=(*device.memory[:-1], main))


def half(*shape: int) -> TensorType:
    return TensorType(shape, DType.BFLOAT16)


def operators() -> list[Node]:
    """Products from a row to a square, a batch of them, attention, and what only streams."""
    b = GraphBuilder()
    for m, n, k in ((1, 8192, 8192), (300, 4096, 512), (4096, 4096, 4096), (17, 129, 65537)):
        x, w = b.add_input(f"x{m}", half(m, k)), b.add_input(f"w{m}", half(n, k), "parameter")
        b.emit("linear", [x, w], [half(m, n)])
    p, q = b.add_input("p", half(32, 512, 64)), b.add_input("q", half(32, 64, 512))
    b.emit("matmul", [p, q], [half(32, 512, 512)])
    heads = [b.add_input(name, half(2, 8, 1024, 64)) for name in ("query", "key", "value")]
    b.emit("attention", heads, [half(2, 8, 1024, 64)])
    y = b.add_input("y", half(1024, 8192))
    b.emit("softmax", [y], [y.type], {"axis": -1})
    b.emit("gelu", [y], [y.type])
    return list(b.build([]).nodes)


OPERATORS = operators()


def cost_at(device: Hardware, node: Node, per_s: float) -> OpCost:
    return node_cost(with_bandwidth(device, per_s), node)


def check_never_slower(device: Hardware, node: Node) -> None:
    rates = np.geomspace(1e8, 1e16, 60)
    times = np.array([cost_at(device, node, float(rate)).time_s for rate in rates])
    assert (np.diff(times) <= 1e-12 * times[:-1]).all(), node.name
    # Twice the bandwidth is at most twice as fast.
    ratio = rates[1] / rates[0]
    assert (times[:-1] / times[1:] <= ratio * (1 + 1e-9)).all(), node.name


def check_flip(device: Hardware, node: Node) -> None:
    """An operator is bound by a slow main memory, and by something else once that is fast.

    Around the flip a product may change to a tile that moves more through the faster memory and less
    through the others, or to another engine: memory then bounds it once more, within a factor of 5.
    """
    memory = f"memory:{device.main_memory.name}"
    rates = np.geomspace(1e8, 1e18, 300)
    bound = np.array([cost_at(device, node, float(rate)).bound == memory for rate in rates])
    assert bound[0]
    if not bound.all():
        assert rates[bound].max() < 5 * rates[~bound].min()


@pytest.mark.parametrize("node", OPERATORS, ids=lambda n: n.name)
@pytest.mark.parametrize("name", SHIPPED)
def test_more_bandwidth_is_never_slower(name: str, node: Node) -> None:
    check_never_slower(load_hardware(name), node)
    check_flip(load_hardware(name), node)


@pytest.mark.parametrize("node", OPERATORS, ids=lambda n: n.name)
def test_more_bandwidth_is_never_slower_without_a_gpus_latencies(
    cryogenic: Hardware, node: Node
) -> None:
    check_never_slower(cryogenic, node)
    check_flip(cryogenic, node)


def test_an_operator_flips_at_its_arithmetic_intensity(cryogenic: Hardware) -> None:
    """Peak over intensity, both as sustained: 2 x 4096^3 FLOPs on three tensors of 32 MiB."""
    node = OPERATORS[2]
    engine = cryogenic.engines[0]
    intensity = 2 * 4096**3 / (3 * 4096**2 * 2)
    flip = engine.sustained(DType.BFLOAT16) / intensity / cryogenic.main_memory.efficiency
    assert cost_at(cryogenic, node, flip * 0.99).bound == "memory:cryo_dram"
    assert cost_at(cryogenic, node, flip * 1.01).bound == COMPUTE


@settings(max_examples=25, deadline=None)
@given(st.integers(0, len(OPERATORS) - 1), st.floats(1e9, 1e14), st.floats(1.0, 32.0))
def test_no_operator_gains_more_than_the_bandwidth(index: int, per_s: float, ratio: float) -> None:
    device = load_hardware("h100-sxm-80gb")
    slow, fast = (cost_at(device, OPERATORS[index], rate) for rate in (per_s, per_s * ratio))
    assert fast.time_s <= slow.time_s * (1 + 1e-9)
    assert slow.time_s <= fast.time_s * ratio * (1 + 1e-9)


def test_a_training_step_saturates_where_its_last_product_flips(cryogenic: Hardware) -> None:
    b = GraphBuilder()
    value = b.add_input("x", half(512, 1024))
    for i in range(3):
        weight = b.add_input(f"layers.{i}.w", half(1024, 1024), "parameter")
        (value,) = b.emit("linear", [value, weight], [value.type])
    graph = training_graph(b.build([value]), optimizer="sgd")
    rates = np.geomspace(1e10, 1e17, 40)
    times = np.array([
        step_cost([graph], with_bandwidth(cryogenic, float(r)), Schedule("1f1b")).step_time_s
        for r in rates
    ])  # fmt: skip
    assert (np.diff(times) <= 1e-12 * times[:-1]).all()
    assert times[0] / times[1] == pytest.approx(rates[1] / rates[0], rel=0.01)
    assert times[-2] == pytest.approx(times[-1], rel=1e-3)
