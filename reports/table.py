"""The report as text for a terminal: header, operators by time, totals, memory, conclusions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.layout import (
    Cells,
    header_lines,
    left_out_line,
    memory_cells,
    operator_cells,
    total_lines,
    totals_cells,
)
from reports.quantities import shorten
from reports.report import Report
from reports.rows import busiest_first

if TYPE_CHECKING:
    from rich.text import Text

_NAME_AT_LEAST = 24

_BOUND_STYLES = {"compute": "green", "memory": "yellow", "network": "magenta", "latency": "cyan"}


def render_text(report: Report, *, top: int | None = None, width: int | None = None) -> str:
    """The report as plain text.

    Args:
        report: what to print.
        top: number of operators to show, the slowest first; None shows all.
        width: columns of the terminal, to which names are shortened; None leaves them whole.
    """
    return "\n".join(_lines(report, top, width)) + "\n"


def render_rich(report: Report, *, top: int | None = None, width: int | None = None) -> Text:
    """The same text with the bounds in colour, as a rich Text."""
    from rich.text import Text

    text = Text("\n".join(_lines(report, top, width)))
    for bound, style in _BOUND_STYLES.items():
        # Only whole cells: a bound stands alone between two columns, a name's part does not.
        text.highlight_regex(rf"(?<=  ){bound}(:\S+)?(?=  |\s*$)", style)
    text.highlight_regex(r"(?m)^(Operators|Time|Memory|Conclusions)\b.*$", "bold")
    return text


def _lines(report: Report, top: int | None, width: int | None) -> list[str]:
    rows = busiest_first(report.operators, top)
    lines = [f"{key:<12}{value}" for key, value in header_lines(report)]
    lines += ["", "Operators, the slowest first", _table(operator_cells(rows), width)]
    lines += left_out_line(report, rows)
    lines += ["", "Time", _table(totals_cells(report))]
    lines += [f"{key:<12}{value}" for key, value in total_lines(report)]
    lines += ["", "Memory per device at its peak", _table(memory_cells(report))]
    lines += ["", "Conclusions", *report.totals.conclusions]
    return lines


def _table(cells: Cells, width: int | None = None) -> str:
    from tabulate import tabulate

    def text(rows: list[list[str]]) -> str:
        return tabulate(
            rows,
            headers=cells.headers,
            tablefmt="simple",
            colalign=["right" if right else "left" for right in cells.right] if rows else None,
            disable_numparse=True,
        )

    table = text(cells.rows)
    excess = max(map(len, table.split("\n"))) - width if width else 0
    if excess <= 0 or not cells.rows:
        return table
    # The columns of figures keep their width; the first column, a path, gives way.
    longest = max(len(row[0]) for row in cells.rows)
    limit = max(_NAME_AT_LEAST, longest - excess)
    return text([[shorten(row[0], limit), *row[1:]] for row in cells.rows])
