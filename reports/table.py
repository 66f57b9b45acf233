"""The report as text for a terminal: header, operators by time, totals, memory, conclusions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reports.communication import further_tables
from reports.layout import (
    Cells,
    header_lines,
    memory_cells,
    total_lines,
    totals_cells,
)
from reports.pipeline import pipeline_drawing
from reports.quantities import shorten
from reports.report import Report
from reports.view import View, view_of

if TYPE_CHECKING:
    from rich.text import Text

_NAME_AT_LEAST = 24

_MOST_ROWS = 1000
"""More than anyone reads; who asks for more with `top` gets them, and JSON and CSV have all."""

# What a narrow terminal goes without, in this order; every other form has all of it.
_DISPENSABLE = (
    "dtype",
    "engine",
    "shapes",
    "written",
    "read",
    "FLOP/B",
    "phase",
    "sent",
    "count",
    "use",
    "FLOPs",
)

_BAR_LETTERS = 8

_BOUND_STYLES = {
    "compute": "green",
    "memory": "yellow",
    "network": "magenta",
    "latency": "cyan",
    "host": "blue",
}


def render_text(
    report: Report, *, top: int | None = None, width: int | None = None, view: View | None = None
) -> str:
    """The report as plain text.

    Args:
        report: what to print.
        top: number of operators to show, the slowest first; None shows all up to `_MOST_ROWS`.
        width: columns of the terminal, to which names are shortened; None leaves them whole.
        view: which operators and columns; None for all, the slowest first.
    """
    return "\n".join(_lines(report, view_of(view, top), width)) + "\n"


def render_rich(
    report: Report, *, top: int | None = None, width: int | None = None, view: View | None = None
) -> Text:
    """The same for a terminal, as a rich Text: shares with bars, the bounds in colour."""
    from rich.text import Text

    text = Text("\n".join(_lines(report, view_of(view, top), width, bars=True)))
    for bound, style in _BOUND_STYLES.items():
        # Only whole cells: a bound stands alone between two columns, a name's part does not.
        text.highlight_regex(rf"(?<=  ){bound}(:\S+)?(?=  |\s*$)", style)
    text.highlight_regex(r"(?m)^(Operators|Time|Memory|Conclusions)\b.*$", "bold")
    return text


def _lines(report: Report, view: View, width: int | None, *, bars: bool = False) -> list[str]:
    lines = [f"{key:<12}{value}" for key, value in header_lines(report)]
    shortened = view.top is None and len(report.operators) > _MOST_ROWS and not view.tree
    title, cells, notes = (replace(view, top=_MOST_ROWS) if shortened else view).table(report)
    cells = _with_bars(cells) if bars else cells
    fitting = _fit(cells, width) if width else cells
    lines += ["", title, text_table(fitting)]
    missing = [header for header in cells.headers if header not in fitting.headers]
    lines += [f"Too narrow for the columns {', '.join(missing)}."] if missing else []
    lines += notes
    if shortened:
        lines.append("--top N shows more, JSON and CSV have all of them.")
    lines += ["", "Time", text_table(totals_cells(report))]
    lines += [f"{key:<12}{value}" for key, value in total_lines(report)]
    lines += ["", "Memory per device at its peak", text_table(memory_cells(report))]
    for title, cells in further_tables(report):
        lines += ["", title, text_table(cells)]
    drawing = pipeline_drawing(report)
    lines += ["", "Pipeline over the step", *drawing] if drawing else []
    lines += ["", "Conclusions", *report.totals.conclusions]
    return lines


def _with_bars(cells: Cells) -> Cells:
    """The cells with a bar of up to eight letters before each share."""
    if "share" not in cells.headers:
        return cells
    place = cells.headers.index("share")
    rows = [
        [*row[:place], f"{_bar(row[place])} {row[place]:>6}", *row[place + 1 :]]
        for row in cells.rows
    ]
    return replace(cells, rows=rows)


def _bar(percent: str) -> str:
    """Eighths of a letter, so that 1 % still shows: '13 %' is a letter and a bit."""
    number = percent.removesuffix(" %")
    eighths = 0 if number.startswith("<") else round(float(number) / 100 * 8 * _BAR_LETTERS)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(_BAR_LETTERS)


def text_table(cells: Cells) -> str:
    """A table in plain text."""
    from tabulate import tabulate

    return tabulate(
        cells.rows,
        headers=cells.headers,
        tablefmt="simple",
        colalign=["right" if right else "left" for right in cells.right] if cells.rows else None,
        disable_numparse=True,
    )


def _fit(cells: Cells, width: int) -> Cells:
    """Makes a table fit: shortens names, then leaves out columns, the dispensable ones first."""
    columns = list(zip(cells.headers, cells.right, *cells.rows, strict=True))
    for header in ("", *_DISPENSABLE):
        columns = [column for column in columns if column[0] != header]
        # Two blanks between columns, and tabulate gives a header two more than its letters; the
        # second entry of a column is its side, not a text.
        others = sum(2 + max(len(c[0]) + 2, *map(len, c[2:])) for c in columns[1:])
        if others + _NAME_AT_LEAST <= width:
            break
    limit = max(_NAME_AT_LEAST, width - others)
    headers, right, *rows = (list(line) for line in zip(*columns, strict=True))
    return Cells(headers, right, [[shorten(row[0], limit), *row[1:]] for row in rows])
