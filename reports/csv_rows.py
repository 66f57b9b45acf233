"""The operators as CSV: one line per row, base units, for a spreadsheet or pandas."""

from __future__ import annotations

import csv
import io

from reports.figures import OpRow
from reports.quantities import plain_text, shape_text
from reports.report import Report
from reports.view import View, view_of

COLUMNS = (
    "name",
    "module",
    "op",
    "phase",
    "count",
    "shapes",
    "dtypes",
    "flops",
    "bytes_read",
    "bytes_written",
    "bytes_communicated",
    "arithmetic_intensity",
    "time_s",
    "share",
    "bound",
    "engine",
    "utilization",
)

# A spreadsheet takes a cell that begins with one of these for a formula and would run it.
_FORMULA_STARTS = ("=", "+", "-", "@")


def render_csv(report: Report, *, top: int | None = None, view: View | None = None) -> str:
    """The rows under the keys of the JSON form."""
    # With all rows, the model's order is kept: a reader of the whole can sort for himself.
    whole = top is None and view in (None, View())
    wanted = view_of(view, top)
    rows = report.operators if whole else wanted.chosen(report)[: wanted.top]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(row, column) for column in COLUMNS] for row in rows)
    return buffer.getvalue()


def _cell(row: OpRow, column: str) -> str:
    value = row[column]
    if column == "shapes":
        return " ".join(shape_text(shape) for shape in row.shapes)
    if column == "dtypes":
        value = " ".join(row.dtypes)
    if isinstance(value, str):
        text = plain_text(value, limit=10_000)
        return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
    return "" if value is None else repr(value)
