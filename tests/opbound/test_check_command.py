"""`opbound check` and `init` as CI runs them: exit codes, files, baselines."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from opbound.cli import main

BUDGET = """\
[[target]]
name = "h100"
[target.limits]
step_time = "1 ms"
unknown_operators = 0
[target.growth]
step_time = "2 %"
[[target]]
name = "a100"
batch = 4
hardware = "a100-sxm-80gb"
[target.growth]
flops = 0
"""


@pytest.fixture
def opbound(project, monkeypatch, capsys):
    """The command line in this process, which is quicker than a new one each time."""
    monkeypatch.chdir(project)

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    def named(*words):
        found = run(*words)
        return SimpleNamespace(returncode=found.returncode, stdout=found.out, stderr=found.err)

    return named


@pytest.fixture
def project(tmp_path, relu_model):
    """A model, `relu.onnx`, and a budget."""
    (tmp_path / "opbound.toml").write_text(
        BUDGET,
        encoding="utf-8",
    )
    return tmp_path


def test_a_baseline_is_written_and_kept_to(opbound, project):
    first = opbound("check", "relu.onnx")
    assert (first.returncode, first.stderr.count("\n")) == (2, 1)
    assert "--update-baseline" in first.stderr
    update = opbound("check", "relu.onnx", "--baseline", "base.json", "--update-baseline")
    assert update.returncode == 0, update.stderr
    written = (project / "base.json").read_bytes()
    again = opbound("check", "relu.onnx", "--baseline", "base.json")
    assert again.returncode == 0
    assert "all 4 rules hold" in again.stdout
    opbound("check", "relu.onnx", "--baseline", "base.json", "--update-baseline")
    assert (project / "base.json").read_bytes() == written


def test_a_slower_model_breaks_the_growth(opbound, project):
    opbound("check", "relu.onnx", "--baseline", "base.json", "--update-baseline")
    slow = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(
        slow,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), project / "relu.onnx")
    found = opbound("check", "relu.onnx", "--baseline", "base.json", "--json")
    assert found.returncode == 1
    broken = [
        finding["rule"]
        for target in json.loads(found.stdout)["targets"]
        for finding in target["findings"]
        if not finding["passed"]
    ]
    assert broken == ["growth-step-time", "growth-flops"]
    quiet = opbound("check", "relu.onnx", "--baseline", "base.json", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, "", "")


def test_a_plain_report_is_a_baseline(opbound, project):
    (project / "opbound.toml").write_text("[[target]]\n[target.growth]\nflops = 0\n")
    opbound("analyze", "relu.onnx", "--json", "-o", "report.json")
    assert opbound("check", "relu.onnx", "--baseline", "report.json").returncode == 0


@pytest.mark.parametrize("form", ["table", "json", "junit", "sarif", "github", "gitlab"])
def test_every_form_is_the_same_bytes_each_time(opbound, project, form):
    (project / "opbound.toml").write_text("[[target]]\n[target.limits]\nflops = 0\n")
    runs = [opbound("check", "relu.onnx", "--format", form) for _ in range(2)]
    assert [run.returncode for run in runs] == [1, 1]
    assert runs[0].stdout == runs[1].stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--baseline", "none.json"), "cannot read the baseline none.json"),
        (("--baseline", "cut.json"), "cut.json is no baseline"),
        (("--baseline", "list.json"), "list.json"),
        (("--baseline", "torn.json"), "torn.json"),
        (("--baseline", "newer.json"), "baseline of version 9"),
        (("--baseline", "strange.json"), "has no target"),
        (("--budget", "none.toml"), "cannot read the budget none.toml"),
        (("--budget", "."), "cannot read the budget"),
        (("--update-baseline",), "give --baseline FILE"),
        (("--baseline", "no/base.json", "--update-baseline"), "no/base.json"),
        (("--baseline", "base.json", "--update-baseline", "-o", "base.json"), "is the baseline"),
        (("--baseline", "base.json", "--update-baseline", "-o", "./base.json"), "is the baseline"),
        (("-o", "relu.onnx"), "the model"),
        (("-o", "opbound.toml"), "the budget"),
    ],
)
def test_trouble_is_one_line_and_leaves_nothing_behind(opbound, project, words, told):
    opbound("check", "relu.onnx", "--baseline", "base.json", "--update-baseline")
    good = json.loads((project / "base.json").read_text())
    (project / "cut.json").write_text((project / "base.json").read_text()[:500])
    (project / "list.json").write_text("[1, 2]")
    (project / "torn.json").write_text('{"baseline_version": 1, "targets": {"h100": {}}}')
    (project / "newer.json").write_text('{"baseline_version": 9, "targets": {}}')
    renamed = {"targets": {"other": good["targets"]["h100"]}, "baseline_version": 1}
    (project / "strange.json").write_text(json.dumps(renamed))
    before = {path: path.read_bytes() for path in project.iterdir() if path.is_file()}
    found = opbound("check", "relu.onnx", *words)
    assert found.returncode == 2, found.stdout
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert told in found.stderr
    assert {path: path.read_bytes() for path in project.iterdir() if path.is_file()} == before


def test_init_writes_a_budget_that_the_model_keeps(opbound, project):
    (project / "opbound.toml").unlink()
    sizes = ("--hardware", "l40s", "--dtype", "bf16")
    assert opbound("init", "relu.onnx", *sizes, "-o", "opbound.toml").returncode == 0
    kept = opbound("check", "relu.onnx")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "l40s" in (project / "opbound.toml").read_text()


@pytest.mark.slow
def test_a_light_resnet_is_checked_in_under_a_second(opbound, project, light):
    (project / "opbound.toml").write_text("[[target]]\nbatch = 8\n[target.limits]\nflops = '1 T'\n")
    model = light / "light_resnet50.onnx"
    command = [sys.executable, "-m", "opbound", "check", model]
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=project, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.8, spent


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be files there")
def test_hostile_names_stay_in_their_place(opbound, project):
    name = "a <b>|\x1b[31m%0A\u202e.onnx"
    Path(project / "relu.onnx").rename(project / name)
    (project / "opbound.toml").write_text("[[target]]\nname='<t>|'\n[target.limits]\nflops = 0\n")
    for form in ("table", "junit", "sarif", "github", "gitlab", "json"):
        found = opbound("check", name, "--format", form)
        assert found.returncode == 1, found.stderr
        assert not set("\x1b\u202e") & set(found.stdout)
