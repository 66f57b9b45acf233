"""The report as an HTML fragment for a notebook: no script, no style of its own, all escaped."""

from __future__ import annotations

from html import escape

from reports.layout import (
    Cells,
    header_lines,
    left_out_line,
    memory_cells,
    operator_cells,
    total_lines,
    totals_cells,
)
from reports.quantities import plain_text
from reports.report import Report
from reports.rows import busiest_first


def render_html(report: Report, *, top: int | None = None) -> str:
    """The report as a `<div>`; names from the model cannot become markup."""
    rows = busiest_first(report.operators, top)
    conclusions = "".join(f"<li>{escape(line)}</li>" for line in report.totals.conclusions)
    return "\n".join(
        [
            '<div class="opbound-report">',
            f"<h3>{escape(plain_text(report.model.name))}</h3>",
            f"<ul>{conclusions}</ul>",
            _pairs(header_lines(report)),
            _table(operator_cells(rows)),
            *(f"<p>{escape(line)}</p>" for line in left_out_line(report, rows)),
            _pairs(total_lines(report)),
            _table(totals_cells(report)),
            _table(memory_cells(report)),
            "</div>",
        ]
    )


def _pairs(lines: list[tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(key)}</th>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for key, value in lines
    )
    return f"<table>{rows}</table>"


def _table(cells: Cells) -> str:
    sides = ["right" if right else "left" for right in cells.right]
    head = _row("th", cells.headers, sides)
    body = "".join(_row("td", row, sides) for row in cells.rows)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _row(tag: str, texts: list[str], sides: list[str]) -> str:
    return (
        "<tr>"
        + "".join(
            f'<{tag} style="text-align:{side}">{escape(text)}</{tag}>'
            for text, side in zip(texts, sides, strict=True)
        )
        + "</tr>"
    )
