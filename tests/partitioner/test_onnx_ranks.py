"""All ranks of a mesh compute what one device does, of ONNX files: exported ones and ones from elsewhere."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from blocks import Bottleneck, GptBlock, LlamaBlock  # noqa: E402
from ranks import PartitionedRun, numbers, one_device  # noqa: E402
from torch import nn  # noqa: E402

from graph_ir.fold import fold  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

ZOO = Path(os.environ.get("OPBOUND_SHARED", Path(__file__).parents[3] / "shared")) / "zoo"
SP = {"sequence_parallel": True}
TRANSFORMER: list[tuple[dict[str, int], dict[str, Any]]] = [
    ({"dp": 2}, {"zero": 3}),
    ({"tp": 2}, SP),
    ({"dp": 2, "tp": 2, "pp": 2}, {}),
]
CONVOLUTIONS: list[tuple[dict[str, int], dict[str, Any]]] = [
    ({"dp": 2, "tp": 2}, {"zero": 2}),
    ({"tp": 2, "pp": 2}, {}),
]


def prove(path: Path, meshes: list[tuple[dict[str, int], dict[str, Any]]], **sizes: int) -> None:
    graph = training_graph(fold(load(str(path), mode="training", **sizes).graph))
    given = numbers(graph)
    expected = one_device(graph, given)
    for mesh, options in meshes:
        parts = partition(graph, Strategy(Mesh(mesh), **options), lambda n: n.flops + 1.0)
        # A file's constants are of single precision, and its norms are made of small differences.
        compared = PartitionedRun(graph, parts, given).check(expected, tolerance=1e-4)
        assert compared > len(graph.nodes)


@pytest.mark.parametrize(
    ("block", "shape", "meshes"),
    [
        (GptBlock, (4, 8, 32), TRANSFORMER),
        pytest.param(LlamaBlock, (4, 8, 32), TRANSFORMER, marks=pytest.mark.slow),
        (Bottleneck, (4, 16, 8, 8), CONVOLUTIONS),
    ],
)
def test_exported_files(
    block: type[nn.Module],
    shape: tuple[int, ...],
    meshes: list[tuple[dict[str, int], dict[str, Any]]],
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    model = nn.Sequential(*[block() for _ in range(3)]).eval()
    names = {0: "batch", 1: "sequence"} if len(shape) == 3 else {0: "batch"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.randn(*shape),),
            str(path),
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": names},
        )
    prove(path, meshes, batch=shape[0], **({"sequence": shape[1]} if len(shape) == 3 else {}))


@pytest.mark.parametrize(
    ("name", "sizes", "meshes"),
    [
        ("vespa__dummy_transformer.onnx", {"batch": 4, "sequence": 16}, TRANSFORMER),
        ("rten__mnist.onnx", {"batch": 4}, CONVOLUTIONS),
        pytest.param(
            "windows-machine-learning__SqueezeNet_fp16.onnx",
            {"batch": 4},
            CONVOLUTIONS,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_files_from_elsewhere(
    name: str, sizes: dict[str, int], meshes: list[tuple[dict[str, int], dict[str, Any]]]
) -> None:
    if not (ZOO / name).exists():
        pytest.skip(f"{name} is not in {ZOO}: set OPBOUND_SHARED to the folder around it")
    prove(ZOO / name, meshes, **sizes)
