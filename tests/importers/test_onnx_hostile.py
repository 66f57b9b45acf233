"""Files made to exhaust whoever reads them: ten seconds and a gigabyte are enough for each."""

import os
import subprocess
import sys
from pathlib import Path

from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]
info, node = helper.make_tensor_value_info, helper.make_node


def ints(name, values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def branches(depth):
    """An If in an If in an If, as deep as protobuf reads."""
    leaf = [node("Relu", ["x"], ["end"])]
    graph = helper.make_graph(leaf, "b", [], [info("end", TensorProto.FLOAT, None)])
    for i in range(depth):
        other = helper.make_graph(leaf, "e", [], [info("end", TensorProto.FLOAT, None)])
        inner = node("If", ["c"], [f"y{i}"], then_branch=graph, else_branch=other)
        graph = helper.make_graph([inner], "b", [], [info(f"y{i}", TensorProto.FLOAT, None)])
    return graph.node[0]


def doubling(trips):
    """A loop that doubles what it carries."""
    body = helper.make_graph(
        [node("Identity", ["ci"], ["co"]), node("Concat", ["a", "a"], ["b"], axis=0)],
        "body",
        [info("i", TensorProto.INT64, ()), info("ci", TensorProto.BOOL, ()), info("a", 1, None)],
        [info("co", TensorProto.BOOL, ()), info("b", TensorProto.FLOAT, None)],
    )
    return node("Loop", ["n", "", "x"], ["y"], body=body), [helper.make_tensor("n", 7, [], [trips])]


HUGE = 1 << 62
LOOP, LIMIT = doubling(10_000)
# name: nodes, initializers, part of the message
FILES = {
    "branches": ([branches(29)], [], "imported"),
    "doubling": ([LOOP], LIMIT, "dim of"),
    "fill": ([node("ConstantOfShape", ["s"], ["y"])], [ints("s", [HUGE])], "dim of"),
    "fill2": ([node("ConstantOfShape", ["s"], ["y"])], [ints("s", [1 << 31] * 2)], "elements"),
    "tile": ([node("Tile", ["x", "s"], ["y"])], [ints("s", [1 << 39] * 2)], "dim of"),
    "rank": ([node("Expand", ["x", "s"], ["y"])], [ints("s", [2] * 5000)], "--dim"),
    "pad": ([node("Pad", ["x", "s"], ["y"])], [ints("s", [HUGE] * 4)], "overflow"),
    "names": ([node("Relu", ["a\nb" * 100_000], ["y"])], [], "nothing produces"),
    "perm": ([node("Transpose", ["x"], ["y"], perm=range(200_000))], [], "invalid"),
    "split": ([node("Split", ["x"], [f"y{i}" for i in range(50_000)])], [], "parts"),
    "sum": ([node("Sum", ["x"] * 30_000, ["y"])], [], "imported"),
    "einsum": (
        [node("Einsum", ["x"] * 200, ["y"], equation=",".join(["ij"] * 200) + "->ij")],
        [],
        "imported",
    ),
    "cycle": (
        [node("Add", ["x", f"t{(i + 1) % 20_000}"], [f"t{i}"]) for i in range(20_000)],
        [],
        "cycle",
    ),
}


def test_hostile_files_end_in_time_and_memory(tmp_path):
    for name, (nodes, initializers, _) in FILES.items():
        result = next((n for n in nodes[-1].output if n.startswith("y")), nodes[-1].output[0])
        graph = helper.make_graph(
            nodes,
            "g",
            [info("x", TensorProto.FLOAT, (2, 3)), info("c", TensorProto.BOOL, ())],
            [info(result, TensorProto.FLOAT, None)],
            initializers,
        )
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("onnx_hostile.py")), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = {line.split()[0]: line.split(maxsplit=2)[1:] for line in run.stdout.splitlines()}
    for name, (_, _, expected) in FILES.items():
        seconds, message = found[name]
        assert float(seconds) < 10, name
        assert expected in message, (name, message)
        assert len(message) < 1500
