"""Budgets: what is read, what breaks them, and the forms that CI systems take."""

import dataclasses
import json
import tomllib
from xml.etree import ElementTree

import pytest

from graph_ir.errors import OpboundError
from reports.gate import check_target, load_budget
from reports.gate.forms import FORMS
from reports.gate.metrics import METRICS
from reports.gate.starting import starting_budget

KNOWN = frozenset({"batch", "hardware", "mode"})


@pytest.fixture
def budget(tmp_path):
    def write(text):
        path = tmp_path / "opbound.toml"
        path.write_text(text, encoding="utf-8")
        return load_budget(str(path), KNOWN)

    return write


@pytest.fixture
def target(budget):
    return lambda text: budget(f"[[target]]\n{text}").targets[0]


def broken(result):
    return [finding.rule for finding in result.findings if not finding.passed]


@pytest.mark.parametrize(
    ("metric", "text", "value"),
    [
        ("step_time", "2.5 ms", 2.5e-3),
        ("step_time", "10us", 10e-6),
        ("step_time", 3, 3.0),
        ("peak_memory", "80 GB", 80e9),
        ("peak_memory", "1 GiB", 2**30),
        ("parameters", "7 B", 7e9),
        ("flops", "1.5T", 1.5e12),
        ("memory_bound", "40 %", 0.4),
    ],
)
def test_limits_have_units(metric, text, value):
    assert METRICS[metric].parse(text, "here") == pytest.approx(value)


@pytest.mark.parametrize("text", ["fast", "3 GB", "-1 ms", "ms", "", -1, True, [], "1 ms ms"])
def test_what_is_no_limit(text):
    with pytest.raises(OpboundError, match=r"here: .* is no limit for step_time"):
        METRICS["step_time"].parse(text, "here")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no \\[\\[target\\]\\]"),
        ("[target]\nname='a'", "no \\[\\[target\\]\\]"),
        ("[[target]]\nlimit={}", "did you mean 'limits'"),
        ("[[target]]\nbach=3", "did you mean 'batch'"),
        ("[[target]]\n[target.limits]\nstep_tim=1", "did you mean 'step_time'"),
        ("[[target]]\nlimits=3", "should be a table"),
        ("[[target]]\nforbid_dtypes='float32'", "list of texts"),
        ("[[target]]\n[[target.part]]\nlimits={}", "say which operators"),
        ("[[target]]\n[[target.part]]\nop='conv'", "means nothing here"),
        ("[[target]]\n[[target.part]]\noperator='conv'\nlimits={parameters=3}", "means nothing"),
        ("[[target]]\nname='a'\n[[target]]\nname='a'", "two targets"),
        ("[[target]\n", "no TOML"),
    ],
)
def test_a_wrong_budget_is_told_in_one_line(budget, text, told):
    with pytest.raises(OpboundError, match=told) as error:
        budget(text)
    assert "opbound.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_absolute_limits(target, report):
    result = check_target(
        target("limits={step_time='31 us', flops='1G', operators=5, memory_bound='1 %'}"),
        report,
        None,
    )
    assert broken(result) == ["step-time"]
    blamed = next(finding for finding in result.findings if not finding.passed)
    assert blamed.node == "model.layers.[0-1].mlp.matmul"
    assert "32.0 µs is over 31.0 µs" in blamed.message


def test_growth(target, report, make_report, nodes):
    more = make_report(nodes=(*nodes, dataclasses.replace(nodes[0], name="again")))
    text = "growth={operators='10 %', flops=0}"
    assert check_target(target(text), report, report).passed
    assert broken(check_target(target(text), more, report)) == ["growth-operators"]
    with pytest.raises(OpboundError, match="needs a baseline"):
        check_target(target(text), report, None)


