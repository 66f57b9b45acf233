"""`analyze --place` and `--explain` as a user runs them."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def inception(light):
    path = light / "light_inception_v1.onnx"
    if not path.exists():
        pytest.skip("this onnx does not ship its light models")
    return path


def test_inception_is_faster_on_two_devices(opbound, inception):
    ran = opbound("analyze", inception, "--place", "devices=2", "--format", "json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert 1.2 < found["speedup"] <= found["one_device_s"] / found["critical_path_s"]
    assert found["makespan_s"] <= found["greedy_s"]
    assert found["gap"] < 0.01
    assert {o["device"] for o in found["operators"]} == {0, 1}
    # Cut only inside the modules: what crosses is read by a branch or by the concatenation behind it.
    assert {t["value"].split("_")[0] for t in found["transfers"]} <= {"Relu", "MaxPool", "Concat"}
    assert all(t["bytes"] > 0 and t["time_s"] > 0 for t in found["transfers"])


def test_a_chain_gains_nothing(opbound, light):
    ran = opbound("analyze", light / "light_vgg19.onnx", "--place", "devices=2", "--format", "json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["speedup"] == pytest.approx(1.0)
    assert found["transfers"] == []


def test_greedy_is_asked_for(opbound, inception):
    place = "devices=2,method=greedy"
    ran = opbound("analyze", inception, "--place", place, "--mode", "training", "--top", 3)
    assert ran.returncode == 0, ran.stderr
    assert "training, 2 devices, greedy" in ran.stdout
    assert "critical path" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--place", "device=2"], "did you mean 'devices'"),
        (["--place", "2"], "there is no '2'"),
        (["--place", "devices=two"], "devices=2"),
        (["--place", "devices=2,method=best"], "exact, greedy"),
        (["--place", "devices=2", "--parallel", "dp=2"], "leave one of them out"),
        (["--place", "devices=2", "--format", "html"], "--format html"),
        (["--place", "devices=2", "--mode", "generation"], "use mode"),
        (["--explain", "nothing_like_it"], "no operator is called"),
        (["--explain", "y", "--place", "devices=2"], "leave one of them out"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(opbound, relu_model, arguments, says):
    ran = opbound("analyze", relu_model, *arguments)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert says in ran.stderr
    assert ran.stdout == ""


def test_why_a_convolution_is_split_so(opbound, light):
    model = light / "light_resnet50.onnx"
    options = ("--batch", 4, "--parallel", "tp=2,dp=2", "--format", "json")
    ran = opbound("analyze", model, *options, "--explain", "Conv_22")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    names = {n["name"]: n for n in found["names"]}
    assert names["n"]["split"] == "dp=2"
    assert names["n"]["local_size"] == 2
    by_axis = {}
    for row in found["alternatives"]:
        by_axis.setdefault(row["mesh_axis"], []).append(row)
    assert set(by_axis) == {"tp", "dp"}
    for rows in by_axis.values():
        (now,) = (r for r in rows if r["chosen"])
        assert now["step_time_s"] == pytest.approx(found["step_time_s"], rel=0.05)
        assert len(rows) >= 3
    assert len(found["reasons"]) == 2
    wrong = opbound("analyze", model, *options, "--explain", "Conv_2222")
    assert wrong.returncode == 2
    assert "nearest: " in wrong.stderr
