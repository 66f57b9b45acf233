"""The seven outputs of one analysis say the same totals, and these are the sums of their rows."""

import base64
import csv
import gzip
import io
import json
import re
from collections import defaultdict
from itertools import pairwise

import onnx
import pytest

from opbound.analysis import run
from opbound.gate import check_model
from opbound.options import Options
from reports.gate.forms import FORMS
from reports.quantities import bytes_text, scaled_text, time_text

KEYS = ("flops", "bytes_read", "bytes_written", "bytes_communicated")
CASES = {
    "a device": {"batch": 8},
    "four devices, training": {
        "batch": 8,
        "mode": "training",
        "parallel": {"dp": 2, "tp": 2},
    },
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def analysed(request):
    from pathlib import Path

    options = CASES[request.param]
    model = Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"
    return str(model), options, run(str(model), Options(**options))


def sums(rows) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) for key in KEYS}


def test_json(analysed):
    _, _, report = analysed
    plain = json.loads(report.to_json())
    assert sums(plain["operators"]) == {key: plain["totals"][key] for key in KEYS}
    times = plain["totals"]["time_s"]
    added = sum(row["time_s"] for row in plain["operators"])
    for split in times.values():
        assert sum(split.values()) == pytest.approx(added)


def test_csv(analysed):
    _, _, report = analysed
    rows = [
        {key: float(row[key]) for key in (*KEYS, "time_s")}
        for row in csv.DictReader(io.StringIO(report.to_csv()))
    ]
    assert sums(rows) == {key: report.totals[key] for key in KEYS}
    by_phase = sum(report.totals.time_s.by_phase.values())
    assert sum(row["time_s"] for row in rows) == pytest.approx(by_phase)


@pytest.mark.parametrize("form", ["to_text", "to_markdown"])
def test_table_and_markdown(analysed, form):
    """Cells are rounded: the totals' own text is there, and the rows add up to it within rounding."""
    _, _, report = analysed
    text = getattr(report, form)()
    totals = report.totals
    for shown in (
        time_text(totals.step_time_s),
        scaled_text(totals.flops),
        scaled_text(totals.parameters),
        bytes_text(report.memory.peak_bytes),
    ):
        assert shown in text, shown
    added = 0.0
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"\||\s{2,}", line.strip("| "))]
        if cells[0] == "operator":
            header = cells
        elif header and len(cells) == len(header) and re.match(r"[\d.]+ ", _at(cells, header)):
            value, unit = _at(cells, header).split()
            added += float(value) * {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]
        elif header and not line.strip():
            break
    assert added == pytest.approx(sum(totals.time_s.by_phase.values()), rel=0.01)


def _at(cells: list[str], header: list[str]) -> str:
    return cells[header.index("time")]


def test_html(analysed):
    _, _, report = analysed
    packed = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', report.to_html())
    (data,) = json.loads(gzip.decompress(base64.b64decode(packed[1])))["reports"]
    columns = ("flops", "read", "written", "sent")
    assert {key: sum(data["rows"][name]) for key, name in zip(KEYS, columns, strict=True)} == {
        key: report.totals[key] for key in KEYS
    }
    assert data["step_s"] == report.totals.step_time_s


def test_trace(analysed):
    _, _, report = analysed
    trace = json.loads(report.to_trace())
    assert {key: trace["otherData"][key] for key in KEYS} == {
        key: report.totals[key] for key in KEYS
    }
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    ends = max(event["ts"] + event["dur"] for event in slices)
    assert ends <= report.totals.step_time_s * 1e6 * (1 + 1e-9)
    by_phase: dict[str, float] = defaultdict(float)
    tracks: dict[tuple[int, int], list[dict]] = defaultdict(list)
    for event in slices:
        by_phase[event["cat"]] += event["dur"] / 1e6
        tracks[event["pid"], event["tid"]].append(event)
    assert by_phase == pytest.approx(dict(report.totals.time_s.by_phase))
    for track in tracks.values():
        # On one stream one piece of work follows the other: slices never overlap.
        track.sort(key=lambda event: event["ts"])
        for one, next_one in pairwise(track):
            assert one["ts"] + one["dur"] <= next_one["ts"] * (1 + 1e-9) + 1e-6
    flows: dict[int, list[dict]] = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] in "sf":
            flows[event["id"]].append(event)
    for start, end in flows.values():
        assert (start["ph"], end["ph"]) == ("s", "f")
        for point in (start, end):
            assert any(
                event["ts"] - 1e-6 <= point["ts"] <= event["ts"] + event["dur"] + 1e-6
                for event in tracks[point["pid"], point["tid"]]
            )


def test_sarif(analysed, tmp_path):
    model, options, report = analysed
    lines = ["[[target]]", "[target.limits]", "unknown_operators = 0"]
    plain = [f"{key} = {json.dumps(value)}" for key, value in options.items() if key != "parallel"]
    if "parallel" in options:
        sizes = ",".join(f"{axis}={size}" for axis, size in options["parallel"].items())
        plain.append(f'parallel = "{sizes}"')
    budget = tmp_path / "opbound.toml"
    budget.write_text("\n".join([lines[0], *plain, *lines[1:]]))
    log = json.loads(FORMS["sarif"](check_model(model, str(budget), None), model))
    (told,) = log["runs"][0]["properties"]["targets"]
    names = ("flops", "bytesRead", "bytesWritten", "bytesCommunicated")
    assert {key: told[name] for key, name in zip(KEYS, names, strict=True)} == sums(
        report.operators
    )
    assert told["stepTimeS"] == report.totals.step_time_s


def test_dataframe(analysed):
    _, _, report = analysed
    frame = report.to_dataframe()
    for key in KEYS:
        assert frame[key].sum() == report.totals[key]
    assert len(frame) == len(report.operators)
