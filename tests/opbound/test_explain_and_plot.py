"""`opbound explain`, `plot` and `doctor`, and shell completion, as a user meets them."""

import json
import shutil
import subprocess
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from opbound.cli import main
from opbound.options import Options
from opbound.what_if import what_if


@pytest.fixture
def opbound(tmp_path, monkeypatch, capsys):
    """The command line in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as done:
            code = done.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return run


@pytest.fixture
def report(opbound, light, tmp_path):
    """A saved report of SqueezeNet."""
    model = light / "light_squeezenet.onnx"
    assert opbound("analyze", model, "--batch", "4", "--json", "-o", "r.json").returncode == 0
    return tmp_path / "r.json"


def test_more_of_a_resource_never_costs_time(light):
    model = str(light / "light_squeezenet.onnx")
    for options in (Options(batch=4), Options(batch=4, execution="fused")):
        base, outcomes = what_if(model, options)
        assert len({outcome.name for outcome in outcomes}) == len(outcomes)
        step_s = base.totals.step_time_s
        for outcome in outcomes:
            if outcome.name.startswith(("2x", "no launch")):
                assert outcome.time_s(base) <= step_s * (1 + 1e-9), outcome.name
        # At least one of them is what limits the model.
        assert min(o.time_s(base) for o in outcomes if o.name.startswith(("2x", "no"))) < step_s


def test_every_variant_is_priced_anew(light):
    """The figure of the table is that of an analysis with the change."""
    from opbound.analysis import run

    model = str(light / "light_squeezenet.onnx")
    base, outcomes = what_if(model, Options(batch=4))
    times = {outcome.name: outcome.time_s(base) for outcome in outcomes}
    fused = run(model, Options(batch=4, execution="fused")).totals.step_time_s
    half = run(model, Options(batch=2)).totals.step_time_s
    narrow = run(model, Options(batch=4, dtype="bf16")).totals.step_time_s
    assert times["fused execution"] == pytest.approx(fused)
    assert times["half the batch"] == pytest.approx(2 * half)
    assert times["dtype bf16"] == pytest.approx(narrow)


def test_explain_says_why_and_with_which_figures(opbound, report):
    plain = json.loads(opbound("explain", report, "--json").stdout)
    assert plain["figures"]
    assert all(figure["source"] for figure in plain["figures"])
    best = min(g["step_time_s"] for g in plain["what_if"] if g["step_time_s"] is not None)
    assert next(g for g in plain["what_if"] if g["change"] == plain["best"])["step_time_s"] == best
    node = json.loads(report.read_text())["operators"][0]["name"]
    told = opbound("explain", report, node).stdout
    assert node in told
    wrong = opbound("explain", report, "no such operator")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("kind", ["roofline", "memory", "bounds"])
def test_plots_are_written_and_the_same_each_time(opbound, report, tmp_path, kind):
    for form in ("png", "svg"):
        for name in ("a", "b"):
            done = opbound("plot", report, "--kind", kind, "-o", f"{name}.{form}")
            assert done.returncode == 0, done.stderr
        drawn = (tmp_path / f"a.{form}").read_bytes()
        assert drawn == (tmp_path / f"b.{form}").read_bytes()
        assert len(drawn) > 5_000
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert opbound("plot", report, "-o", "a.bmp").returncode == 2
    assert opbound("plot", report, report, "-o", "c.png").returncode == 2


def test_doctor_knows_what_is_installed(opbound):
    import numpy

    found = opbound("doctor", "--json")
    assert found.returncode == 0
    assert json.loads(found.stdout)["parts"]["numpy"] == numpy.__version__
    assert "numpy" in opbound("doctor").stdout


def test_doctor_says_what_is_missing(opbound, monkeypatch):
    from opbound.commands import doctor

    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "onnx" else "1")
    found = opbound("doctor")
    assert found.returncode == 1
    assert "MISSING" in found.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_the_shell_reads(opbound, tmp_path, shell):
    found = opbound("completion", shell)
    assert found.returncode == 0, found.stderr
    assert "--hardware" in found.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(found.stdout)
        subprocess.run([shell, "-n", script], check=True)


def test_completion_completes(opbound, tmp_path):
    script = tmp_path / "script"
    script.write_text(opbound("completion", "bash").stdout)
    typed = 'COMP_WORDS=(opbound di); COMP_CWORD=1; _shtab_opbound; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"source '{script}'; {typed}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["diff"]


def test_every_command_shows_examples_and_exit_codes(opbound):
    import re

    commands = re.search(r"\{([\w,-]+)\}", opbound("nonsense").stderr) or None
    from opbound.commands import build_parser

    (choices,) = (a.choices for a in build_parser()._actions if a.dest == "command")
    assert commands is None or set(commands[1].split(",")) == set(choices)
    for name, parser in choices.items():
        text = parser.format_help()
        assert "examples:" in text, name
        assert f"opbound {name}" in text.partition("examples:")[2], name
        assert "exit code" in text, name
