"""What a device is to the cost model: lists of engines, memory levels and links.

Nothing here knows a vendor. A GPU, a CPU, a TPU or a microcontroller differ in data only, and that
data comes from a YAML file (`costing.hardware_file`) in which every number has a unit and a source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from costing.engine import MATRIX, VECTOR, Engine
from costing.link import Link
from graph_ir.errors import HardwareError, did_you_mean
from graph_ir.tensor_type import DType

if TYPE_CHECKING:
    from costing.energy import Energy
    from costing.runtime import Runtime


@dataclass(frozen=True)
class MemoryLevel:
    """One level of the memory hierarchy, as all processors together see it."""

    name: str
    capacity_bytes: float
    """Of the whole device: a per-processor scratchpad is given as the sum over processors."""
    bandwidth_bytes_per_s: float
    efficiency: float
    """Highest fraction of the bandwidth that real streams reach."""
    latency_s: float
    """Time until the stream flows: t = latency + bytes / (efficiency * bandwidth)."""
    processor_bytes_per_s: float | None = None
    """What one processor alone can draw; None when a single one can saturate the level."""
    keeps_bytes: float = 0.0
    """Operands up to this size, those of one kernel together, are still here from the kernels before
    and need not come from farther levels; 0: nothing is kept between kernels."""

    @property
    def sustained_bytes_per_s(self) -> float:
        """Bandwidth that a long stream over all processors reaches."""
        return self.bandwidth_bytes_per_s * self.efficiency


@dataclass(frozen=True)
class Clock:
    """The processors' clock."""

    base_hz: float
    """The clock that is warranted: an idle card works at it until it has been busy for a while."""
    boost_hz: float
    """The clock of the peaks."""


@dataclass(frozen=True)
class Launch:
    """What it costs to start a kernel."""

    device_latency_s: float
    """Between the end of one kernel and useful work of the next, when launches are queued."""
    host_s: float
    """Time the host needs to issue one operator; the device waits for it unless it is hidden
    (`costing.host`)."""
    hidden: bool
    """Whether launches are recorded once and replayed (CUDA graphs, ahead-of-time programs)."""
    switch_s: float = 0.0
    """What a kernel takes longer after a different one than when it runs again and again, as in a
    benchmark: its instructions and operands are cold, and it waits for the last of the other."""
    view_s: float = 0.0
    """Time the host needs for an operator that only looks at a tensor otherwise and launches nothing."""

    @property
    def least_s(self) -> float:
        """The shortest time from one issued kernel to the next, however little it does."""
        return self.device_latency_s + self.switch_s


@dataclass(frozen=True)
class Hardware:
    """A device together with the links that join several of it."""

    name: str
    title: str
    engines: tuple[Engine, ...]
    memory: tuple[MemoryLevel, ...]
    """From the nearest to the farthest; the last holds the model."""
    links: tuple[Link, ...]
    """From the innermost to the outermost; empty for a device that stands alone."""
    launch: Launch
    sources: Mapping[str, str] = field(default_factory=dict)
    """For each key path of the file, where its number comes from."""
    path: str = ""
    energy: Energy | None = None
    """None where nothing is known of the device's power."""
    clock: Clock | None = None
    """None where it is not known, or the same at all times."""
    runtime: Runtime | None = None
    """None where nothing is known of what a framework takes of the memory."""

    @property
    def main_memory(self) -> MemoryLevel:
        """The level that holds parameters and activations; its capacity is what has to fit them."""
        return self.memory[-1]

    def with_launches(self, *, replayed: bool) -> Hardware:
        """The same device whose launches are recorded once and replayed, or issued one by one."""
        return replace(self, launch=replace(self.launch, hidden=replayed))

    def at_base_clock(self) -> Hardware:
        """The same device before it raises its clock, as in benchmarks that let it rest between calls.

        Engines and caches run at the processors' clock, main memory and links have their own.
        """
        if self.clock is None:
            return self
        clock = self.clock.base_hz / self.clock.boost_hz
        engines = tuple(
            replace(
                engine,
                peak_flops={name: rate * clock for name, rate in engine.peak_flops.items()},
                tile_overhead_s=engine.tile_overhead_s / clock,
            )
            for engine in self.engines
        )
        caches = tuple(
            replace(
                level,
                bandwidth_bytes_per_s=level.bandwidth_bytes_per_s * clock,
                processor_bytes_per_s=None
                if level.processor_bytes_per_s is None
                else level.processor_bytes_per_s * clock,
            )
            for level in self.memory[:-1]
        )
        return replace(self, engines=engines, memory=(*caches, self.main_memory), clock=None)

    def level(self, name: str) -> MemoryLevel:
        """The memory level of that name.

        Raises:
            HardwareError: if there is none.
        """
        for level in self.memory:
            if level.name == name:
                return level
        known = did_you_mean(name, [level.name for level in self.memory])
        raise HardwareError(f"{self.name} has no memory level {name!r}; {known}")

    def engine_for(self, kind: str, dtype: DType) -> Engine:
        """The engine that runs work of `kind` on `dtype` fastest.

        Matrix work in a dtype that no matrix engine takes runs on a vector engine, as libraries do:
        so do integers wider than 8 bits, whose products no narrow float of a matrix engine holds.

        Raises:
            HardwareError: if no engine can run it.
        """
        takes = [e for e in self.engines if kind in e.kinds and e.supports(dtype)]
        if kind == MATRIX and not dtype.is_float and dtype.bits > 8:
            takes = [e for e in takes if VECTOR in e.kinds or dtype.label in e.peak_flops]
        if not takes:
            takes = [e for e in self.engines if VECTOR in e.kinds and e.supports(dtype)]
        if not takes:
            takes = [e for e in self.engines if e.supports(dtype)]
        if not takes:
            raise HardwareError(
                f"{self.name}: no engine takes {dtype.label}; add a peak for it to {self.path}"
            )
        return max(takes, key=lambda engine: engine.sustained(dtype))

    def ridge_point(self, dtype: DType, kind: str = MATRIX) -> float:
        """FLOP per byte of main memory at which the sustained compute and memory times meet."""
        engine = self.engine_for(kind, dtype)
        return engine.sustained(dtype) / self.main_memory.sustained_bytes_per_s
