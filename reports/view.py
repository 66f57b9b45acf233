"""What of a report a person wants to see: which operators, in which order, with which columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graph_ir.errors import OpboundError, did_you_mean
from reports.figures import OpRow
from reports.layout import Cells, left_out_line, operator_cells
from reports.report import Report
from reports.row_filter import NUMBER_KEYS, TEXT_KEYS, filter_rows
from reports.rows import worth_showing

_COLUMNS = (
    "operator op phase count shapes dtype FLOPs read written FLOP/B sent time share bound engine use"
).split()
_SORT_KEYS = (*NUMBER_KEYS, *TEXT_KEYS, "model")


@dataclass(frozen=True, slots=True)
class View:
    """A choice of rows and columns.

    Raises:
        OpboundError: when made with a column or key that does not exist.
    """

    top: int | None = None
    """Only the first so many rows."""
    sort: str = "time"
    """A key of `row_filter`; figures fall, texts rise; `model` keeps the model's order."""
    where: str | None = None
    """An expression of `row_filter`."""
    columns: tuple[str, ...] | None = None
    """Columns in this order; None for all."""
    tree: bool = False
    """Modules with subtotals in place of a flat list."""
    depth: int | None = None
    """Levels of the tree."""

    def __post_init__(self) -> None:
        if self.sort not in _SORT_KEYS:
            raise OpboundError(
                f"--sort: there is no {self.sort!r}; {did_you_mean(self.sort, _SORT_KEYS)}"
            )
        for column in self.columns or ():
            if column not in _COLUMNS:
                raise OpboundError(
                    f"--columns: there is no {column!r}; {did_you_mean(column, _COLUMNS)}"
                )

    def chosen(self, report: Report) -> list[OpRow]:
        """All rows that are wanted, in order, whatever `top` says.

        Raises:
            OpboundError: if the expression cannot be read.
        """
        rows = [row for row in report.operators if worth_showing(row)]
        if self.where is not None:
            rows = filter_rows(rows, self.where)
        if self.sort in NUMBER_KEYS:
            number_of = NUMBER_KEYS[self.sort][1]
            return sorted(rows, key=lambda row: -number_of(row))
        return rows if self.sort == "model" else sorted(rows, key=TEXT_KEYS[self.sort])

    def table(self, report: Report) -> tuple[str, Cells, list[str]]:
        """The title, the cells, and lines on what they leave out."""
        rows = self.chosen(report)
        if self.tree:
            from reports.tree import tree_cells

            return (
                "Operators by module",
                tree_cells(rows, report.totals.step_time_s, self.depth),
                [],
            )
        shown = rows[: self.top]
        cells = self._columns_of(operator_cells(shown))
        title = (
            "Operators, the slowest first" if self.sort == "time" else f"Operators by {self.sort}"
        )
        return title, cells, self._left_out(report, shown)

    def _left_out(self, report: Report, shown: Sequence[OpRow]) -> list[str]:
        lines = left_out_line(report, shown)
        return [*lines, f"shown are those with {self.where}"] if self.where is not None else lines

    def _columns_of(self, cells: Cells) -> Cells:
        if self.columns is None:
            return cells
        places = [cells.headers.index(name) for name in self.columns if name in cells.headers]
        return Cells(
            [cells.headers[i] for i in places],
            [cells.right[i] for i in places],
            [[row[i] for i in places] for row in cells.rows],
        )


def view_of(view: View | None, top: int | None) -> View:
    """The view, with `top` where that is given apart."""
    view = view or View()
    return view if top is None else replace(view, top=top)
