"""The JSON form: its published schema, its keys, and the way back."""

import json
from dataclasses import replace

import jsonschema
import pytest

from graph_ir.errors import OpboundError
from reports import Report, StepTimes, TimelineEvent
from reports.figures import MEMORY_KINDS, PHASES, PipelineRank
from reports.json_form import SCHEMA_PATH
from reports.report import SCHEMA_VERSION
from reports.search_info import AxisRow, LeftOut, SearchInfo, StrategyRow

SCHEMA = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
EVENT = TimelineEvent(
    stage=0,
    stream="compute",
    name="forward",
    phase="forward",
    microbatch=None,
    start_s=0.0,
    duration_s=1e-6,
)
GENERATION = StepTimes(
    step_time_s=32e-6, prefill_time_s=12e-6, decode_time_s=20e-6, time_per_token_s=2e-6
)


SEARCH = SearchInfo(
    devices=8,
    candidates=3,
    priced=1,
    seconds=0.5,
    rows=(StrategyRow(strategy="tp=8", step_time_s=0.1, peak_bytes=10, fits=True),),
    left_out=(LeftOut(reason="too large", count=2, example="dp=8"),),
    axes=(
        AxisRow(axis="16", chosen=True, nodes=1, candidates=2, flops=3, other_s=0.2, cost_s=0.1),
    ),
)


@pytest.fixture(params=["inference", "generation", "hostile"])
def any_report(request, make_report, hostile):
    return {
        "inference": make_report(timeline=[EVENT]),
        "generation": make_report(mode="generation", times=GENERATION),
        "hostile": hostile,
    }[request.param]


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_report_is_valid_and_comes_back_as_it_was(any_report):
    text = any_report.to_json()
    jsonschema.validate(json.loads(text), SCHEMA)
    again = Report.from_json(text)
    assert again == any_report
    assert again.to_json() == text


PIPELINE = (
    PipelineRank(
        rank=0,
        stages=(0, 3),
        layers=4,
        forward_s=1.0,
        backward_s=2.0,
        waiting_s=0.5,
        in_flight=4,
        peak_bytes=9,
        fits=True,
        by_kind_bytes=dict.fromkeys(MEMORY_KINDS, 1),
        recompute="full",
    ),
)


def test_a_search_comes_back_as_it_was(make_report):
    report = replace(make_report(), search=SEARCH)
    jsonschema.validate(json.loads(report.to_json()), SCHEMA)
    assert Report.from_json(report.to_json()) == report
    assert "tp=8" in report.to_text()
    assert "too large" in report.to_markdown()


def test_the_schema_names_every_key_and_no_other(make_report):
    """Every key that is written is described: a new field without a description fails here."""

    def check(plain, schema, where):
        if isinstance(plain, dict) and "properties" in schema:
            assert set(plain) == set(schema["properties"]), where
            for key, value in plain.items():
                check(value, schema["properties"][key], f"{where}.{key}")
        for entry in plain if isinstance(plain, list) and "items" in schema else ():
            check(entry, schema["items"], f"{where}[]")

    report = make_report(mode="generation", times=GENERATION, timeline=[EVENT])
    report = replace(
        report,
        search=SEARCH,
        pipeline=PIPELINE,
        hardware=replace(report.hardware, idle_watts=75.0),
        totals=replace(report.totals, energy_j=1.0),
        operators=tuple(replace(row, energy_j=0.1) for row in report.operators),
    )
    check(report.to_dict(), SCHEMA, "report")


def test_the_schema_and_the_code_know_the_same_words():
    row = SCHEMA["properties"]["operators"]["items"]["properties"]
    assert tuple(row["phase"]["enum"]) == PHASES
    kinds = SCHEMA["properties"]["memory"]["properties"]["by_kind_bytes"]
    assert tuple(kinds["properties"]) == MEMORY_KINDS
    assert tuple(kinds["required"]) == MEMORY_KINDS
    assert SCHEMA_VERSION.startswith("1.")


def test_the_promised_keys(report):
    plain = report.to_dict()
    assert set(plain) == set(
        "schema_version opbound_version model hardware strategy mode options coverage totals memory "
        "operators timeline".split()
    )
    assert set(plain["totals"]) >= set(
        "step_time_s flops bytes_read bytes_written bytes_communicated parameters mfu "
        "bubble_fraction exposed_communication_s time_s".split()
    )
    assert "prefill_time_s" not in plain["totals"]
    assert set(plain["operators"][0]) >= set(
        "name module op phase count shapes dtypes flops bytes_read bytes_written "
        "bytes_communicated arithmetic_intensity time_s share bound engine utilization".split()
    )


def test_a_newer_minor_version_is_read(report):
    plain = report.to_dict() | {"schema_version": "1.7", "later": True}
    assert Report.from_json(json.dumps(plain)).totals == report.totals


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": "2.0"}, "schema version 2.0"),
        ({"operators": {}}, "report.operators should be a list"),
        ({"totals": {}}, "report.totals lacks"),
        ({"memory": 3}, "report.memory should be an object"),
        ({"mode": 3}, "report.mode should be str"),
    ],
)
def test_what_is_not_a_report_is_an_error(report, change, says):
    with pytest.raises(OpboundError, match=says):
        Report.from_json(json.dumps(report.to_dict() | change))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 1', "onnx"])
def test_other_files_are_not_reports(text):
    with pytest.raises(OpboundError, match="not a report"):
        Report.from_json(text)


def test_a_report_is_saved_as_its_json(report, tmp_path):
    report.save(tmp_path / "report.json")
    assert Report.from_json((tmp_path / "report.json").read_text(encoding="utf-8")) == report
