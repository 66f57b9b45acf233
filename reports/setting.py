"""What was analysed, on what, and how: the part of a report that says where its figures come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from reports.records import Record

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo(Record):
    """An input or an output of the model, of one micro-batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(Record):
    """Which model was analysed and how it was read."""

    name: str
    source: str
    """What the user asked for: a path, `hf:NAME`, `package.module:factory`."""
    sha256: str
    importer: str
    dtype: str
    batch: int | None = None
    """Samples in the global batch."""
    sequence: int | None = None
    """Tokens per sample."""
    prompt_tokens: int | None = None
    """In generation mode: tokens of the prefill."""
    new_tokens: int | None = None
    """In generation mode: decode steps after it."""
    file_bytes: int | None = None
    """Size of the model's file, without external data; None where the model is no file."""
    dims: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    """Dynamic dims by name with the sizes they were bound to."""
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling(Record):
    """What no operator of the report can exceed: a roof or a slope of the roofline."""

    name: str
    kind: str
    """`compute`, `memory` or `network`."""
    per_s: float
    """FLOPs of a compute ceiling, else bytes, per second: what real kernels sustain at best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareInfo(Record):
    """Which device or cluster the model was priced on."""

    name: str
    file: str
    sha256: str
    peak_flops_per_s: float
    """Peak of one device's fastest engine in the model's dtype; what MFU divides by."""
    ceilings: tuple[Ceiling, ...] = ()
    """Of the engines and dtypes that the report's operators use, every memory level and every link."""
    idle_watts: float | None = None
    """What the device draws while it waits, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyInfo(Record):
    """How the model was split over devices, and how a step is run."""

    devices: int = 1
    parallel: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    """Size of each mesh axis: dp, tp, pp, ..."""
    sequence_parallel: bool = False
    zero: int = 0
    microbatch: int | None = None
    """Samples of one micro-batch on one data-parallel rank, where it was given."""
    microbatches: int = 1
    """Micro-batches per step on each data-parallel rank."""
    schedule: str | None = None
    recompute: str = "none"
    optimizer: str | None = None
    execution: str = "eager"
    launches: str = "replayed"
    """replayed, or issued one by one by the host."""

    def __str__(self) -> str:
        parts = [f"{axis}={size}" for axis, size in self.parallel.items() if size > 1]
        parts += ["sequence-parallel"] if self.sequence_parallel else []
        parts += [f"zero={self.zero}"] if self.zero else []
        parts += [f"{self.microbatches} micro-batches"] if self.microbatches > 1 else []
        parts += [self.schedule] if self.schedule and self.parallel.get("pp", 1) > 1 else []
        parts += [f"recompute={self.recompute}"] if self.recompute != "none" else []
        parts += [self.optimizer] if self.optimizer else []
        devices = "one device" if self.devices == 1 else f"{self.devices} devices"
        parts += [self.execution]
        parts += ["launches issued by the host"] if self.launches == "issued" else []
        return ", ".join([devices, *parts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage(Record):
    """Shares, 0 to 1, of the model that have an operator record; the rest is `unknown`."""

    nodes: float
    bytes: float
