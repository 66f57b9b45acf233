"""The command line as a process, and small ONNX files to give it."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper


@pytest.fixture
def opbound(tmp_path):
    """Runs `opbound ARGUMENTS` in an empty folder and returns the finished process."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "opbound", *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            timeout=300,
            env={**os.environ, "COLUMNS": "200", **environment},
        )

    return run


@pytest.fixture
def light() -> Path:
    """The folder of real networks that onnx ships."""
    return Path(onnx.__file__).parent / "backend/test/data/light"


def save_model(
    path: Path,
    nodes: list,
    shape: tuple,
    domains: tuple[str, ...] = (),
    stated: tuple[str, ...] = (),
) -> Path:
    """Writes a model of one input `x` and one output `y`; `stated` tensors have its shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        value_info=[helper.make_tensor_value_info(t, TensorProto.FLOAT, shape) for t in stated],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def relu_model(tmp_path) -> Path:
    """A model of fixed size."""
    return save_model(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])], (4, 8))


@pytest.fixture
def dynamic_model(tmp_path) -> Path:
    """A model whose picture has no size yet."""
    node = helper.make_node("Relu", ["x"], ["y"])
    return save_model(tmp_path / "dynamic.onnx", [node], (1, 3, "height", "width"))


@pytest.fixture
def custom_model(tmp_path) -> Path:
    """A model with an operator that nobody has heard of."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="first"),
        helper.make_node("Frobnicate", ["h"], ["f"], name="odd_one", domain="com.example"),
        helper.make_node("Relu", ["f"], ["y"], name="last"),
    ]
    return save_model(tmp_path / "custom.onnx", nodes, (4, 8), ("com.example",), ("f",))
