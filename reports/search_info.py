"""What a search for a strategy looked at, as a part of a report."""

from __future__ import annotations

from dataclasses import dataclass

from reports.records import Record


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
