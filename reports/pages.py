"""Reports that are no table of priced operators: lines and tables, as text, Markdown, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from reports.json_form import to_plain
from reports.layout import Cells
from reports.markdown import escape, markdown_pairs, markdown_table
from reports.records import Record
from reports.table import text_table


@dataclass(frozen=True)
class Page:
    """A report for people, without a syntax, and as data."""

    title: str
    summary: list[tuple[str, str]]
    """Keys with their lines."""
    tables: list[tuple[str, Cells]]
    """Titles with their tables."""
    notes: Sequence[str]
    record: Record
    """What the JSON form says."""
    rows: Sequence[Record]
    """What the CSV form says: records of one kind."""

    def to(self, form: str) -> str:
        """The page as `table`, `markdown`, `json` or `csv`."""
        if form == "json":
            return self._json()
        if form == "csv":
            return self._csv()
        return self._markdown() if form == "markdown" else self._text()

    def _text(self) -> str:
        lines = [f"{key:<15}{line}" for key, line in self.summary]
        lines += [f"{'note':<15}{note}" for note in self.notes]
        for title, cells in self.tables:
            lines += ["", title, text_table(cells)]
        return "\n".join(lines) + "\n"

    def _markdown(self) -> str:
        notes = [("note", note) for note in self.notes]
        parts = [f"## {escape(self.title)}", markdown_pairs([*self.summary, *notes])]
        for title, cells in self.tables:
            parts += [f"### {escape(title)}", markdown_table(cells)]
        return "\n\n".join(parts) + "\n"

    def _json(self) -> str:
        # One line per entry of a list: readable, and a line-wise diff names what changed.
        entries = []
        for key, value in to_plain(self.record).items():
            if isinstance(value, list) and value:
                text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n]"
            else:
                text = json.dumps(value, allow_nan=False)
            entries.append(f"{json.dumps(key)}: {text}")
        return "{\n" + ",\n".join(entries) + "\n}\n"

    def _csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        if self.rows:
            writer.writerow(self.rows[0].keys())
        # Text that a spreadsheet would take for a formula is quoted as text.
        writer.writerows([_cell(row[key]) for key in row] for row in self.rows)
        return buffer.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return value
