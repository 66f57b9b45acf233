"""Predictions beside measurements: rows, tables of them with their errors, and their four forms."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class ValidationRow:
    """One measured quantity."""

    name: str
    predicted: float
    measured: float
    unit: str = "s"

    @property
    def error(self) -> float:
        """Relative error, negative where the prediction is too small: 0.1 is 10 % too much."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True, slots=True)
class ValidationTable:
    """One published or measured table."""

    name: str
    source: str
    rows: tuple[ValidationRow, ...]
    """Empty for a table of so many rows that only their errors are kept."""
    row_count: int
    mean_abs_error: float
    max_abs_error: float

    @classmethod
    def of(cls, name: str, source: str, rows: Sequence[ValidationRow]) -> ValidationTable:
        """The table of these rows, with their errors.

        Raises:
            ValueError: without rows.
        """
        if not rows:
            raise ValueError(f"the table {name!r} has no rows")
        errors = [abs(row.error) for row in rows]
        return cls(name, source, tuple(rows), len(rows), sum(errors) / len(errors), max(errors))


def validation_json(tables: Sequence[ValidationTable]) -> str:
    """{"tables": [{name, source, rows, mean_abs_error, max_abs_error}]}; errors as fractions."""
    entries = []
    for table in tables:
        rows = [{**asdict(row), "error": row.error} for row in table.rows]
        entries.append({**asdict(table), "rows": rows})
    return json.dumps({"tables": entries}, indent=2) + "\n"


def validation_csv(tables: Sequence[ValidationTable]) -> str:
    """One line per row; a table without rows is one line with its mean error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "predicted", "measured", "unit", "error", "source"])
    for table in tables:
        for row in table.rows:
            cells = [row.name, row.predicted, row.measured, row.unit, row.error]
            writer.writerow([table.name, *cells, table.source])
        if not table.rows:
            name = f"mean of {table.row_count} rows"
            writer.writerow([table.name, name, "", "", "", table.mean_abs_error, table.source])
    return text.getvalue()


def validation_text(tables: Sequence[ValidationTable], *, markdown: bool = False) -> str:
    """Every table with its rows, then one line per table."""
    parts = [_table_text(table, markdown) for table in tables if table.rows]
    summary = [
        [t.name, t.row_count, f"{t.mean_abs_error:.1%}", f"{t.max_abs_error:.1%}"] for t in tables
    ]
    headers = ["table", "rows", "mean error", "largest"]
    style = "pipe" if markdown else "simple"
    parts.append(_heading("All tables", markdown) + _grid(summary, headers, style))
    sources = [f"{t.name}: {t.source}" for t in tables if not t.rows]
    if sources:
        parts.append("\n".join(sources) + "\n")
    return "\n".join(parts)


def _table_text(table: ValidationTable, markdown: bool) -> str:
    rows = [
        [r.name, f"{r.predicted:.4g} {r.unit}", f"{r.measured:.4g} {r.unit}", f"{r.error:+.1%}"]
        for r in table.rows
    ]
    mean = f"mean {table.mean_abs_error:.1%}, largest {table.max_abs_error:.1%}"
    grid = _grid(rows, ["row", "predicted", "measured", "error"], "pipe" if markdown else "simple")
    return f"{_heading(table.name, markdown)}{table.source}\n\n{grid}\n{mean}\n"


def _heading(text: str, markdown: bool) -> str:
    return f"## {text}\n\n" if markdown else f"{text}\n{'=' * len(text)}\n"


def _grid(rows: list[list[object]] | list[list[str]], headers: list[str], style: str) -> str:
    from tabulate import tabulate

    align = ("left", *("right" for _ in headers[1:]))
    return (
        tabulate(rows, headers=headers, tablefmt=style, colalign=align, disable_numparse=True)
        + "\n"
    )
