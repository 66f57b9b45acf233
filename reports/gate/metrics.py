"""What a budget can limit: of a whole report, and of a part of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graph_ir.errors import OpboundError
from reports.figures import OpRow
from reports.quantities import bytes_text, percent_text, ratio, scaled_text, time_text
from reports.report import Report
from reports.rows import worth_showing

_PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_UNITS: dict[str, dict[str, float]] = {
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
    "bytes": {
        **{f"{prefix}B": factor for prefix, factor in _PREFIXES.items()},
        **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", 1)},
        "B": 1.0,
    },
    "": {"": 1.0, **_PREFIXES, "B": 1e9},
    "share": {"%": 0.01, "": 1.0},
}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*(\S*)\s*")


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that can be limited."""

    name: str
    unit: str
    """`s`, `bytes`, `share` (a fraction), or nothing for a count."""
    about: str
    of_report: Callable[[Report], float | None] | None
    """The figure of a whole report; None where the report does not have it."""
    of_rows: Callable[[Sequence[OpRow]], float] | None
    """The figure of some operators; None where it means nothing for them."""

    def show(self, value: float) -> str:
        """A value with its unit."""
        if self.unit == "s":
            return time_text(value)
        if self.unit == "bytes":
            return bytes_text(value)
        return percent_text(value) if self.unit == "share" else scaled_text(value)

    def parse(self, value: object, where: str) -> float:
        """A limit as a number in the base unit.

        Raises:
            OpboundError: if it is no number of this unit; `where` names the place in the file.
        """
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return float(value)
        found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
        units = _UNITS[self.unit]
        if found is None or found[2] not in units:
            known = ", ".join(unit for unit in units if unit)
            raise OpboundError(
                f"{where}: {value!r} is no limit for {self.name}: give a number"
                + (f" with one of {known}" if known else "")
            )
        return float(found[1]) * units[found[2]]


def _sum(key: str) -> Callable[[Sequence[OpRow]], float]:
    return lambda rows: float(sum(row[key] for row in rows))


def _moved(rows: Sequence[OpRow]) -> float:
    return float(sum(row.bytes_read + row.bytes_written for row in rows))


def _memory_bound(rows: Sequence[OpRow]) -> float:
    bound_s = sum(row.time_s for row in rows if row.bound.startswith("memory:"))
    return ratio(bound_s, sum(row.time_s for row in rows))


def _operators(rows: Sequence[OpRow]) -> float:
    return float(sum(len(row.instances) or 1 for row in rows if worth_showing(row)))


def _unknown(rows: Sequence[OpRow]) -> float:
    return _operators([row for row in rows if row.op.startswith("unknown")])


def _of(rows_of: Callable[[Sequence[OpRow]], float]) -> Callable[[Report], float]:
    return lambda report: rows_of(report.operators)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("step_time", "s", "time of a step", lambda r: r.totals.step_time_s, _sum("time_s")),
        Metric(
            "time_per_token",
            "s",
            "time of a decode step, in generation mode",
            lambda r: r.totals.time_per_token_s,
            None,
        ),
        Metric(
            "peak_memory", "bytes", "memory of a device", lambda r: float(r.memory.peak_bytes), None
        ),
        Metric(
            "parameters", "", "elements of all weights", lambda r: float(r.totals.parameters), None
        ),
        Metric(
            "file_size",
            "bytes",
            "the model's file and its external data",
            lambda r: None if r.model.file_bytes is None else float(r.model.file_bytes),
            None,
        ),
        Metric("flops", "", "operations, two per multiply-add", _of(_sum("flops")), _sum("flops")),
        Metric("bytes_moved", "bytes", "read and written", _of(_moved), _moved),
        Metric(
            "bytes_communicated",
            "bytes",
            "sent to other devices",
            _of(_sum("bytes_communicated")),
            _sum("bytes_communicated"),
        ),
        Metric("operators", "", "nodes that do something", _of(_operators), _operators),
        Metric(
            "memory_bound",
            "share",
            "part of the operators' time that memory limits",
            _of(_memory_bound),
            _memory_bound,
        ),
        Metric("unknown_operators", "", "nodes without a record", _of(_unknown), _unknown),
    )
}