def test_a_new_version_that_moves_figures_says_so(target, report, make_report, nodes):
    old = make_report(
        nodes=(dataclasses.replace(nodes[0], flops=7), *nodes[1:]), opbound_version="0.0.1"
    )
    result = check_target(target("growth={bytes_moved=0, step_time=0}"), report, old)
    assert result.passed
    assert "made by opbound 0.0.1" in result.notes[0]
    slower = make_report(times=dataclasses.replace(_times(report), step_time_s=1.0))
    moved = check_target(target("growth={step_time=0}"), slower, old)
    assert moved.passed
    assert "figures of opbound moved" in moved.findings[0].message
    other = dataclasses.replace(slower, model=dataclasses.replace(slower.model, sha256="00" * 32))
    assert not check_target(target("growth={step_time=0}"), other, old).passed


def _times(report):
    from reports import StepTimes

    return StepTimes(step_time_s=report.totals.step_time_s)


def test_parts(target, report):
    text = """
    [[target.part]]
    module = "model.layers"
    limits = { operators = 3 }
    [[target.part]]
    operator = "linear"
    limits = { step_time = "1 ms" }
    [[target.part]]
    module = "model.head*"
    limits = { operators = 0 }
    """
    result = check_target(target(text), report, None)
    assert [f.value for f in result.findings] == [4, pytest.approx(24e-6), 0]
    assert broken(result) == ["operators"]
    assert "model.head" in result.notes[0]


def test_forbidden(target, report):
    text = "forbid_operators=['all_reduce', 'unknown']\nforbid_dtypes=['int64', 'float64']"
    result = check_target(target(text), report, None)
    assert broken(result) == ["forbidden-operator", "forbidden-dtype"]
    assert [f.node for f in result.findings if not f.passed] == [
        "model.layers.[0-1].mlp.all_reduce",
        "model.embed embed",
    ]


def test_metrics_that_are_not_to_be_had(target, report):
    with pytest.raises(OpboundError, match="file_size"):
        check_target(target("limits={file_size='1 MB'}"), report, None)


def test_the_starting_budget_holds(budget, report, make_report):
    text = starting_budget(report, 'a "name"', 0.0)
    assert tomllib.loads(text)
    found = budget(text).targets[0]
    assert found.name == 'a "name"'
    assert check_target(found, report, None).passed
    slower = make_report(times=dataclasses.replace(_times(report), step_time_s=1.0))
    assert broken(check_target(found, slower, None)) == ["step-time"]


HOSTILE = "<b>\x1b[31m\n|&\"'‮%0A::"


@pytest.fixture
def results(target, make_report, nodes):
    node = dataclasses.replace(nodes[0], name=HOSTILE, module="", op="transpose", instances=())
    report = make_report(nodes=(node, *nodes[1:]))
    text = "name='t:1,2'\nforbid_operators=['transpose']\nlimits={step_time='1 us', operators=9}"
    return [check_target(target(text), report, None)]


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_the_same_each_time_and_carry_no_control_characters(form, results):
    text = FORMS[form](results, "dir/a model.onnx")
    assert text == FORMS[form](results, "dir/a model.onnx")
    assert "\x1b" not in text
    assert "‮" not in text


def test_junit(results):
    root = ElementTree.fromstring(FORMS["junit"](results, "m.onnx"))
    suite = root.find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert len(suite.findall("testcase/failure")) == 2


def test_sarif(results):
    log = json.loads(FORMS["sarif"](results, "dir/a model.onnx"))
    run = log["runs"][0]
    assert log["version"] == "2.1.0"
    assert [result["ruleId"] for result in run["results"]] == ["step-time", "forbidden-operator"]
    for result in run["results"]:
        rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
        assert rule["id"] == result["ruleId"]
        place = result["locations"][0]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "dir/a%20model.onnx"
    prints = [result["partialFingerprints"]["opbound/v1"] for result in run["results"]]
    assert len(set(prints)) == 2


def test_github_annotations_are_one_line_each(results):
    lines = FORMS["github"](results, "m.onnx").splitlines()
    assert len(lines) == 2
    assert all(line.startswith("::error file=m.onnx,title=opbound ") for line in lines)
    assert all(line.count("::") == 2 or HOSTILE[-2:] in line for line in lines)


def test_gitlab(results):
    issues = json.loads(FORMS["gitlab"](results, "m.onnx"))
    assert {issue["check_name"] for issue in issues} == {"step-time", "forbidden-operator"}
    assert len({issue["fingerprint"] for issue in issues}) == 2
