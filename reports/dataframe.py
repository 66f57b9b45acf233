"""The operators as a pandas DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from reports.csv_rows import COLUMNS
from reports.report import Report

if TYPE_CHECKING:
    from pandas import DataFrame


def operators_dataframe(report: Report) -> DataFrame:
    """One row per operator under the keys of the JSON form; the terms as columns `term.BOUND`.

    Raises:
        OpboundError: if pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise OpboundError(
            "data frames need pandas: install it with pip install 'opbound[dataframe]'"
        ) from None
    rows = [
        {column: row[column] for column in COLUMNS}
        | {f"term.{bound}": term_s for bound, term_s in row.terms_s.items()}
        for row in report.operators
    ]
    return pandas.DataFrame(rows)
