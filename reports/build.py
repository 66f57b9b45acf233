"""Puts a report together from a costed step: totals are sums of the rows, never a second count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from graph_ir.errors import OpboundError
from reports.communication import collective_sums
from reports.conclusions import StepParts, conclude
from reports.figures import (
    MEMORY_KINDS,
    OVERHEAD_KINDS,
    PHASES,
    Instance,
    MemoryProfile,
    MemoryUse,
    OpRow,
    TimelineEvent,
    TimeSplit,
    Totals,
)
from reports.quantities import ratio
from reports.report import Report
from reports.rows import fold_rows, intensity
from reports.setting import Coverage, HardwareInfo, ModelInfo, StrategyInfo

_MODEL_PHASES = frozenset({"forward", "backward", "prefill", "decode"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CostedNode:
    """One node with its price: what a report needs to know of the busiest rank's graph.

    Quantities are those of ONE execution; a report multiplies them by `count`.
    """

    name: str
    module: str
    op: str
    phase: str
    count: int
    """Executions per step on this rank: layers folded into the node, times micro-batches."""
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    flops: int
    bytes_read: int
    bytes_written: int
    bytes_communicated: int
    time_s: float
    bound: str
    engine: str
    utilization: float
    terms_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    attributes: str = ""
    instances: tuple[Instance, ...] = ()
    """The nodes folded into this one; empty where it stands for itself."""
    axis: str | None = None
    """Mesh axis of a collective."""
    energy_j: float | None = None
    """Joules of one execution beyond idle power; None where the device's power is not known."""
    sharding: tuple[str, ...] = ()
    """How each of the shapes was cut out of the whole one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """What the simulated step adds to the rows."""

    step_time_s: float
    exposed_communication_s: float = 0.0
    bubble_fraction: float = 0.0
    """Share of the step in which the busiest rank waits for other stages."""
    prefill_time_s: float | None = None
    decode_time_s: float | None = None
    time_per_token_s: float | None = None


def build_report(
    nodes: Sequence[CostedNode],
    *,
    opbound_version: str,
    model: ModelInfo,
    hardware: HardwareInfo,
    strategy: StrategyInfo,
    mode: str,
    coverage: Coverage,
    times: StepTimes,
    parameters: int,
    capacity_bytes: int,
    memory_by_kind_bytes: Mapping[str, int],
    memory_profile: MemoryProfile | None = None,
    overhead_bytes: Mapping[str, int] = MappingProxyType({}),
    model_flops: int | None = None,
    timeline: Iterable[TimelineEvent] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    reprice: Callable[[str], float] | None = None,
) -> Report:
    """Builds the report of one costed step, with repeated layers folded.

    Args:
        nodes: the priced nodes of the busiest rank.
        opbound_version: version that made the report.
        model: which model.
        hardware: which device.
        strategy: how it was split.
        mode: inference, training or generation.
        coverage: share of the model that has a record.
        times: the simulated step.
        parameters: elements in all parameters of the whole model.
        capacity_bytes: memory of one device.
        memory_by_kind_bytes: memory of the fullest device at its peak, by kind.
        memory_profile: the same device's memory over the time of one micro-batch.
        overhead_bytes: its memory that no tensor takes, by kind; empty if nothing is known of it.
        model_flops: FLOPs of the whole model's forward and backward pass over all devices, for MFU;
            None takes them from the rows, as if every device did what the busiest one does.
        timeline: the simulated step, piece by piece.
        options: what was asked for, as plain data.
        reprice: the step time in seconds with one bound's term removed from every node, by a new
            simulation; None derives it from the rows.

    Raises:
        OpboundError: if a phase or a kind of memory is not one the report knows.
    """
    if not nodes:
        raise OpboundError("the model has no operators: there is nothing to report")
    rows = fold_rows(_row(node, times.step_time_s) for node in nodes)
    memory = _memory(memory_by_kind_bytes, overhead_bytes, capacity_bytes, memory_profile)
    totals = _totals(rows, times, parameters, hardware, strategy, model_flops)
    totals = replace(totals, collectives=collective_sums(rows))
    parts = StepParts(
        rows=rows,
        step_time_s=times.step_time_s,
        exposed_communication_s=times.exposed_communication_s,
        bubble_fraction=times.bubble_fraction,
    )
    conclusions = conclude(parts, memory, hardware.name, mode, reprice)
    return Report(
        opbound_version=opbound_version,
        model=model,
        hardware=hardware,
        strategy=strategy,
        mode=mode,
        options=options,
        coverage=coverage,
        totals=replace(totals, conclusions=conclusions),
        memory=memory,
        operators=rows,
        timeline=tuple(timeline),
    )


def _row(node: CostedNode, step_time_s: float) -> OpRow:
    if node.phase not in PHASES:
        raise OpboundError(f"node {node.name!r} has the unknown phase {node.phase!r}")
    time_s = node.time_s * node.count
    return OpRow(
        name=node.name,
        module=node.module,
        op=node.op,
        phase=node.phase,
        count=node.count,
        shapes=node.shapes,
        dtypes=node.dtypes,
        flops=node.flops * node.count,
        bytes_read=node.bytes_read * node.count,
        bytes_written=node.bytes_written * node.count,
        bytes_communicated=node.bytes_communicated * node.count,
        arithmetic_intensity=intensity(node.flops, node.bytes_read + node.bytes_written),
        time_s=time_s,
        share=ratio(time_s, step_time_s),
        bound=node.bound,
        engine=node.engine,
        utilization=node.utilization,
        terms_s={bound: term_s * node.count for bound, term_s in node.terms_s.items()},
        attributes=node.attributes,
        instances=node.instances,
        axis=node.axis,
        energy_j=None if node.energy_j is None else node.energy_j * node.count,
        sharding=node.sharding,
    )


def _memory(
    by_kind_bytes: Mapping[str, int],
    overhead_bytes: Mapping[str, int],
    capacity_bytes: int,
    profile: MemoryProfile | None,
) -> MemoryUse:
    strange = sorted({*by_kind_bytes} - {*MEMORY_KINDS} | {*overhead_bytes} - {*OVERHEAD_KINDS})
    if strange:
        raise OpboundError(f"unknown kinds of memory: {', '.join(strange)}")
    by_kind = {kind: by_kind_bytes.get(kind, 0) for kind in MEMORY_KINDS}
    peak_bytes = sum(by_kind.values())
    return MemoryUse(
        peak_bytes=peak_bytes,
        capacity_bytes=capacity_bytes,
        fits=peak_bytes + sum(overhead_bytes.values()) <= capacity_bytes,
        by_kind_bytes=by_kind,
        profile=profile,
        overhead_bytes=dict(overhead_bytes),
    )


def _totals(
    rows: Sequence[OpRow],
    times: StepTimes,
    parameters: int,
    hardware: HardwareInfo,
    strategy: StrategyInfo,
    model_flops: int | None,
) -> Totals:
    by_phase: dict[str, float] = {}
    by_bound: dict[str, float] = {}
    for row in rows:
        by_phase[row.phase] = by_phase.get(row.phase, 0.0) + row.time_s
        by_bound[row.bound] = by_bound.get(row.bound, 0.0) + row.time_s
    flops = sum(row.flops for row in rows)
    if model_flops is None:
        rank_flops = sum(row.flops for row in rows if row.phase in _MODEL_PHASES)
        model_flops = rank_flops * strategy.devices
    possible_flops = hardware.peak_flops_per_s * strategy.devices * times.step_time_s
    return Totals(
        step_time_s=times.step_time_s,
        flops=flops,
        flops_per_s=ratio(flops, times.step_time_s),
        mfu=ratio(model_flops, possible_flops),
        bytes_read=sum(row.bytes_read for row in rows),
        bytes_written=sum(row.bytes_written for row in rows),
        bytes_communicated=sum(row.bytes_communicated for row in rows),
        parameters=parameters,
        compute_time_s=sum(row.time_s for row in rows if row.phase != "communication"),
        exposed_communication_s=times.exposed_communication_s,
        bubble_fraction=times.bubble_fraction / (1 - times.bubble_fraction),
        time_s=TimeSplit(by_phase=by_phase, by_bound=by_bound),
        prefill_time_s=times.prefill_time_s,
        decode_time_s=times.decode_time_s,
        time_per_token_s=times.time_per_token_s,
        energy_j=_energy(rows, hardware, times.step_time_s),
    )


def _energy(rows: Sequence[OpRow], hardware: HardwareInfo, step_time_s: float) -> float | None:
    """Of one device in a step; None where its power is not known."""
    if hardware.idle_watts is None:
        return None
    return hardware.idle_watts * step_time_s + sum(row.energy_j or 0.0 for row in rows)
