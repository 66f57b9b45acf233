"""What it costs to analyse an ONNX file, beside onnx-tool and onnxsim where these are installed.

    python benchmarks/onnx_import.py [--peers PYTHON]

A real network without weights (light ResNet-50, from onnx's own tests), one with two gigabytes of weights
inside, and generated ones of up to 200,000 nodes: a chain that repeats, and one whose operators follow
each other at random. Whole processes are timed, with their peak memory; s CPU is what the machine's other
work does not change, and ratios say more than seconds. PYTHON is an interpreter that has the peers, for
example of another virtual environment; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx import TensorProto

NODES = (25_000, 50_000, 100_000, 200_000)
PEER_NODES = 25_000
"""The peers take minutes for larger graphs."""
WEIGHT_BYTES = 1 << 27
WEIGHTS = 15
LIMIT_S = 600

_ONNX_TOOL = "import sys, onnx_tool; onnx_tool.model_profile(sys.argv[1])"
_ONNXSIM = (
    "import sys, onnx; from onnxsim import simplify; from onnxsim import model_info;"
    "m = onnx.load(sys.argv[1]); model_info.print_simplifying_info(m, simplify(m)[0])"
)


def process(*command: str) -> tuple[float, float, float] | None:
    """Seconds by the clock and of the CPU, the better of two runs, and peak memory in MB; None: it fails."""
    best_s, cpu_s, peak_mb = float("inf"), float("inf"), 0.0
    for _ in range(2):
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        took_s = time.perf_counter() - start
        if status:
            return None
        best_s, peak_mb = min(best_s, took_s), usage.ru_maxrss / 1e3
        cpu_s = min(cpu_s, usage.ru_utime + usage.ru_stime)
        if took_s > LIMIT_S / 10:
            break
    return best_s, cpu_s, peak_mb


def chain(path: Path, nodes: int) -> None:
    """Writes a model of that many nodes in a chain."""
    from onnx import helper

    kinds = ("MatMul", "Add", "Relu", "Mul")
    made, weights, x = [], [], "x"
    for i in range(nodes):
        kind = kinds[i % len(kinds)]
        operands = [x]
        if kind != "Relu":
            shape = (64, 64) if kind == "MatMul" else (64,)
            weights.append(_external(f"w{i}", shape))
            operands.append(f"w{i}")
        made.append(helper.make_node(kind, operands, [f"t{i}"], name=f"layer{i // 4}.{kind}"))
        x = f"t{i}"
    _write(path, made, weights, (8, 64), x)


def shuffled(path: Path, nodes: int) -> None:
    """Writes a model of that many nodes in which nothing repeats for long."""
    from onnx import helper

    rng = random.Random(0)
    kinds = ("Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Abs")
    names = ["x", *(f"t{i}" for i in range(nodes))]
    made = [
        helper.make_node(rng.choice(kinds), [names[i]], [names[i + 1]], name=f"node{i}")
        for i in range(nodes)
    ]
    _write(path, made, [], (8, 64), names[-1])


def heavy(path: Path) -> None:
    """Writes a model with its weights in the file, tensor by tensor, so that memory stays small."""
    from onnx import TensorProto, helper

    side = int((WEIGHT_BYTES // 4) ** 0.5)
    names = [f"w{i}" for i in range(WEIGHTS)]
    made = [
        helper.make_node("MatMul", ["x" if i == 0 else f"t{i - 1}", name], [f"t{i}"])
        for i, name in enumerate(names)
    ]
    _write(path, made, [], (1, side), f"t{WEIGHTS - 1}")
    zeros = bytes(1 << 20)
    with path.open("ab") as file:
        # A further graph field is merged into the first: each holds one initializer.
        for name in names:
            head = TensorProto(name=name, dims=(side, side), data_type=TensorProto.FLOAT)
            raw = head.SerializeToString() + b"\x4a" + _varint(side * side * 4)
            size = len(raw) + side * side * 4
            tensor = b"\x2a" + _varint(size)
            file.write(b"\x3a" + _varint(len(tensor) + size) + tensor + raw)
            left = side * side * 4
            while left:
                file.write(zeros[: min(left, len(zeros))])
                left -= min(left, len(zeros))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes((*encoded, value))


def _external(name: str, shape: tuple[int, ...]) -> TensorProto:
    from onnx import TensorProto

    tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def _write(path: Path, nodes: list, weights: list, shape: tuple[int, ...], result: str) -> None:  # type: ignore[type-arg]
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        path.stem,
        [info("x", TensorProto.FLOAT, shape)],
        [info(result, TensorProto.FLOAT, shape)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON")
    peers = parser.parse_args().peers
    tools = [("opbound", (sys.executable, "-m", "opbound", "analyze"))]
    for name, module, code in (
        ("onnx-tool", "onnx_tool", _ONNX_TOOL),
        ("onnxsim", "onnxsim", _ONNXSIM),
    ):
        if process(peers, "-c", f"import {module}") is None:
            print(f"{name} is not installed: left out")
        else:
            tools.append((name, (peers, "-c", code)))
    spec = importlib.util.find_spec("onnx")
    light = Path(spec.origin).parent / "backend/test/data/light/light_resnet50.onnx"
    print(f"{'file':<26}{'tool':<12}{'s':>9}{'s CPU':>9}{'MB':>8}{'time x':>9}{'memory x':>10}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        files: list[tuple[str, Path, Callable[[], None] | None, bool]] = [
            ("light ResNet-50", light, None, True),
            ("2 GB of weights inside", path, partial(heavy, path), True),
        ]
        for title, make in (("in a chain", chain), ("at random", shuffled)):
            files += [
                (f"{n:,} {title}", path, partial(make, path, n), n <= PEER_NODES) for n in NODES
            ]
        for title, file, write, peers_too in files:
            if write is not None:
                # In a process of its own: a child's peak is at least what its parent has.
                pid = os.fork()
                if pid == 0:
                    write()
                    os._exit(0)
                os.waitpid(pid, 0)
            _compare(title, file, tools if peers_too else tools[:1])


def _compare(title: str, path: Path, tools: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    own: tuple[float, float, float] | None = None
    for name, command in tools:
        found = process(*command, str(path))
        own = found if name == "opbound" else own
        if found is None:
            print(f"{title:<26}{name:<12}{'fails':>9}")
        elif own is not None:
            figures = f"{found[0]:9.2f}{found[1]:9.2f}{found[2]:8.0f}"
            print(
                f"{title:<26}{name:<12}{figures}{found[0] / own[0]:9.2f}{found[2] / own[2]:10.2f}"
            )


if __name__ == "__main__":
    main()
