"""`opbound analyze` on real networks, as a process and from Python: every form says the same."""

import csv
import io
import json
import re

import jsonschema
import pytest

import opbound as package
from opbound import OpboundError
from reports import Report
from reports.json_form import SCHEMA_PATH

SCHEMA = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))


@pytest.fixture
def squeezenet(light):
    return light / "light_squeezenet.onnx"


def test_the_formats_agree_with_python(opbound, squeezenet):
    report = package.analyze(squeezenet, batch=4)
    arguments = ("analyze", squeezenet, "--batch", 4, "--format")
    saved = opbound(*arguments, "json")
    assert saved.returncode == 0, saved.stderr
    assert saved.stderr == ""
    assert Report.from_json(saved.stdout) == report
    jsonschema.validate(json.loads(saved.stdout), SCHEMA)
    assert opbound(*arguments, "table").stdout == report.to_text()
    assert opbound(*arguments, "markdown").stdout == report.to_markdown()
    assert opbound(*arguments, "csv").stdout == report.to_csv()
    assert opbound(*arguments, "json").stdout == saved.stdout


def test_the_csv_adds_up(opbound, squeezenet):
    process = opbound("analyze", squeezenet, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(process.stdout)))
    report = package.analyze(squeezenet)
    assert sum(int(row["flops"]) for row in rows) == report.totals.flops
    assert sum(float(row["time_s"]) for row in rows) == pytest.approx(report.totals.step_time_s)


def test_a_file_gets_the_same_and_the_screen_nothing(opbound, squeezenet, tmp_path):
    process = opbound("analyze", squeezenet, "--format", "json", "-o", "report.json")
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    report = Report.from_json((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report == package.analyze(squeezenet)


def test_top_and_every_node(opbound, squeezenet):
    process = opbound("analyze", squeezenet, "--top", 3, "--format", "csv")
    assert process.stdout.count("\n") == 1 + 3
    grouped = package.analyze(squeezenet)
    process = opbound("analyze", squeezenet, "--every-node", "--format", "json")
    single = Report.from_json(process.stdout)
    assert single == grouped.every_node()
    assert sum(row.count for row in single.operators) == len(single.operators)
    assert single.totals == grouped.totals


def test_the_header_tells_where_the_figures_come_from(opbound, squeezenet):
    text = opbound("analyze", squeezenet, "--hardware", "a100-sxm-80gb", "--batch", 2).stdout
    assert "light_squeezenet" in text
    assert re.search(r"sha256 [0-9a-f]{16}", text)
    assert "a100-sxm-80gb.yaml" in text
    assert "batch 2" in text
    assert f"opbound     {package.__version__}" in text


def test_training_has_the_phases_of_training(squeezenet):
    report = package.analyze(squeezenet, mode="training", optimizer="sgd", batch=2)
    assert set(report.totals.time_s.by_phase) == {"forward", "backward", "optimizer"}
    assert report.memory.by_kind_bytes["gradients"] > 0
    assert report.strategy.optimizer == "sgd"
    jsonschema.validate(report.to_dict(), SCHEMA)


def test_an_unknown_operator_is_admitted_on_request(opbound, custom_model):
    process = opbound("analyze", custom_model, "--allow-unknown", "--format", "json")
    assert process.returncode == 0, process.stderr
    report = Report.from_json(process.stdout)
    (row,) = (row for row in report.operators if row.bound == "unknown")
    assert "Frobnicate" in row.op
    # Two of three nodes have a record, and each of the three reads and writes the same tensor.
    assert report.coverage.nodes == pytest.approx(2 / 3)
    assert report.coverage.bytes == pytest.approx(2 / 3)
    assert "66.67 % of the nodes" in report.to_text()


def test_dims_are_bound(opbound, dynamic_model):
    process = opbound(
        *("analyze", dynamic_model, "--dim", "height=8", "--dim", "width=4", "--format", "json")
    )
    assert process.returncode == 0, process.stderr
    report = Report.from_json(process.stdout)
    assert report.model.dims == {"height": 8, "width": 4}
    (row,) = report.operators
    assert row.bytes_read == row.bytes_written == 3 * 8 * 4 * 4


def test_a_reader_that_leaves_early_is_no_error(squeezenet):
    import subprocess
    import sys

    command = f"{sys.executable} -m opbound analyze {squeezenet} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("model ")
    assert done.stderr == ""


def test_an_onnx_file_is_analysed_without_torch(squeezenet):
    import subprocess
    import sys

    code = (
        f"import opbound, sys; opbound.analyze({str(squeezenet)!r});"
        "print({'torch', 'transformers', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_errors_from_python_are_opbound_errors(tmp_path):
    with pytest.raises(OpboundError, match="missing"):
        package.analyze(tmp_path / "missing.onnx")
    with pytest.raises(OpboundError, match="did you mean 'training'"):
        package.analyze("model.onnx", mode="trainin")


def test_a_module_is_analysed():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU())
    report = package.analyze(module, example_inputs=(torch.zeros(32, 64),))
    assert report.totals.parameters == sum(p.numel() for p in module.parameters())
    (linear,) = (row for row in report.operators if row.op == "linear")
    assert linear.flops == 2 * 32 * 64 * 128
    assert "<table>" in report._repr_html_()
