"""`opbound validate`: predictions beside published and measured figures."""

from __future__ import annotations

from collections.abc import Callable

from reports.validation import ValidationTable, validation_csv, validation_json, validation_text


def validate(form: str, progress: Callable[[str], None]) -> str:
    """Runs every table and returns the text to print.

    Args:
        form: table, json, csv or markdown.
        progress: is told what is being done.
    """
    from opbound.validation import published_tables
    from opbound.validation_measured import measured_folder
    from opbound.validation_operators import operator_tables

    tables: list[ValidationTable] = list(published_tables(progress))
    folder = measured_folder()
    if folder is not None:
        progress("measured tables of operators")
        tables += operator_tables(folder)
    if form == "json":
        return validation_json(tables)
    if form == "csv":
        return validation_csv(tables)
    return validation_text(tables, markdown=form == "markdown")
