"""Communication of a report, summed by mesh axis and collective."""

from __future__ import annotations

from collections.abc import Iterable

from reports.figures import CollectiveSum, OpRow
from reports.layout import Cells
from reports.pipeline import pipeline_tables
from reports.quantities import bytes_text, plain_text, time_text
from reports.report import Report
from reports.search import search_tables


def collective_sums(rows: Iterable[OpRow]) -> tuple[CollectiveSum, ...]:
    """One record per mesh axis and collective, the longest first."""
    groups: dict[tuple[str, str], list[OpRow]] = {}
    for row in rows:
        if row.axis is not None:
            groups.setdefault((row.axis, row.op), []).append(row)
    sums = [
        CollectiveSum(
            axis=axis,
            op=op,
            count=sum(r.count for r in group),
            bytes_communicated=sum(r.bytes_communicated for r in group),
            time_s=sum(r.time_s for r in group),
        )
        for (axis, op), group in groups.items()
    ]
    return tuple(sorted(sums, key=lambda s: -s.time_s))


def further_tables(report: Report) -> list[tuple[str, Cells]]:
    """Titles with the tables that only some reports have: several devices, a pipeline, a search."""
    search = search_tables(report.search)
    return [*collective_tables(report), *pipeline_tables(report), *search]


def collective_tables(report: Report) -> list[tuple[str, Cells]]:
    """The sums as a table with its title; none where nothing communicates."""
    sums = report.totals.collectives
    if not sums:
        return []
    rows = [
        [
            plain_text(s.axis),
            plain_text(s.op),
            str(s.count),
            bytes_text(s.bytes_communicated),
            time_text(s.time_s),
        ]
        for s in sums
    ]
    headers = ["mesh axis", "collective", "count", "sent", "time"]
    cells = Cells(headers, [False, False, True, True, True], rows)
    return [("Communication of the busiest rank in a step, hidden or not", cells)]
