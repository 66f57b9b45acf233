"""Measures all-reduces over this machine's devices: one link with a latency and a bandwidth."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costing.link import Link, Protocol
from graph_ir.errors import OpboundError
from opbound.device.stopwatch import typical

_SIZES = tuple(1 << power for power in range(12, 29, 2))
_REPEATS = 20


@dataclass(frozen=True)
class AllReduce:
    """One measured all-reduce."""

    devices: int
    message_bytes: int
    seconds: float


def measured_link(devices: int, backend: str, *, quick: bool = False) -> Link:
    """The link that joins this machine's devices.

    Args:
        devices: how many there are.
        backend: of torch.distributed: nccl for GPUs, gloo for processes on a CPU.
        quick: fewer sizes.

    Raises:
        OpboundError: if the processes cannot talk to each other.
    """
    sizes = _SIZES[: 5 if quick else None]
    found = [
        measured
        for group in dict.fromkeys((2, devices))
        for measured in measure_all_reduces(group, backend, sizes)
    ]
    return fitted_link(found, devices)


def measure_all_reduces(devices: int, backend: str, sizes: Sequence[int]) -> list[AllReduce]:
    """Times all-reduces of each size, one process per device.

    Raises:
        OpboundError: if a process fails.
    """
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.start_processes(
                _worker,
                (devices, backend, tuple(sizes), folder),
                nprocs=devices,
                start_method="spawn",
            )
        except Exception as error:  # torch wraps what a process raised in classes of its own
            line = " ".join(str(error).split())[-200:]
            raise OpboundError(
                f"all-reduces over {devices} devices with {backend} failed: {line}"
            ) from error
        seconds = json.loads((Path(folder) / "seconds.json").read_text(encoding="utf-8"))
    return [AllReduce(devices, s, t) for s, t in zip(sizes, seconds, strict=True)]


def _worker(rank: int, devices: int, backend: str, sizes: Sequence[int], folder: str) -> None:
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/meet", rank=rank, world_size=devices
    )

    def finished() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found = []
    for size in sizes:
        message = torch.ones(size // 4, device=device)
        times = []
        for _ in range(_REPEATS):
            dist.barrier()
            finished()
            start_s = time.perf_counter()
            dist.all_reduce(message)
            finished()
            times.append(time.perf_counter() - start_s)
        # The first calls set up channels.
        found.append(typical(times[3:]))
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def fitted_link(found: Sequence[AllReduce], devices: int) -> Link:
    """Latency and bandwidth of a ring, by least squares of relative errors.

    t = base + 2 (n - 1) step + 2 (n - 1) / n * bytes / bandwidth
    """
    rows: list[list[float]] = []
    for one in found:
        n = one.devices
        rows.append([1.0, 2.0 * (n - 1), 2.0 * (n - 1) / n * one.message_bytes])
    # With two devices only, base and step cannot be told apart: all of it is base.
    apart = len({one.devices for one in found}) > 1
    times = np.array([one.seconds for one in found])
    system = np.array(rows)[:, [0, 1, 2] if apart else [0, 2]] / times[:, None]
    fit: Any = _non_negative(system, np.ones_like(times))
    base, step, per_byte = fit if apart else (fit[0], 0.0, fit[1])
    largest = max(found, key=lambda one: one.message_bytes)
    least = largest.seconds / largest.message_bytes / 2
    protocol = Protocol("measured", 1.0, float(base), float(step), ("ring",))
    bandwidth = 1 / max(float(per_byte), least * 1e-3)
    return Link("peers", "measured", devices, bandwidth, ("ring",), (protocol,))


def _non_negative(system: Any, right: Any) -> Any:
    """Least squares without negative figures: a column that would get one is left out."""
    columns = list(range(system.shape[1]))
    while columns:
        fit = np.linalg.lstsq(system[:, columns], right, rcond=None)[0]
        if (fit >= 0).all():
            break
        columns.pop(int(fit.argmin()))
    full = np.zeros(system.shape[1])
    full[columns] = fit if columns else []
    return full
