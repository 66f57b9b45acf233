"""A small costed step, made by hand: two folded layers, a collective and an embedding."""

import dataclasses

import pytest

from reports import (
    CostedNode,
    Coverage,
    HardwareInfo,
    Instance,
    ModelInfo,
    Report,
    StepTimes,
    StrategyInfo,
    build_report,
)

# Three nodes; times are the largest term plus latency, in seconds of one execution.
NODES = (
    CostedNode(
        name="embed",
        module="model.embed",
        op="embedding",
        phase="forward",
        count=1,
        shapes=((8, 16), (100, 32), (8, 16, 32)),
        dtypes=("int64", "bfloat16", "bfloat16"),
        flops=0,
        bytes_read=9_216,
        bytes_written=8_192,
        bytes_communicated=0,
        time_s=3e-6,
        bound="latency",
        engine="vector",
        utilization=1.0,
        terms_s={"memory:dram": 1e-6, "latency": 2e-6},
    ),
    CostedNode(
        name="model.layers.[0-1].mlp.matmul",
        module="model.layers.[0-1].mlp",
        op="linear",
        phase="forward",
        count=2,
        shapes=((8, 16, 32), (64, 32), (8, 16, 64)),
        dtypes=("bfloat16",) * 3,
        flops=2 * 8 * 16 * 32 * 64,
        bytes_read=12_288,
        bytes_written=16_384,
        bytes_communicated=0,
        time_s=12e-6,
        bound="compute",
        engine="matrix",
        utilization=0.5,
        terms_s={"compute": 10e-6, "memory:dram": 4e-6, "latency": 2e-6},
        instances=tuple(
            Instance(f"model.layers.{i}.mlp.matmul", f"model.layers.{i}.mlp") for i in (0, 1)
        ),
    ),
    CostedNode(
        name="model.layers.[0-1].mlp.all_reduce",
        module="model.layers.[0-1].mlp",
        op="all_reduce",
        phase="communication",
        count=2,
        shapes=((8, 16, 64), (8, 16, 64)),
        dtypes=("bfloat16",) * 2,
        flops=0,
        bytes_read=0,
        bytes_written=0,
        bytes_communicated=16_384,
        time_s=5e-6,
        bound="network:nvlink",
        engine="nvlink",
        utilization=0.4,
        terms_s={"network:nvlink": 5e-6},
        instances=tuple(
            Instance(f"model.layers.{i}.mlp.all_reduce", f"model.layers.{i}.mlp") for i in (0, 1)
        ),
    ),
)

# 3 + 2 * 12 computing, 2 * 5 communicating of which half is hidden: 3 + 24 + 5 = 32 us.
TIMES = StepTimes(step_time_s=32e-6, exposed_communication_s=5e-6)


def build(nodes=NODES, times=TIMES, **changes) -> Report:
    given = {
        "opbound_version": "0.0",
        "model": ModelInfo(
            name="tiny", source="tiny.onnx", sha256="ab" * 32, importer="onnx", dtype="bfloat16"
        ),
        "hardware": HardwareInfo(
            name="toy", file="toy.yaml", sha256="cd" * 32, peak_flops_per_s=1e12
        ),
        "strategy": StrategyInfo(devices=2, parallel={"tp": 2}),
        "mode": "inference",
        "coverage": Coverage(nodes=1.0, bytes=1.0),
        "parameters": 7_296,
        "capacity_bytes": 1_000_000,
        "memory_by_kind_bytes": {"parameters": 14_592, "activations": 40_000},
    }
    return build_report(nodes, times=times, **(given | changes))


@pytest.fixture
def make_report():
    """Builds the small step's report with some arguments changed."""
    return build


@pytest.fixture
def nodes():
    return NODES


@pytest.fixture
def report() -> Report:
    return build()


@pytest.fixture
def hostile() -> Report:
    """A report whose model came from someone who wants to break out of every output."""
    name = '=<script>alert(1)</script>\x1b[31m|`x`\nnext\u202e"'
    node = dataclasses.replace(NODES[0], name=name, module="")
    return build((node,), StepTimes(step_time_s=3e-6))
