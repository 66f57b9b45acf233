"""Calibration and measurement: their logic with made-up clocks and profiles, then this CPU for real."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from costing.engine import MATRIX, Engine, Tile
from costing.gemm import gemm_cost
from costing.hardware import Hardware, Launch, MemoryLevel
from costing.hardware_file import load_hardware
from graph_ir.errors import OpboundError
from graph_ir.tensor_type import DType
from opbound.cli import main
from opbound.device.benchmarks import Copy, Product, device_s
from opbound.device.collectives import AllReduce, fitted_link
from opbound.device.engine_fit import fit_overheads, levels_of
from opbound.device.onnx_run import node_times
from opbound.device.stopwatch import EventClock, typical, typical_s
from opbound.device.target import Target, busy_note, cpu_caches
from opbound.device.torch_run import operator_times

# --- clocks -------------------------------------------------------------------------------------


class FakeClock:
    """Time passes only while work is done: `cost_s` per call, and some samples are disturbed."""

    def __init__(self, cost_s: float, first_s: float = 0.0, disturbed: int = 3) -> None:
        self.now, self.calls, self.samples = 0.0, 0, 0
        self.cost_s, self.first_s, self.disturbed = cost_s, first_s, disturbed

    def work(self) -> None:
        self.now += self.cost_s + (self.first_s if self.calls == 0 else 0.0)
        self.calls += 1

    def begin(self) -> None:
        self.started = self.now
        self.samples += 1

    def end(self) -> float:
        if self.samples % self.disturbed == 0:
            self.now += 50 * self.cost_s
        return self.now - self.started


@pytest.mark.parametrize("cost_s", [2e-6, 3e-4, 0.4])
def test_neither_warm_up_nor_disturbances_count(cost_s):
    clock = FakeClock(cost_s, first_s=10.0)
    assert typical_s(clock, clock.work) == pytest.approx(cost_s, rel=1e-6)


def test_short_work_is_repeated_until_a_clock_can_tell():
    clock = FakeClock(1e-6, disturbed=10**9)
    typical_s(clock, clock.work, samples=3)
    assert clock.calls >= 3 * 900


def test_the_lower_quartile():
    assert typical([5.0, 1.0, 2.0, 9.0, 9.0]) == 2.0
    assert typical([3.0]) == 3.0


class FakeCuda:
    """Records what a clock asks of CUDA; a device's time runs apart from the host's."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.device_ms = 0.0
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                cuda.log.append("record")
                self.at = cuda.device_ms

            def synchronize(self) -> None:
                cuda.log.append("wait")

            def elapsed_time(self, other: object) -> float:
                return other.at - self.at

        self.Event = Event

    def synchronize(self, device: object) -> None:
        self.log.append("synchronize")


def test_the_cuda_clock_waits_before_and_after_and_reads_the_devices_time():
    cuda = FakeCuda()
    clock = EventClock(cuda, 0)
    clock.begin()
    cuda.device_ms += 4.0
    assert clock.end() == pytest.approx(4e-3)
    assert cuda.log == ["synchronize", "record", "record", "wait"]


