"""The device that is measured: which one, how it is timed, and what the system says about it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graph_ir.errors import OpboundError
from opbound.device.stopwatch import Clock, EventClock, HostClock, ThreadClock

_CACHES = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Target:
    """A device of this machine, ready to be timed."""

    torch: Any
    device: Any
    """torch.device."""
    clock: Clock
    title: str
    processors: int
    """Threads of a CPU, multiprocessors of a GPU."""
    capacity_bytes: int
    caches: tuple[tuple[str, int], ...]
    """Name and bytes of each cache that all processors together see, nearest first."""
    devices: int = 1
    """Devices of this kind in the machine."""

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU that torch reaches by CUDA (or HIP)."""
        return str(self.device.type) == "cuda"

    @property
    def origin(self) -> str:
        """Machine, date and versions, for the source of every figure."""
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        threads = "" if self.is_cuda else f", threads: {self.processors}"
        return (
            f"opbound calibrate on {platform.node() or 'this machine'} ({self.title}{threads}), "
            f"{day}, torch {self.torch.__version__}"
        )


def busy_note(target: Target) -> str | None:
    """Says that other programs want the processors that are to be measured; None where none does.

    Threads of one kernel wait for each other, so that a single one that is put aside stops them all.
    """
    if target.is_cuda or target.processors == 1 or not hasattr(os, "getloadavg"):
        return None
    load, count = os.getloadavg()[0], os.cpu_count() or 1
    if load + target.processors <= count + 0.5:
        return None
    return (
        f"the machine is busy (load {load:.1f}, {count} processors), so {target.processors} threads "
        "measure too low: end other work, or give --threads 1"
    )


def open_target(device: str, threads: int | None = None) -> Target:
    """Finds a device.

    Args:
        device: `cpu`, `cuda` or `cuda:INDEX`.
        threads: that a CPU computes with; None as torch chooses.

    Raises:
        OpboundError: if there is no torch, or no such device.
    """
    # torch's profiler writes lines of its own to standard error unless it is told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        import torch
    except ImportError as error:
        raise OpboundError("measuring needs torch: pip install 'opbound[torch]'") from error
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise OpboundError(f"--device {device!r} cannot be measured: give cpu, cuda or cuda:INDEX")
    if device == "cpu":
        return _cpu(torch, threads)
    if threads is not None:
        raise OpboundError("--threads is for --device cpu: leave it out")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise OpboundError(
            f"--device {device}: torch {torch.__version__} finds {count} CUDA devices here; "
            "see `nvidia-smi`, or give cpu"
        )
    torch.cuda.set_device(index)
    properties = torch.cuda.get_device_properties(index)
    return Target(
        torch=torch,
        device=torch.device("cuda", index),
        clock=EventClock(torch.cuda, index),
        title=str(properties.name),
        processors=int(properties.multi_processor_count),
        capacity_bytes=int(properties.total_memory),
        caches=(("l2", int(properties.L2_cache_size)),),
        devices=count,
    )


def _cpu(torch: Any, threads: int | None) -> Target:
    if threads is not None:
        torch.set_num_threads(threads)
    count = int(torch.get_num_threads())
    return Target(
        torch=torch,
        device=torch.device("cpu"),
        clock=ThreadClock() if count == 1 else HostClock(),
        title=_cpu_name(),
        processors=count,
        capacity_bytes=_memory_bytes(),
        caches=cpu_caches(_CACHES, count),
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine() or "CPU"


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError) as error:
        raise OpboundError(
            f"the system does not say how much memory it has ({error}): it cannot be calibrated"
        ) from error


def cpu_caches(root: Path, processors: int) -> tuple[tuple[str, int], ...]:
    """Name and bytes of each level of data caches that `processors` cores use, nearest first.

    Args:
        root: where the kernel describes the processors; where it does not, no cache is known.
        processors: cores that compute; each has its own of the caches that are not shared.
    """
    levels: dict[int, int] = {}
    for index in sorted(root.glob("cpu0/cache/index*")):
        if _read(index / "type") == "Instruction":
            continue
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size"))
        level = _read(index / "level")
        if size is None or not level.isdecimal():
            continue
        each = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[2]]
        instances = -(-processors // _sharing(_read(index / "shared_cpu_list")))
        levels[int(level)] = each * instances
    return tuple((f"l{level}", levels[level]) for level in sorted(levels))


def _sharing(cpus: str) -> int:
    """How many processors a list such as '0-3,8-11' names; at least one."""
    count = 0
    for part in filter(None, cpus.split(",")):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            count += int(last or first) - int(first) + 1
    return max(count, 1)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
