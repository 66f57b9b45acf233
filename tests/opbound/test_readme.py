"""What README.md shows is what happens: its Python runs, its commands print what it says.

`make readme` writes the commands' present output into it (see `shown_commands`).
"""

import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parent))

from shown_commands import Page, run, run_python

README = Page(Path(__file__).parents[2] / "README.md")


@pytest.fixture
def folder(tmp_path, light, monkeypatch):
    """A folder with the README's files and the model that its commands name."""
    README.write_files(tmp_path)
    (tmp_path / "resnet50.onnx").symlink_to(light / "light_resnet50.onnx")
    onnx.save(pairwise_model(), tmp_path / "pairwise.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def pairwise_model() -> onnx.ModelProto:
    """Tokens, 4 x 128 x 64, scored against each other by an operator of the user's own domain."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("PairwiseScore", ["q", "k"], ["s"], domain="com.example")],
        "pairwise",
        [value(name, TensorProto.FLOAT, (4, 128, 64)) for name in "qk"],
        [value("s", TensorProto.FLOAT, (4, 128, 128))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_commands_print_what_the_readme_shows(folder):
    README.run_commands(folder)


def test_the_python_runs(folder):
    README.run_python(folder)


def run_in_package(folder: Path, package: str, file: str, code: str) -> str:
    """Runs code with one more file in a package, as if it had been put there."""
    place = folder / "added"
    place.mkdir()
    (folder / file).rename(place / file)
    prelude = f"import {package}; {package}.__path__.append({str(place)!r})\n"
    return run_python(prelude + code, folder)


def test_an_operator_is_one_file(folder):
    """Costed, differentiated and split over devices from the one record."""
    code = """
import opbound
for parallel in (None, {"dp": 2}):
    report = opbound.analyze("pairwise.onnx", parallel=parallel, batch=4)
    (row,) = (row for row in report.operators if row.op == "pairwise_score")
    print(row.flops, row.bytes_read, row.engine != "")
"""
    flops, operands = 2 * 4 * 128 * 128 * 64, 2 * 4 * 128 * 64 * 4
    printed = run_in_package(folder, "graph_ir.ops", "pairwise_score.py", code)
    assert printed == f"{flops} {operands} True\n{flops // 2} {operands // 2} True\n"


def test_a_device_is_one_file(folder):
    printed = run(
        "opbound analyze resnet50.onnx --dtype bf16 --hardware my-device.yaml --format json", folder
    )
    assert '"name": "my-device"' in printed
    assert "memory:sram" in printed or "memory:dram" in printed


def test_a_strategy_is_one_file(folder):
    pytest.importorskip("transformers")
    code = """
import opbound
whole = opbound.analyze("hf:gpt2", sequence=256)
part = opbound.analyze("hf:gpt2", sequence=256, parallel="sp=4")
products = [sum(row.flops for row in report.operators if row.op in ("matmul", "linear"))
            for report in (whole, part)]
print(products[0] / products[1])
print(sum(row.count for row in part.operators if row.op == "all_gather"))
"""
    ratio, gathers = run_in_package(folder, "partitioner.strategies", "tokens.py", code).split()
    # Every product with a weight is split by tokens: each of 4 devices has a quarter.
    assert float(ratio) == pytest.approx(4)
    # Queries, keys and values of the 12 layers are gathered for attention, and the logits at last.
    assert int(gathers) == 3 * 12 + 1
