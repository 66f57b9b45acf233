"""What the HTML page draws, as plain JSON: each text once, the operators as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reports.figures import OpRow, TimelineEvent
from reports.layout import header_lines, shapes_text, total_lines
from reports.quantities import (
    bytes_text,
    percent_text,
    plain_text,
    ratio,
    scaled_text,
    time_text,
)
from reports.report import Report
from reports.rows import worth_showing


class _Texts:
    """Texts by number: module paths, operators and shapes repeat thousands of times."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text that is safe to show."""
        return self.numbers.setdefault(plain_text(text), len(self.numbers))


def page_report(report: Report, label: str) -> dict[str, Any]:
    """One report as the page's script reads it.

    Args:
        report: what to show.
        label: what the column is called where two reports stand side by side.
    """
    texts = _Texts()
    rows = _columns([row for row in report.operators if worth_showing(row)], texts)
    events = [_event(event, texts) for event in report.timeline]
    profile = report.memory.profile
    return {
        "label": plain_text(label),
        "header": header_lines(report),
        "totals": total_lines(report),
        "conclusions": list(report.totals.conclusions),
        "cards": _cards(report),
        "step_s": report.totals.step_time_s,
        "ceilings": [
            {"name": plain_text(one.name), "kind": one.kind, "per_s": one.per_s}
            for one in report.hardware.ceilings
        ],
        "splits": {
            "by_phase": dict(report.totals.time_s.by_phase),
            "by_bound": dict(report.totals.time_s.by_bound),
        },
        "memory": {
            "capacity_bytes": report.memory.capacity_bytes,
            "by_kind_bytes": dict(report.memory.by_kind_bytes),
            "profile": profile
            and {
                "time_s": [_short(t) for t in profile.time_s],
                "kinds": {kind: list(line) for kind, line in profile.by_kind_bytes.items()},
            },
        },
        "collectives": collective_rows(report.operators),
        "rows": rows,
        "timeline": events,
        "strings": list(texts.numbers),
    }


def _short(value: float) -> float:
    """Seven significant digits: more than a model knows, and half the bytes."""
    return float(f"{value:.7g}")


def _columns(rows: Sequence[OpRow], texts: _Texts) -> dict[str, list[Any]]:
    number = texts.number
    return {
        "name": [number(row.name) for row in rows],
        "label": [number(row.label) for row in rows],
        "module": [number(row.module) for row in rows],
        "op": [number(row.op) for row in rows],
        "phase": [number(row.phase) for row in rows],
        "bound": [number(row.bound) for row in rows],
        "engine": [number(row.engine) for row in rows],
        "shapes": [number(shapes_text(row.shapes)) for row in rows],
        "dtype": [number("/".join(dict.fromkeys(row.dtypes))) for row in rows],
        "count": [row.count for row in rows],
        "flops": [row.flops for row in rows],
        "read": [row.bytes_read for row in rows],
        "written": [row.bytes_written for row in rows],
        "sent": [row.bytes_communicated for row in rows],
        "time": [_short(row.time_s) for row in rows],
        "use": [round(row.utilization, 4) for row in rows],
    }


def _event(event: TimelineEvent, texts: _Texts) -> list[Any]:
    return [
        event.stage,
        texts.number(event.stream),
        texts.number(event.name),
        texts.number(event.phase),
        event.microbatch,
        _short(event.start_s),
        _short(event.duration_s),
    ]


def _cards(report: Report) -> list[tuple[str, str, str]]:
    """What a reader wants first: label, figure, and a line on it."""
    totals, memory = report.totals, report.memory
    bounds = sorted(totals.time_s.by_bound.items(), key=lambda item: -item[1])
    bound, bound_s = bounds[0] if bounds else ("nothing", 0.0)
    token = totals.time_per_token_s
    detail = f"{time_text(token)} per token" if token is not None else report.mode
    fits = "fits" if memory.fits else "DOES NOT FIT"
    return [
        ("Step", time_text(totals.step_time_s), detail),
        ("Limited by", bound, f"{percent_text(ratio(bound_s, totals.step_time_s))} of the step"),
        (
            "MFU",
            percent_text(totals.mfu),
            f"{scaled_text(totals.flops_per_s, 'FLOP/s')} per device",
        ),
        (
            "Memory at its peak",
            bytes_text(memory.total_bytes),
            f"of {bytes_text(memory.capacity_bytes)}: {fits}",
        ),
        (
            "Exposed communication",
            percent_text(ratio(totals.exposed_communication_s, totals.step_time_s)),
            f"{bytes_text(totals.bytes_communicated)} sent per device",
        ),
        (
            "Work",
            scaled_text(totals.flops, "FLOPs"),
            f"{scaled_text(totals.parameters)} parameters",
        ),
    ]


def collective_rows(rows: Sequence[OpRow]) -> list[dict[str, Any]]:
    """Communication summed by mesh axis and collective, the longest first."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row.axis is None:
            continue
        entry = sums.setdefault(
            (row.axis, row.op),
            {"axis": plain_text(row.axis), "op": row.op, "count": 0, "bytes": 0, "time_s": 0.0},
        )
        entry["count"] += row.count
        entry["bytes"] += row.bytes_communicated
        entry["time_s"] += row.time_s
    return sorted(sums.values(), key=lambda entry: -entry["time_s"])
