"""What comes beside the tensors: an allocator's segments, communicators' buffers, workspaces, the context."""

from __future__ import annotations

from pathlib import Path

import pytest

from costing.allocator import POOLS, block, reserved_bytes
from costing.hardware_file import load_hardware
from costing.runtime import OVERHEADS, overhead_bytes
from graph_ir.errors import HardwareError
from graph_ir.graph import Graph, GraphBuilder
from graph_ir.tensor_type import DType, TensorType

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "pool", "taken"),
    [
        (1, "small", 512),
        (513, "small", 1024),
        (MIB, "small", MIB),
        (MIB + 1, "medium", MIB + 512),
        (10 * MIB, "large", 10 * MIB),
        (10 * MIB + 1, "large", 12 * MIB),
    ],
)
def test_blocks_are_rounded_as_pytorch_does(size: int, pool: str, taken: int) -> None:
    assert block(size) == (pool, taken)


def test_pools_have_segments_of_their_own() -> None:
    """PyTorch's notes show 8,519,680 bytes of workspace in a segment of 20,971,520."""
    peaks = dict.fromkeys(POOLS, 0) | {"medium": 8_519_680, "small": 512}
    assert reserved_bytes(peaks) == 20_971_520 + 2 * MIB


def exchange(op: str, size: int) -> Graph:
    """One collective of a group of neighbours."""
    builder = GraphBuilder("exchange")
    type_ = TensorType((8,), DType.FLOAT32)
    source = builder.add_input("x", type_)
    attrs = {"axis": "tp", "group_size": size, "group_stride": 1, "during": "forward"}
    made = builder.emit(op, [source], [type_], attrs, name=op, phase="communication")
    return builder.build(made)


@pytest.mark.parametrize(("size", "measured"), [(2, 544 * MIB), (4, 688 * MIB)])
def test_a_communicator_takes_what_was_measured_on_a100s(size: int, measured: int) -> None:
    """github.com/NVIDIA/nccl/issues/964: an all-reduce over pairs, and over more GPUs, on NVLink."""
    device = load_hardware("a100-sxm-80gb")
    taken = overhead_bytes(device, [exchange("all_reduce", size)], 0)["communicators"]
    assert taken == pytest.approx(measured, rel=0.13)


def test_an_exchange_of_all_with_all_takes_what_was_measured_on_h100s() -> None:
    """github.com/NVIDIA/nccl/issues/1685: from 1.06 to 4.34 GB with the first one over eight GPUs."""
    device = load_hardware("h100-sxm-80gb")
    taken = overhead_bytes(device, [exchange("all_to_all", 8)], 0)["communicators"]
    assert taken == pytest.approx(4.34e9 - 1.06e9, rel=0.01)


def test_each_group_has_buffers_of_its_own() -> None:
    device = load_hardware("a100-sxm-80gb")
    one, two = exchange("all_reduce", 2), exchange("all_reduce", 8)
    both = overhead_bytes(device, [one, two, one], 0)["communicators"]
    apart = [overhead_bytes(device, [g], 0)["communicators"] for g in (one, two)]
    assert both == sum(apart)


def test_overhead_has_a_source_and_is_not_made_up_where_there_is_none() -> None:
    device = load_hardware("h100-sxm-80gb")
    assert device.runtime is not None
    assert {"runtime.context", "runtime.product_workspace", "runtime.connection"} <= set(
        device.runtime.sources
    )
    assert tuple(overhead_bytes(device, [exchange("all_reduce", 2)], 7)) == OVERHEADS
    assert overhead_bytes(load_hardware("tpu-v4"), [exchange("all_reduce", 2)], 7) == {}


def test_a_file_may_state_its_own_runtime(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    own = "runtime:\n  context: {value: 700 MB, source: nvidia-smi}\n"
    path.write_text(f"base: a100-sxm-80gb\nname: mine\n{own}")
    device = load_hardware(str(path))
    assert overhead_bytes(device, [], 5) == {
        "context": 700_000_000,
        "libraries": 0,
        "communicators": 0,
        "allocator": 0,
    }
    path.write_text("base: a100-sxm-80gb\nname: mine\nruntime: cudaa\n")
    with pytest.raises(HardwareError, match="cudaa"):
        load_hardware(str(path))
