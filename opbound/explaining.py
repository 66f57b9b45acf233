"""Explains a report: analyses the model again, as the report says, and with every change."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from opbound.options import Options
from opbound.what_if import Outcome, what_if
from reports.explanation import Explanation, Figure, Gain, find_row

if TYPE_CHECKING:
    from reports import OpRow, Report


def explain(
    model: str, options: Options, node: str | None, progress: Callable[[str], None]
) -> Explanation:
    """Explains a model, or one operator of it.

    Args:
        model: what `opbound analyze` takes.
        options: of the analysis.
        node: name of an operator or a module.
        progress: is told what is being done.

    Raises:
        OpboundError: if the model cannot be analysed, or has no such operator.
    """
    report, outcomes = what_if(model, options, progress)
    row = find_row(report, node) if node is not None else None
    gains = tuple(_gain(outcome, report, row) for outcome in outcomes)
    return Explanation(report, row, gains, tuple(figures_for(report, row, options.hardware)))


def explain_saved(report: Report, node: str | None, progress: Callable[[str], None]) -> Explanation:
    """Explains a saved report, whose model is analysed again.

    Raises:
        OpboundError: if the model is not what it was, or has no such operator.
    """
    options = Options.from_plain(report.options)
    if node is not None:
        find_row(report, node)
    explanation = explain(report.model.source, options, node, progress)
    if explanation.report.model.sha256 != report.model.sha256:
        raise OpboundError(
            f"{report.model.source} is not the model of this report any more: analyse it again"
        )
    return explanation


def _gain(outcome: Outcome, base: Report, row: OpRow | None) -> Gain:
    time_s = outcome.time_s(base)
    node_s = None
    if row is not None and outcome.report is not None:
        same = [r for r in outcome.report.operators if (r.label, r.phase) == (row.label, row.phase)]
        node_s = sum(r.time_s for r in same) if same else None
    return Gain(outcome.name, time_s, node_s, outcome.problem)


def figures_for(report: Report, row: OpRow | None, hardware_name: str) -> list[Figure]:
    """The device's figures behind the bound of a row, or of most of the time, with their sources."""
    from costing.hardware_file import load_hardware
    from opbound.hardware_page import device_figures

    by_bound = report.totals.time_s.by_bound
    bound = row.bound if row else max(by_bound, key=lambda name: by_bound[name])
    engine = row.engine if row else _busiest_engine(report, bound)
    kind, _, name = bound.partition(":")
    hardware = load_hardware(hardware_name)
    wanted = {
        "compute": rf"engines\[{re.escape(engine)}\]\.(peak|efficiency|processors|tiles)",
        "memory": rf"memory\[{re.escape(name)}\]",
        "network": rf"links\[{re.escape(name)}\]\.(bandwidth|devices|local_bandwidth)",
        "latency": r"launch",
        "host": r"launch\.host",
    }.get(kind)
    if wanted is None:
        return []
    return [
        Figure(path, value, source)
        for path, value, source in device_figures(hardware)
        if re.match(wanted, path)
    ]


def _busiest_engine(report: Report, bound: str) -> str:
    rows = [row for row in report.operators if row.bound == bound]
    return max(rows, key=lambda row: row.time_s).engine if rows else ""
