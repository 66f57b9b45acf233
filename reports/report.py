"""The report as data: what one analysis says, in base units with the unit in every name.

These classes are the JSON form read as Python: `report.totals.flops` is `["totals"]["flops"]` in
the file, and each record also answers to its JSON key, so that both spellings work in a notebook.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame

    from reports.view import View

SCHEMA_VERSION = "1.2"
"""Version of the JSON form; the major number grows when a key changes its meaning or goes away."""

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

MEMORY_KINDS = ("parameters", "gradients", "optimizer", "activations", "kv_cache", "workspace")

_EMPTY: Mapping[str, Any] = MappingProxyType({})


class Record:
    """A dataclass that also reads like the JSON object it is written as."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        """The value of one key; KeyError if there is none of that name."""
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> tuple[str, ...]:
        """The record's keys, in the order in which they are written."""
        return tuple(entry.name for entry in fields(self))  # type: ignore[arg-type]


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

    def __str__(self) -> str:
        parts = [f"{axis}={size}" for axis, size in self.parallel.items() if size > 1]
        parts += ["sequence-parallel"] if self.sequence_parallel else []
        parts += [f"zero={self.zero}"] if self.zero else []
        parts += [f"{self.microbatches} micro-batches"] if self.microbatches > 1 else []
        parts += [self.schedule] if self.schedule and self.parallel.get("pp", 1) > 1 else []
        parts += [f"recompute={self.recompute}"] if self.recompute != "none" else []
        parts += [self.optimizer] if self.optimizer else []
        devices = "one device" if self.devices == 1 else f"{self.devices} devices"
        return ", ".join([devices, *parts, self.execution])


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage(Record):
    """Shares, 0 to 1, of the model that have an operator record; the rest is `unknown`."""

    nodes: float
    bytes: float


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
    capacity_bytes: int
    fits: bool
    by_kind_bytes: Mapping[str, int]
    profile: MemoryProfile | None = None
    """None in generation mode, where the steps' memory is almost constant."""


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
class StrategyRow(Record):
    """One strategy that was priced."""

    strategy: str
    """As `--parallel` takes it, with the options that go with it."""
    step_time_s: float
    peak_bytes: int
    """Of the fullest device."""
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut(Record):
    """Strategies that are not among the fastest, by reason."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisRow(Record):
    """One logical axis of the model on the mesh axis `auto`."""

    axis: str
    """Size, and a node that has it."""
    chosen: bool
    nodes: int
    """Forward operators that run split along it, repetitions counted once."""
    candidates: int
    """Forward operators that could."""
    flops: int
    """FLOPs of the operators that could, of one micro-batch."""
    other_s: float
    """One micro-batch, node after node, in the best plan that does the contrary."""
    cost_s: float
    """The same of the plan that was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchInfo(Record):
    """A search over strategies."""

    devices: int
    candidates: int
    priced: int
    seconds: float
    """Time it took, without the import."""
    rows: tuple[StrategyRow, ...]
    """The ten fastest that fit; if none fits, those that come nearest."""
    left_out: tuple[LeftOut, ...]
    axes: tuple[AxisRow, ...] = ()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Record):
    """What one analysis found. Made by `reports.build_report`, or read back by `from_json`."""

    schema_version: str = SCHEMA_VERSION
    opbound_version: str
    model: ModelInfo
    hardware: HardwareInfo
    strategy: StrategyInfo
    mode: str
    options: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    """What was asked for, where it is not the default: enough to analyse the model again."""
    coverage: Coverage
    totals: Totals
    memory: MemoryUse
    operators: tuple[OpRow, ...]
    timeline: tuple[TimelineEvent, ...] = ()

    pipeline: tuple[PipelineRank, ...] | None = None
    """The ranks along the pipeline, where there is one."""
    search: SearchInfo | None = None
    """Of `--parallel auto`: the other strategies, and why this one."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form as plain dicts, lists, numbers and strings."""
        from reports.json_form import to_plain

        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_json(self) -> str:
        """The JSON form as text; its schema is `reports/report.schema.json` in the package."""
        from reports.json_form import dump_report

        return dump_report(self)

    @staticmethod
    def from_json(text: str) -> Report:
        """Reads `to_json`'s text back.

        Raises:
            OpboundError: if the text is not a report of a schema version that this opbound reads.
        """
        from reports.json_form import load_report

        return load_report(text)

    def every_node(self) -> Report:
        """The same report with one row per node in place of one per group."""
        from dataclasses import replace

        from reports.rows import expand_rows

        return replace(self, operators=expand_rows(self.operators))

    def to_text(
        self, *, top: int | None = None, width: int | None = None, view: View | None = None
    ) -> str:
        """The report as plain text: header, operators by time, totals, conclusions."""
        from reports.table import render_text

        return render_text(self, top=top, width=width, view=view)

    def to_markdown(self, *, top: int | None = None, view: View | None = None) -> str:
        """The report as Markdown."""
        from reports.markdown import render_markdown

        return render_markdown(self, top=top, view=view)

    def to_csv(self, *, top: int | None = None, view: View | None = None) -> str:
        """The operators as CSV, one line per row, in base units."""
        from reports.csv_rows import render_csv

        return render_csv(self, top=top, view=view)

    def to_html(self) -> str:
        """The report as one HTML file with charts, which needs no network."""
        from reports.html_page import render_page

        return render_page(self)

    def to_trace(self) -> str:
        """The simulated step as Chrome's trace events, for Perfetto."""
        from reports.trace import render_trace

        return render_trace(self)

    def to_dataframe(self) -> DataFrame:
        """The operators as a pandas DataFrame, one row each, in base units.

        Raises:
            OpboundError: if pandas is not installed.
        """
        from reports.dataframe import operators_dataframe

        return operators_dataframe(self)

    def save(self, path: str | Path) -> None:
        """Writes the JSON form to a file."""
        from pathlib import Path

        Path(path).write_text(self.to_json(), encoding="utf-8")

    def __str__(self) -> str:
        return self.to_text(top=30)

    def _repr_html_(self) -> str:
        from reports.html_fragment import render_html

        return render_html(self, top=30)
