"""The report as Markdown, for a pull request or a wiki."""

from __future__ import annotations

import re

from reports.communication import further_tables
from reports.layout import (
    Cells,
    header_lines,
    memory_cells,
    total_lines,
    totals_cells,
)
from reports.quantities import plain_text
from reports.report import Report
from reports.view import View, view_of

# What Markdown or the HTML inside it could take for syntax; a backslash makes it a plain character.
_SYNTAX = re.compile(r"([\\`*_{}\[\]<>#|~&!@])")


def render_markdown(report: Report, *, top: int | None = None, view: View | None = None) -> str:
    """The report as Markdown tables; names from the model are escaped."""
    title, cells, notes = view_of(view, top).table(report)
    parts = [
        f"## opbound: {escape(plain_text(report.model.name))}",
        markdown_pairs(header_lines(report)),
    ]
    parts += ["### Conclusions", "\n".join(f"- {escape(s)}" for s in report.totals.conclusions)]
    parts += [f"### {title}", markdown_table(cells), *map(escape, notes)]
    parts += ["### Time", markdown_table(totals_cells(report)), markdown_pairs(total_lines(report))]
    parts += ["### Memory per device at its peak", markdown_table(memory_cells(report))]
    for title, cells in further_tables(report):
        parts += [f"### {escape(title)}", markdown_table(cells)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _SYNTAX.sub(r"\\\1", text)


def markdown_pairs(lines: list[tuple[str, str]]) -> str:
    """Keys with their lines as a list."""
    return "\n".join(f"- {key}: {escape(value)}" for key, value in lines)


def markdown_table(cells: Cells) -> str:
    """A table; what a cell holds is shown as it is."""
    rule = ["---:" if right else "---" for right in cells.right]
    lines = [cells.headers, rule, *([escape(cell) for cell in row] for row in cells.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
