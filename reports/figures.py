"""The figures of a report: operators, totals, memory, the step over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from reports.records import Record

FLOPS_CONVENTION = "1 multiply-add = 2 FLOPs"

PHASES = (
    "forward",
    "backward",
    "recompute",
    "optimizer",
    "communication",
    "prefill",
    "decode",
)
"""A row's phases; in generation mode `prefill` and `decode` take the place of `forward`."""

MEMORY_KINDS = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "kv_cache",
    "workspace",
    "communication",
)

OVERHEAD_KINDS = ("context", "libraries", "communicators", "allocator")
"""Memory beside the tensors: the driver's context, the libraries' workspaces, the communicators' buffers, and
what the framework's allocator takes for its segments."""

_EMPTY: Mapping[str, Any] = MappingProxyType({})


class Instance(NamedTuple):
    """One node behind a group. A tuple, because a report may hold a hundred thousand of them."""

    name: str
    module: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow(Record):
    """One operator, or one group of equal ones: sums over its `count` nodes on the busiest rank."""

    name: str
    module: str
    op: str
    phase: str
    count: int
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the inputs, then of the outputs, of one node on one rank."""
    dtypes: tuple[str, ...]
    """One dtype per shape."""
    flops: int
    bytes_read: int
    bytes_written: int
    bytes_communicated: int
    arithmetic_intensity: float | None
    """FLOPs per byte read or written; None where nothing moves but something is computed."""
    time_s: float
    share: float
    """Part of the step time. Hidden communication and bubbles keep the shares' sum from being 1."""
    bound: str
    """The largest term: compute, memory:LEVEL, network:LINK, latency; unknown without a record."""
    engine: str
    utilization: float
    """Use of the limiting resource while the operator runs, 0 to 1."""
    terms_s: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    """Every term of the time by bound. The time is the largest of them and the latency, and what
    the operator's shape loses on top (partly filled tiles, idle processors)."""
    attributes: str = ""
    """What the operator is told besides its operands, as `opbound graph` prints it: `axis=1`."""
    instances: tuple[Instance, ...] = ()
    """The nodes behind a group; empty for a single node."""
    axis: str | None = None
    """Mesh axis over which a collective goes; None for all other operators."""
    energy_j: float | None = None
    """Of arithmetic, main memory and links; None where the device's power is not known."""
    sharding: tuple[str, ...] = ()
    """For each shape, the mesh axes that split it and the dim, as `dp=2@0 tp=4@1`; a flat part of a stored
    tensor as `dp=8@flat`; empty for a whole one. No entries where nothing is split."""

    @property
    def label(self) -> str:
        """The module path and the name, without saying the path twice."""
        if not self.module or self.name.startswith(self.module):
            return self.name
        return f"{self.module} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSplit(Record):
    """Sums of the rows' times, split in two ways."""

    by_phase: Mapping[str, float]
    by_bound: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveSum(Record):
    """All collectives of one kind over one mesh axis, of the busiest rank in a step."""

    axis: str
    op: str
    count: int
    bytes_communicated: int
    """Sent by the rank."""
    time_s: float
    """Hidden behind computation or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals(Record):
    """What a step costs. FLOPs and bytes are sums over the rows, so of the busiest rank."""

    step_time_s: float
    flops: int
    flops_convention: str = FLOPS_CONVENTION
    flops_per_s: float
    """Achieved by the busiest rank, recomputation included."""
    mfu: float
    """FLOPs that the model needs (no recomputation) over what all devices could do in a step."""
    bytes_read: int
    bytes_written: int
    bytes_communicated: int
    parameters: int
    """Of the whole model, over all devices."""
    compute_time_s: float
    """Time of every row that is not communication."""
    exposed_communication_s: float
    """What communication adds: the busiest rank waits for it, or computes beside it and slower."""
    bubble_fraction: float
    """Time in which the busiest rank waits for other pipeline stages, over the rest of the step: (p-1)/m
    for 1F1B with p equal stages and m micro-batches.

    Source: Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1.
    """
    time_s: TimeSplit
    prefill_time_s: float | None = None
    decode_time_s: float | None = None
    time_per_token_s: float | None = None
    energy_j: float | None = None
    """Of one device: the rows' and its idle power over the step; None where its power is not known."""
    collectives: tuple[CollectiveSum, ...] = ()
    """Communication by mesh axis and kind, the longest first."""
    conclusions: tuple[str, ...] = ()
    """Three sentences: what limits the model, what lifting it would gain, whether it fits."""

    @property
    def bubble_time_s(self) -> float:
        """Time in which the busiest rank waits for other pipeline stages."""
        return self.step_time_s * self.bubble_fraction / (1 + self.bubble_fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProfile(Record):
    """Memory of the fullest device while one micro-batch passes, as points of a line."""

    time_s: tuple[float, ...]
    """Busy time of the device since the step began."""
    by_kind_bytes: Mapping[str, tuple[int, ...]]
    """For each kind that changes, bytes at each time; the others stay what they are at the peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse(Record):
    """Memory of the fullest device at its peak."""

    peak_bytes: int
    """Of the model's tensors."""
    capacity_bytes: int
    fits: bool
    """Whether tensors and overhead fit."""
    by_kind_bytes: Mapping[str, int]
    profile: MemoryProfile | None = None
    """None in generation mode, where the steps' memory is almost constant."""
    overhead_bytes: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    """What no tensor takes (`OVERHEAD_KINDS`); empty where nothing is known of it."""

    @property
    def total_bytes(self) -> int:
        """Tensors and overhead."""
        return self.peak_bytes + sum(self.overhead_bytes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEvent(Record):
    """One piece of work in the simulated step."""

    stage: int
    stream: str
    """`compute` or the link that carries a collective."""
    name: str
    phase: str
    microbatch: int | None
    start_s: float
    duration_s: float
    after: tuple[int, ...] = ()
    """Places in the timeline of events on other stages or streams whose results it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRank(Record):
    """One rank along a pipeline."""

    rank: int
    stages: tuple[int, ...]
    """The stages that it holds, in model order counted from 0."""
    layers: int
    """Repeated layers among them."""
    forward_s: float
    """One micro-batch through all of the rank's stages."""
    backward_s: float
    waiting_s: float
    """Part of the step in which the rank waits for others."""
    in_flight: int
    """Micro-batches whose activations its stages keep, when they are most."""
    peak_bytes: int
    fits: bool
    by_kind_bytes: Mapping[str, int]
    recompute: str = "none"
    overhead_bytes: int = 0
    """What no tensor takes."""
