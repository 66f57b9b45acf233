"""What limits a model or one operator, in words and figures; and what changes would gain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graph_ir.errors import OpboundError, did_you_mean
from reports.figures import OpRow
from reports.layout import Cells, shapes_text
from reports.quantities import (
    bytes_text,
    percent_text,
    plain_text,
    ratio,
    scaled_text,
    time_text,
)
from reports.report import Report
from reports.rows import busiest_first
from reports.table import text_table


@dataclass(frozen=True, slots=True)
class Gain:
    """One change and what it makes of the step."""

    change: str
    step_time_s: float | None
    """Seconds for the same work; None where the change cannot be made."""
    node_time_s: float | None
    """Seconds for the operator that is explained; None where it is not asked for or not there."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the device that went in."""

    path: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a model, or an operator of it, takes the time it takes."""

    report: Report
    row: OpRow | None
    gains: tuple[Gain, ...]
    figures: tuple[Figure, ...]

    @property
    def best(self) -> Gain | None:
        """The change that makes the step shortest; None if none makes it shorter."""
        step_s = self.report.totals.step_time_s
        faster = [g for g in self.gains if g.step_time_s is not None and g.step_time_s < step_s]
        return min(faster, key=lambda gain: gain.step_time_s or 0.0, default=None)


def find_row(report: Report, name: str) -> OpRow:
    """The operator of that name: a row, a node behind a row, or the longest row of that module.

    Raises:
        OpboundError: if there is none.
    """
    rows = busiest_first(report.operators)
    for row in rows:
        names = {row.name, row.label, *(one.name for one in row.instances)}
        if name in names:
            return row
    for row in rows:
        if name in {row.module, *(one.module for one in row.instances)}:
            return row
    known = [row.label for row in rows]
    raise OpboundError(f"no operator is called {plain_text(name)!r}; {did_you_mean(name, known)}")


def explanation_text(explanation: Explanation) -> str:
    """The explanation as plain text."""
    report, row = explanation.report, explanation.row
    parts = [
        f"{plain_text(report.model.name)} on {plain_text(report.hardware.name)}, {report.mode}, "
        f"{plain_text(str(report.strategy))}: a step takes {time_text(report.totals.step_time_s)}",
        "\n".join(_node_lines(row, report) if row else report.totals.conclusions),
        "Assumed\n" + "\n".join(f"- {line}" for line in _assumptions(report)),
    ]
    if explanation.figures:
        lines = [f"- {f.path}: {f.value} ({f.source})" for f in explanation.figures]
        parts.append("Figures that went in\n" + "\n".join(lines))
    parts.append("What if\n" + text_table(_gain_cells(explanation)))
    parts.append(_advice(explanation))
    return "\n\n".join(parts) + "\n"


def explanation_json(explanation: Explanation) -> str:
    """The explanation as JSON."""
    from reports.json_form import to_plain

    best = explanation.best
    plain: dict[str, Any] = {
        "model": explanation.report.model.name,
        "hardware": explanation.report.hardware.name,
        "step_time_s": explanation.report.totals.step_time_s,
        "conclusions": list(explanation.report.totals.conclusions),
        "operator": to_plain(explanation.row) if explanation.row else None,
        "assumptions": _assumptions(explanation.report),
        "figures": [asdict(figure) for figure in explanation.figures],
        "what_if": [asdict(gain) for gain in explanation.gains],
        "best": best.change if best else None,
    }
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"


def _node_lines(row: OpRow, report: Report) -> list[str]:
    times = f", {row.count} times" if row.count > 1 else ""
    lines = [
        f"{plain_text(row.label)} ({plain_text(row.op)}, {row.phase}{times})",
        f"  {shapes_text(row.shapes, 8)}, {'/'.join(dict.fromkeys(row.dtypes))}",
        f"  {time_text(row.time_s)}, {percent_text(row.share)} of the step: "
        f"{time_text(row.time_s / row.count)} each",
        f"  {scaled_text(row.flops)} FLOPs, {bytes_text(row.bytes_read)} read, "
        f"{bytes_text(row.bytes_written)} written, {bytes_text(row.bytes_communicated)} communicated",
        f"  {row.bound} limits it, and is used to {percent_text(row.utilization)}",
        "  what each resource alone would need:",
    ]
    for bound, term_s in sorted(row.terms_s.items(), key=lambda item: -item[1]):
        lines.append(
            f"    {bound:<20} {time_text(term_s):>10}  {percent_text(ratio(term_s, row.time_s))}"
        )
    return lines


def _assumptions(report: Report) -> list[str]:
    strategy = report.strategy
    execution = {
        "eager": "eager execution: every operator is a kernel that reads and writes main memory",
        "pointwise": "pointwise execution: forward chains of elementwise operators are one kernel",
        "fused": "fused execution: elementwise work joins the kernels it follows",
    }
    lines = [
        report.totals.flops_convention,
        execution.get(strategy.execution, strategy.execution),
        *(plain_text(note, 400) for note in report.model.notes),
        *(f"the dim {plain_text(name)} is {size}" for name, size in report.model.dims.items()),
    ]
    if report.coverage.nodes < 1:
        lines.append(
            f"{percent_text(1 - report.coverage.nodes)} of the operators have no record: "
            "only their bytes count"
        )
    return lines


def _gain_cells(explanation: Explanation) -> Cells:
    report, row = explanation.report, explanation.row
    node = row is not None
    headers = ["", "step", "times as fast", *(["this operator"] if node else []), ""]
    ordered: Sequence[Gain] = sorted(
        explanation.gains,
        key=lambda gain: float("inf") if gain.step_time_s is None else gain.step_time_s,
    )
    rows = [["as it is", time_text(report.totals.step_time_s), "1.00"]]
    rows[0] += [time_text(row.time_s), ""] if row else [""]
    for gain in ordered:
        step_s, node_s = gain.step_time_s, gain.node_time_s
        cells = [gain.change, "-" if step_s is None else time_text(step_s)]
        cells.append("-" if not step_s else f"{report.totals.step_time_s / step_s:.2f}")
        if node:
            cells.append("-" if node_s is None else time_text(node_s))
        rows.append([*cells, plain_text(gain.problem, 90)])
    return Cells(
        headers, [header in ("step", "times as fast", "this operator") for header in headers], rows
    )


def _advice(explanation: Explanation) -> str:
    best = explanation.best
    if best is None or best.step_time_s is None:
        return "None of these changes makes the step shorter."
    gain = explanation.report.totals.step_time_s / best.step_time_s
    return f"Of these changes, {best.change} helps most: {gain:.2f} times as fast."