class FakeGpu(FakeCuda):
    """Kernels take 3 us on the device; issuing one takes the host 7 us, replaying a graph nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: int | None = None
        gpu = self

        class Graph:
            def replay(self) -> None:
                gpu.device_ms += self.kernels * 3e-3

        self.CUDAGraph = Graph

    def Stream(self) -> object:
        return type("Stream", (), {"wait_stream": lambda self, other: None})()

    current_stream = Stream

    @contextmanager
    def stream(self, stream):
        yield

    @contextmanager
    def graph(self, graph):
        self.recorded = 0
        yield
        graph.kernels, self.recorded = self.recorded, None

    def work(self) -> None:
        if self.recorded is None:
            self.device_ms += 7e-3
        else:
            self.recorded += 1


def test_on_a_gpu_a_recorded_graph_tells_the_devices_time_apart_from_the_hosts():
    gpu = FakeGpu()
    torch = SimpleNamespace(cuda=gpu)
    target = Target(torch, SimpleNamespace(type="cuda"), EventClock(gpu, 0), "gpu", 1, 1, ())
    assert device_s(target, gpu.work, budget_s=0.1) == pytest.approx(3e-6)
    assert typical_s(target.clock, gpu.work) == pytest.approx(7e-6)


# --- what measurements say ----------------------------------------------------------------------


def test_levels_come_back_from_copies_of_a_known_device():
    launch_s, rates = 1e-6, ((1 << 20, 200e9), (1 << 25, 90e9), (1 << 40, 20e9))
    copies = []
    for power in range(14, 30):
        moved = 1 << power
        rate = next(rate for size, rate in rates if moved <= size)
        copies.append(Copy(moved, launch_s + moved / rate))
    levels = levels_of(copies, (("l2", 1 << 20), ("l3", 1 << 25)), 1 << 34, launch_s)
    assert [level.name for level in levels] == ["l2", "l3", "dram"]
    found = [level.bandwidth_bytes_per_s for level in levels]
    assert found == pytest.approx([200e9, 90e9, 20e9], rel=0.01)
    assert levels[1].keeps_bytes == 1 << 25
    assert levels[0].keeps_bytes == levels[2].keeps_bytes == 0


def test_a_cache_that_only_launches_fill_is_left_out():
    copies = [Copy(1 << 14, 1.1e-6), Copy(1 << 22, 40e-6), Copy(1 << 28, 0.02)]
    levels = levels_of(copies, (("l1", 1 << 15), ("l2", 1 << 23)), 1 << 34, 1e-6)
    assert [level.name for level in levels] == ["l2", "dram"]


def test_overheads_come_back_from_products_of_a_known_device():
    tiles = (Tile(128, 128), Tile(64, 64))
    memory = (MemoryLevel("dram", 1e10, 1e12, 1.0, 0.0),)
    launch = Launch(2e-6, 2e-6, hidden=True)
    engine = Engine(
        "e", (MATRIX,), 8, {"float32": 1e13}, {"default": 0.8}, tiles, tile_overhead_s=1e-6
    )
    device = Hardware("d", "", (engine,), memory, (), launch)
    shapes = [(m, n, k) for m in (64, 300, 2048) for n in (64, 1024) for k in (64, 512, 4096)]
    times = gemm_cost(device, DType.FLOAT32, *np.array(shapes).T).time_s
    products = [Product(DType.FLOAT32, *s, float(t)) for s, t in zip(shapes, times, strict=True)]
    found = fit_overheads(products, 8, tiles, memory, 2e-6)
    assert found.mean_error < 0.04
    slower = [replace(p, seconds=p.seconds * (1 + p.m % 7)) for p in products]
    assert fit_overheads(slower, 8, tiles, memory, 2e-6).mean_error > found.mean_error


def test_latency_and_bandwidth_come_back_from_all_reduces():
    found = [
        AllReduce(n, size, 20e-6 + 2 * (n - 1) * 3e-6 + 2 * (n - 1) / n * size / 100e9)
        for n in (2, 8)
        for size in (1 << 12, 1 << 20, 1 << 28)
    ]
    link = fitted_link(found, 8)
    assert link.bandwidth_bytes_per_s == pytest.approx(100e9, rel=1e-3)
    assert link.protocols[0].base_latency_s == pytest.approx(20e-6, rel=1e-3)
    assert link.protocols[0].step_latency_s == pytest.approx(3e-6, rel=1e-3)
    two = fitted_link([one for one in found if one.devices == 2], 2)
    assert two.protocols[0].base_latency_s == pytest.approx(26e-6, rel=1e-3)


def test_caches_as_the_kernel_describes_them(tmp_path):
    def cache(index: int, **facts: str) -> None:
        folder = tmp_path / "cpu0" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in facts.items():
            (folder / name).write_text(text + "\n")

    cache(0, type="Data", level="1", size="32K", shared_cpu_list="0,8")
    cache(1, type="Instruction", level="1", size="32K", shared_cpu_list="0,8")
    cache(2, type="Unified", level="2", size="1024K", shared_cpu_list="0,8")
    cache(3, type="Unified", level="3", size="16M", shared_cpu_list="0-3,8-11")
    kib = 1 << 10
    expected = (("l1", 8 * 32 * kib), ("l2", 8 << 20), ("l3", 32 << 20))
    assert cpu_caches(tmp_path, 16) == expected
    assert cpu_caches(tmp_path / "absent", 16) == ()


# --- profiles -----------------------------------------------------------------------------------


@dataclass
class Event:
    name: str
    cpu_time_total: float = 0.0
    device_time_total: float = 0.0
    sequence_nr: int = -1
    cpu_children: list = field(default_factory=list)


def test_a_profile_is_summed_up_by_operator_and_gradients_find_their_operator():
    transpose = Event("aten::t", 1, 0, 7)
    product = Event("aten::addmm", 8, 5, 8)
    linear = Event("aten::linear", 10, 5, 7, [transpose, product])
    relu = Event("aten::relu", 3, 2, 9)
    view = Event("aten::view", 1, 0, 9)
    events = [
        Event("opbound::linear", 50, 5, -1, [linear]),
        Event("opbound::view", 50, 0, -1, [view]),
        Event("opbound::relu", 50, 2, -1, [relu]),
        *(linear, transpose, product, view, relu),
        Event("autograd::engine::evaluate_function: ReluBackward0", 4, 3, 9),
        Event("autograd::engine::evaluate_function: AddmmBackward0", 20, 11, 8),
        Event("autograd::engine::evaluate_function: TBackward0", 2, 0, 7),
        Event("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 1, 1, -1),
    ]
    host = operator_times(events, on_device=False)
    assert host.forward_s == pytest.approx({"linear": 10e-6, "view": 1e-6, "relu": 3e-6})
    assert host.backward_s == pytest.approx({"relu": 4e-6, "linear": 22e-6})
    assert host.unmatched_s == pytest.approx(1e-6)
    device = operator_times(events, on_device=True)
    assert device.forward_s == pytest.approx({"linear": 5e-6, "view": 0.0, "relu": 2e-6})
    assert device.backward_s == pytest.approx({"relu": 3e-6, "linear": 11e-6})


def test_the_first_run_of_a_session_does_not_count():
    def event(micros: float, kind: str = "Node") -> dict:
        return {"cat": kind, "name": "opbound::out_kernel_time", "dur": micros}

    events = [event(900), event(12), event(10), event(11), event(5, "Session")]
    assert node_times(events) == {"out": pytest.approx(10e-6)}


# --- this machine's CPU -------------------------------------------------------------------------

FACTORY = """
import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(64, 256), nn.LayerNorm(256), nn.Linear(256, 64)

    def forward(self, x):
        return self.down(torch.relu(self.norm(self.up(x)))) + x.view(-1, 64)


