"""Text, Markdown, CSV and HTML: the same figures, and nothing from a model that could act."""

import csv
import dataclasses
import io
from html.parser import HTMLParser

import pytest

from reports.quantities import bytes_text, percent_text, plain_text, scaled_text, shorten, time_text
from reports.table import render_rich, render_text


def test_the_text_says_what_a_reader_must_know(report):
    text = str(report)
    for fact in (
        "tiny",
        "abababab",
        "toy.yaml",
        "tp=2",
        "1 multiply-add = 2 FLOPs",
        "100 % of the nodes",
        "model.layers.[0-1].mlp.matmul",
        "latency",
        "32.0 µs = 27.0 µs computing, 5.00 µs exposed communication, 0 s pipeline bubble",
        *report.totals.conclusions,
    ):
        assert fact in text


def test_top_says_what_it_leaves_out(report):
    text = report.to_text(top=1)
    # Of 37 us of rows, the linear takes 24: 13 us are left, of a step of 32.
    assert "2 more rows take 13.0 µs (41 % of the step)" in text
    assert "embedding" not in text
    assert "more row" not in report.to_text()


def test_a_view_is_counted_but_not_shown(make_report, nodes):
    none = {"flops": 0, "bytes_read": 0, "bytes_written": 0, "bytes_communicated": 0}
    view = dataclasses.replace(nodes[0], name="a_view", module="", time_s=0.0, terms_s={}, **none)
    report = make_report((*nodes, view))
    assert "a_view" not in report.to_text()
    assert "1 more row costs nothing (views)" in report.to_text(top=2)
    assert "a_view" in report.to_csv()
    unknown = dataclasses.replace(view, name="odd", bytes_read=8, bound="unknown")
    assert "odd" in make_report((*nodes, unknown)).to_text()


def test_a_narrow_terminal_shortens_names_only(report):
    wide, narrow = render_text(report), render_text(report, width=130)
    assert "model.layers.[0-1].mlp.all_reduce" in wide
    assert "model.layers.[0-1].mlp.all_reduce" not in narrow
    assert "network:nvlink" in narrow
    assert "Too narrow" not in wide


@pytest.mark.parametrize("width", [80, 100, 130, 160])
def test_the_operators_fit_the_terminal(report, width):
    lines = render_text(report, width=width).split("\n")
    start = lines.index("Operators, the slowest first") + 1
    table = [line for line in lines[start : lines.index("", start)] if "Too narrow" not in line]
    assert max(map(len, table)) <= width
    assert "bound" in table[0]
    assert "time" in table[0]


def test_colour_changes_no_character(report):
    bars = str.maketrans("", "", "█▉▊▋▌▍▎▏")

    def words(text):
        return [line.translate(bars).split() for line in text.splitlines() if "---" not in line]

    assert words(render_rich(report).plain) == words(render_text(report))
    assert "█" in render_rich(report).plain
    assert {span.style for span in render_rich(report).spans} >= {"green", "magenta", "cyan"}


def test_csv_re_adds_to_the_totals(report):
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert sum(int(row["flops"]) for row in rows) == report.totals.flops
    assert sum(int(row["bytes_read"]) for row in rows) == report.totals.bytes_read
    by_row = sum(float(row["time_s"]) for row in rows)
    assert by_row == pytest.approx(sum(report.totals.time_s.by_bound.values()))
    assert rows[0]["shapes"] == "8x16 100x32 8x16x32"


def test_hostile_names_stay_text_in_the_terminal(hostile):
    for text in (str(hostile), "\n".join(hostile.totals.conclusions)):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\\x1b[31m" in text


def test_hostile_names_stay_cells_in_markdown(hostile):
    text = hostile.to_markdown()
    line = next(line for line in text.split("\n") if "alert" in line and line.startswith("|"))
    assert "<script" not in line.replace(r"\<", "")
    unescaped = line.replace(r"\|", "").count("|")
    header = next(line for line in text.split("\n") if line.startswith("| operator"))
    assert unescaped == header.count("|")


def test_hostile_names_stay_text_in_html(hostile):
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)

    Reader().feed(hostile._repr_html_())
    assert set(tags) == {"div", "h3", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}


def test_hostile_names_are_no_formulas_in_csv(hostile):
    (row,) = csv.DictReader(io.StringIO(hostile.to_csv()))
    assert row["name"].startswith("'=")
    assert "\n" not in row["name"]


@pytest.mark.parametrize("form", ["to_text", "to_markdown", "_repr_html_"])
def test_every_form_shows_the_conclusions_and_the_step(report, form):
    text = getattr(report, form)()
    assert "32.0 µs" in text
    assert "1.60 times as fast" in text


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("layer", "layer"),
        ("Größe", "Größe"),
        ("a\nb", "a\\nb"),
        ("\x1b[0m", "\\x1b[0m"),
        ("\u202ex", "\\u202ex"),
        ("\ud800", "\\ud800"),
    ],
)
def test_plain_text(text, printed):
    assert plain_text(text) == printed


def test_huge_names_are_cut():
    assert len(plain_text("x" * 100_000)) == 200
    assert shorten("model.layers.[0-1].mlp.down_proj", 12) == "mode…wn_proj"
    assert shorten("short", 12) == "short"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (time_text(0), "0 s"),
        (time_text(1.5e-9), "1.50 ns"),
        (time_text(999.7e-6), "1.00 ms"),
        (time_text(0.0123), "12.3 ms"),
        (time_text(4000), "4000 s"),
        (bytes_text(999), "999 B"),
        (bytes_text(80e9), "80.0 GB"),
        (scaled_text(8_178_368_512), "8.18 G"),
        (scaled_text(0.25), "0.25"),
        (scaled_text(989e12, "FLOP/s"), "989 TFLOP/s"),
        (percent_text(0), "0 %"),
        (percent_text(0.0004), "<0.1 %"),
        (percent_text(0.0994), "9.9 %"),
        (percent_text(0.4567), "46 %"),
    ],
)
def test_quantities(printed, expected):
    assert printed == expected
