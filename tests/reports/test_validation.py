"""Tables of predictions beside measurements, in their four forms."""

import csv
import io
import json

import pytest

from reports.validation import (
    ValidationRow,
    ValidationTable,
    validation_csv,
    validation_json,
    validation_text,
)

ROWS = [ValidationRow("one", 1.1, 1.0), ValidationRow("two", 1.5, 2.0)]
TABLES = [
    ValidationTable.of("steps", "a paper, table 1", ROWS),
    ValidationTable("products", "a database", (), 1000, 0.05, 0.5),
]


def test_errors_are_fractions_and_signed_by_row() -> None:
    assert [row.error for row in ROWS] == pytest.approx([0.1, -0.25])
    assert TABLES[0].mean_abs_error == pytest.approx(0.175)
    assert TABLES[0].max_abs_error == pytest.approx(0.25)


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        ValidationTable.of("empty", "nowhere", [])


def test_json_holds_every_table_with_its_rows_and_errors() -> None:
    tables = json.loads(validation_json(TABLES))["tables"]
    assert [t["name"] for t in tables] == ["steps", "products"]
    assert {"name", "source", "rows", "mean_abs_error", "max_abs_error"} <= set(tables[0])
    assert tables[0]["rows"][1]["predicted"] == 1.5
    assert tables[0]["rows"][1]["error"] == pytest.approx(-0.25)
    assert (tables[1]["rows"], tables[1]["row_count"]) == ([], 1000)


def test_csv_has_one_line_per_row() -> None:
    lines = list(csv.DictReader(io.StringIO(validation_csv(TABLES))))
    assert [line["row"] for line in lines] == ["one", "two", "mean of 1000 rows"]
    assert float(lines[1]["error"]) == pytest.approx(-0.25)


@pytest.mark.parametrize("markdown", [False, True])
def test_text_shows_rows_sources_and_a_summary(markdown: bool) -> None:
    text = validation_text(TABLES, markdown=markdown)
    for part in ("a paper, table 1", "+10.0%", "-25.0%", "17.5%", "a database", "1000"):
        assert part in text