def build():
    return Tied(), (torch.randn(32, 64),)
"""


@pytest.fixture
def same_threads():
    """The number of threads is the whole process's: what a command sets is set back."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("same_threads")
def test_calibrate_and_measure_on_this_cpu(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_small_model.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", "--quick", "--threads", "1", "-o", "mine.yaml"]) == 0
    device = load_hardware("mine.yaml")
    assert device.engine_for(MATRIX, DType.FLOAT32).peak(DType.FLOAT32) > 1e8
    assert device.memory[-1].name == "dram"
    assert device.launch.host_s > 0
    measured = [path for path, source in device.sources.items() if "opbound calibrate" in source]
    assert set(device.sources) - set(measured) == {"engines[gemm].tiles"}
    command = ["measure", "my_small_model:build", "--backward", "--hardware", "mine.yaml"]
    assert main([*command, "--threads", "1", "--repeats", "2", "--format", "json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    rows = {(row["name"], row["phase"]): row for row in plain["rows"]}
    ops = {row["op"] for row in plain["rows"] if row["phase"] == "forward"}
    assert {"linear", "layer_norm", "relu", "add"} <= ops
    assert ("up", "forward") in rows
    assert all(row["measured_s"] > 0 for row in plain["rows"])
    assert {row["op"] for row in plain["rows"] if row["phase"] == "backward"} >= {
        "linear",
        "layer_norm_backward",
    }
    total = plain["total"]
    assert total["predicted_s"] == pytest.approx(sum(r["predicted_s"] for r in plain["rows"]))
    # Only that nothing is off by its unit: how near a loaded machine comes is no matter of a test.
    assert 0.01 < total["predicted_s"] / total["measured_s"] < 100


@pytest.mark.usefixtures("same_threads")
def test_an_onnx_file_is_compared_node_by_node(tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="same"),
        helper.make_node("Relu", ["y"], ["z"], name="same"),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", 64])
        for name in ("x", "z")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "small.onnx"
    onnx.save(model, path)
    command = ["measure", str(path), "--dim", "rows=128", "--hardware", "epyc-9654"]
    assert main([*command, "--threads", "1", "--repeats", "2", "--format", "json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert sorted(row["op"] for row in plain["rows"]) == ["matmul", "relu"]
    assert all(row["measured_s"] > 0 and row["predicted_s"] > 0 for row in plain["rows"])
    assert main(["measure", str(path), "--backward"]) == 2
    assert main(["measure", str(path), "--device", "cuda:7"]) == 2
    assert "cuda:7" in capsys.readouterr().err


@pytest.mark.usefixtures("same_threads")
def test_what_cannot_be_measured_is_told(tmp_path):
    from opbound.device.target import open_target

    with pytest.raises(OpboundError, match="cpu, cuda"):
        open_target("tpu")
    assert main(["calibrate", "-o", str(tmp_path / "device.txt")]) == 2
    assert main(["calibrate", "--threads", "0", "-o", str(tmp_path / "d.yaml")]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("load", "threads", "busy"), [(0.2, 4, False), (3.0, 4, True), (9, 1, False)]
)
def test_a_busy_machine_is_told(monkeypatch, load, threads, busy):
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    target = Target(None, SimpleNamespace(type="cpu"), None, "cpu", threads, 1, ())
    note = busy_note(target)
    assert (note is not None) is busy
