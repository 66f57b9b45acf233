"""The GitHub Action's steps, run by a shell in a repository with two revisions of a real model."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
BUDGET = """\
[[target]]
name = "edge"
batch = 1
[target.limits]
flops = "{flops} G"
unknown_operators = 0
"""


@dataclass
class Runner:
    """Runs the action as a runner does: expressions, conditions, and the files that steps write to."""

    folder: Path
    inputs: dict[str, str]
    context: dict[str, str]
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""
    code: int = 0

    def value(self, expression: str) -> str:
        for part in expression.split("||"):
            name = part.strip()
            if name.startswith("'"):
                return name.strip("'")
            found = self.inputs | self.context | self.outputs
            if found.get(name):
                return found[name]
        return ""

    def holds(self, condition: str) -> bool:
        parts = []
        for part in condition.split("&&"):
            left, sign, right = re.fullmatch(r"(.*?)\s*(==|!=)\s*(.*)", part.strip()).groups()
            parts.append((self.value(left) == self.value(right)) == (sign == "=="))
        return all(parts)

    def run(self) -> "Runner":
        for step in STEPS:
            if self.code == 0 and self.holds(step.get("if", "'' == ''")) and "run" in step:
                self.step(step)
        return self

    def step(self, step: dict) -> None:
        written = self.folder / "output"
        written.write_text("")
        own = {
            name: re.sub(r"\$\{\{(.*?)\}\}", lambda m: self.value(m[1].strip()), text)
            for name, text in step.get("env", {}).items()
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.folder / "repository",
            capture_output=True,
            text=True,
            env={
                **os.environ,
                **own,
                "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
                "RUNNER_TEMP": str(self.folder / "temp dir"),
                "GITHUB_OUTPUT": str(written),
                "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            },
        )
        self.log += done.stdout + done.stderr
        self.code = done.returncode
        for line in written.read_text().splitlines():
            name, _, value = line.partition("=")
            self.outputs[f"steps.{step.get('id')}.outputs.{name}"] = value


@pytest.fixture
def action(tmp_path, light):
    """A repository whose branch has another activation in SqueezeNet than main, and a runner in it."""
    for name, line in (
        ("opbound", f'exec "{sys.executable}" -m opbound "$@"'),
        ("gh", f'printf "%s\\n" "$@" > "{tmp_path}/comment"; cp "$5" "{tmp_path}/comment.md"'),
    ):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(0o755)
    (tmp_path / "temp dir").mkdir()
    repository = tmp_path / "repository"
    repository.mkdir()
    model = onnx.load(light / "light_squeezenet.onnx")

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *words], cwd=repository, check=True, capture_output=True)

    def commit(branch: str) -> None:
        git("checkout", "-q", "-b", branch)
        onnx.save(model, repository / "my model.onnx")
        git("add", ".")
        git("commit", "-q", "-m", branch)

    def run(*, flops: str = "9", event: str = "pull_request", **inputs: str) -> Runner:
        (repository / "opbound.toml").write_text(BUDGET.format(flops=flops))
        given = {name: str(entry.get("default", "")) for name, entry in ACTION["inputs"].items()}
        given |= {"model": "my model.onnx", "version": "none", "options": "--batch 1"}
        given |= {name.replace("_", "-"): value for name, value in inputs.items()}
        context = {"github.event_name": event, "github.event.pull_request.number": "7"}
        context |= {"github.base_ref": "main"} if event == "pull_request" else {}
        full = {f"inputs.{name}": value for name, value in given.items()}
        return Runner(tmp_path, full, context).run()

    git("init", "-q")
    commit("main")
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Sigmoid"
    commit("branch")
    return run


def test_a_pull_request_is_checked_compared_and_commented(action, tmp_path):
    runner = action()
    assert runner.code == 0, runner.log
    assert runner.outputs["steps.check.outputs.kept"] == "true"
    assert runner.outputs["steps.diff.outputs.same-work"] == "false"
    comment = (tmp_path / "comment.md").read_text(encoding="utf-8")
    assert "The work differs" in comment
    assert "relu became sigmoid at 26 places" in comment
    assert "pr\ncomment\n7\n" in (tmp_path / "comment").read_text()
    assert comment in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert not (tmp_path / "temp dir/opbound/base").exists()


def test_a_broken_budget_fails_the_job_after_the_comment(action, tmp_path):
    runner = action(flops="0.1")
    assert runner.code == 1
    assert "::error file=my model.onnx,title=opbound flops::" in runner.log
    assert Path(runner.outputs["steps.check.outputs.sarif"]).exists()
    assert (tmp_path / "comment.md").exists()


@pytest.mark.slow
def test_other_cases(action, tmp_path):
    assert action(fail_on_difference="true").code == 1
    same = action(base_ref="branch", fail_on_difference="true", comment="false")
    assert same.code == 0, same.log
    assert same.outputs["steps.diff.outputs.same-work"] == "true"
    push = action(event="push")
    assert push.code == 0
    assert "no base" in push.log
    assert action(base_ref="$(touch /tmp/x); no-such").code != 0
    assert action(model="none.onnx").code == 2
    assert action(budget="none.toml").code == 2


def test_no_expression_is_pasted_into_a_script():
    assert not [step["name"] for step in STEPS if "${{" in step.get("run", "")]


def test_the_pre_commit_hook_is_valid(tmp_path):
    from pre_commit.clientlib import load_manifest

    (hook,) = load_manifest(ROOT / ".pre-commit-hooks.yaml")
    assert hook["entry"] == "opbound check"
    assert re.search(hook["files"], "models/a.onnx")
    assert re.search(hook["files"], "opbound.toml")
    assert not re.search(hook["files"], "opbound.toml.md")
