"""How fast opbound is: startup, one real network, and how the time grows with the layers.

    python benchmarks/speed.py [--full]

`--full` adds the training step of Llama-3.1-405B on 16,384 devices, which takes some 30 s because the
model is traced first. Times are wall-clock, those of `--full` the processor's; the ratios say more than the
seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    import onnx

    from importers import ImportedModel

LAYERS = (8, 32, 126, 1000)
WIDTH = 1024
HEADS = 16
TOKENS = 512


def process(*arguments: str) -> tuple[float, float]:
    """Wall-clock seconds and peak memory in MB of `python ARGUMENTS`, the best of three."""
    best_s, peak_mb = float("inf"), 0.0
    for _ in range(3):
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        best_s = min(best_s, time.perf_counter() - start)
        if status:
            sys.exit(f"python {' '.join(arguments)} failed")
        peak_mb = usage.ru_maxrss / 1e3
    return best_s, peak_mb


def transformer(layers: int) -> onnx.ModelProto:
    """A decoder of that many layers; its weights are declared and never stored."""
    # Imported late: a child's peak memory is at least what this process has when it starts it.
    from onnx import TensorProto, helper

    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        weights.append(tensor)
        return name

    def emit(op: str, *inputs: str, **attributes: object) -> str:
        result = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [result], name=result, **attributes))
        return result

    def constant(name: str, *values: int) -> str:
        weights.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    split = constant("split", 1, TOKENS, HEADS, WIDTH // HEADS)
    joined = constant("joined", 1, TOKENS, WIDTH)
    x = "x"
    for i in range(layers):
        h = emit("LayerNormalization", x, weight(f"n{i}", WIDTH), weight(f"m{i}", WIDTH))
        q, k, v = (
            emit(
                "Transpose",
                emit("Reshape", emit("MatMul", h, weight(f"{c}{i}", WIDTH, WIDTH)), split),
                perm=perm,
            )
            for c, perm in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3)))
        )
        a = emit("MatMul", emit("Softmax", emit("MatMul", q, k), axis=-1), v)
        a = emit("Reshape", emit("Transpose", a, perm=(0, 2, 1, 3)), joined)
        x = emit("Add", x, emit("MatMul", a, weight(f"o{i}", WIDTH, WIDTH)))
        h = emit("LayerNormalization", x, weight(f"g{i}", WIDTH), weight(f"b{i}", WIDTH))
        h = emit("Relu", emit("MatMul", h, weight(f"u{i}", WIDTH, 4 * WIDTH)))
        x = emit("Add", x, emit("MatMul", h, weight(f"d{i}", 4 * WIDTH, WIDTH)))
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        f"decoder of {layers} layers",
        [tensor("x", TensorProto.FLOAT, (1, TOKENS, WIDTH))],
        [tensor(x, TensorProto.FLOAT, (1, TOKENS, WIDTH))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def phases(model: str, **given: object) -> tuple[float, float]:
    """Seconds until the model is imported, and from there to the report."""
    from opbound.analysis import run
    from opbound.options import Options

    marks: list[tuple[str, float]] = [("start", time.perf_counter())]
    run(model, Options(**given), progress=lambda say: marks.append((say, time.perf_counter())))
    end = time.perf_counter()
    imported = next(at for say, at in marks if say.startswith("finding"))
    return imported - marks[0][1], end - imported


def large_model() -> None:
    """Llama-3.1-405B on 16,384 devices: tracing once, then one pipeline schedule after the other."""
    from opbound.analysis import Analysis
    from opbound.options import Options

    mesh = {"dp": 64, "tp": 8, "pp": 16, "cp": 2}
    print(f"\nLlama-3.1-405B in training, {', '.join(f'{a}={n}' for a, n in mesh.items())}")
    imports: dict[Hashable, ImportedModel] = {}
    for schedule in ("1f1b", "1f1b", "interleaved:4", "zb-h1", "zb-v", "dualpipe"):
        options = Options(
            mode="training",
            batch=2048,
            sequence=8192,
            dtype="bf16",
            parallel=mesh,
            sequence_parallel=True,
            schedule=schedule,
        )
        analysis = Analysis("hf:llama-3.1-405b", options, imports=imports)
        start = time.process_time()
        imported = analysis.imported("training", 8192)
        traced_s = time.process_time() - start
        step = analysis.price(imported)
        analysed_s = time.process_time() - start - traced_s
        title = f"{schedule}: step {step.cost.step_time_s:.2f} s"
        print(f"{title:<44}{traced_s:8.2f} s to import, {analysed_s:.2f} s to split and price")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also Llama-3.1-405B (some 30 s)")
    full = parser.parse_args().full

    spec = importlib.util.find_spec("onnx")
    light = Path(spec.origin).parent / "backend/test/data/light/light_resnet50.onnx"
    empty_s, _ = process("-c", "pass")
    print(f"{'whole process':<44}{'s':>8}{'MB':>8}{'x empty':>9}")
    for title, arguments in (
        ("python -c pass", ("-c", "pass")),
        ("import opbound", ("-c", "import opbound")),
        ("opbound --help", ("-m", "opbound", "--help")),
        ("opbound analyze light_resnet50.onnx", ("-m", "opbound", "analyze", str(light))),
    ):
        seconds, peak_mb = process(*arguments)
        print(f"{title:<44}{seconds:8.3f}{peak_mb:8.0f}{seconds / empty_s:9.1f}")

    print("\na decoder in training, tp=8, by its number of layers (x: against 8 layers)")
    print(f"{'layers':<44}{'import s':>10}{'x':>7}{'analysis s':>12}{'x':>7}")
    first: tuple[float, float] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            path = Path(folder) / f"{layers}.onnx"
            path.write_bytes(transformer(layers).SerializeToString())
            if first is None:
                phases(str(path), mode="training", parallel={"tp": 8})  # imports what is needed
            read_s, analysed_s = phases(str(path), mode="training", parallel={"tp": 8})
            first = first or (read_s, analysed_s)
            print(
                f"{layers:<44}{read_s:10.3f}{read_s / first[0]:7.1f}"
                f"{analysed_s:12.3f}{analysed_s / first[1]:7.1f}"
            )
    if full:
        large_model()


if __name__ == "__main__":
    main()
