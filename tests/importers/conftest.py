"""Small ONNX models from text, foreign models, and what onnxruntime makes of them."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from graph_ir.evaluate import run_graph
from importers import load


@pytest.fixture
def light():
    """The folder of real networks that onnx ships."""
    return Path(onnx.__file__).parent / "backend/test/data/light"


@pytest.fixture
def zoo():
    """The folder of foreign ONNX files."""
    shared = Path(os.environ.get("OPBOUND_SHARED", Path(__file__).parents[3] / "shared"))
    if not (shared / "zoo/INDEX.csv").is_file():
        pytest.skip(
            f"no foreign models in {shared}/zoo: set OPBOUND_SHARED to the folder around it"
        )
    return shared / "zoo"


@pytest.fixture
def onnx_model(tmp_path):
    """Writes a model given as a graph in ONNX's text syntax; `weights` become initializers."""

    def write(text, *, opset=17, weights=None, ir=10, domains=(), name="model.onnx"):
        imports = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in domains)])
        head = f"<ir_version: {ir}, opset_import: [{imports}]>\n"
        model = onnx.parser.parse_model(head + text)
        for label, array in (weights or {}).items():
            tensor = onnx.numpy_helper.from_array(np.asarray(array), label)
            model.graph.initializer.append(tensor)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return write


LETTERS = {
    "f": onnx.TensorProto.FLOAT,
    "h": onnx.TensorProto.FLOAT16,
    "?": onnx.TensorProto.BOOL,
    "b": onnx.TensorProto.INT8,
    "B": onnx.TensorProto.UINT8,
    "i": onnx.TensorProto.INT32,
    "l": onnx.TensorProto.INT64,
    "8": onnx.TensorProto.FLOAT8E4M3FN,
    "s": onnx.TensorProto.STRING,
}


@pytest.fixture
def node_model(tmp_path):
    """Writes a model of one node, `domain::Name`, whose result shapes the file leaves open.

    Operands are shapes with a letter of LETTERS in front, arrays (initializers), or None where absent.
    """

    def write(op, operands, outputs=1, attributes=None, opset=21):
        domain, _, name = op.rpartition("::")
        names = ["" if x is None else f"x{i}" for i, x in enumerate(operands)]
        weights = [
            onnx.numpy_helper.from_array(x, f"x{i}")
            for i, x in enumerate(operands)
            if isinstance(x, np.ndarray)
        ]
        inputs = [
            onnx.helper.make_tensor_value_info(f"x{i}", LETTERS[x[0]], x[1:])
            for i, x in enumerate(operands)
            if isinstance(x, tuple)
        ]
        results = [f"y{i}" for i in range(outputs)]
        infos = [onnx.helper.make_tensor_value_info(r, 1, None) for r in results]
        node = onnx.helper.make_node(
            name, names, results, "node", domain=domain, **(attributes or {})
        )
        graph = onnx.helper.make_graph([node], "g", inputs, infos, initializer=weights)
        imports = [
            onnx.helper.make_opsetid(d, {"": opset, "ai.onnx.ml": 3}.get(d, 1))
            for d in dict.fromkeys(("", "com.microsoft", domain))
        ]
        path = tmp_path / "node.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), path)
        return path

    return write


@pytest.fixture
def contraction_flops():
    """FLOPs of everything in a graph that multiplies and sums."""

    def count(graph):
        kinds = ("contraction", "attention")
        return sum(n.flops * n.count for n in graph.nodes if n.definition.kind in kinds)

    return count


@pytest.fixture
def run_both():
    """The results of the imported graph, evaluated in numpy, and those of onnxruntime."""
    runtime = pytest.importorskip("onnxruntime")

    def run(path, inputs, weights=None, **options):
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        expected = session.run(None, inputs)
        graph = load(path, **options).graph
        known = {**inputs, **(weights or {})}
        values = {
            v: np.asarray(known[v.name]).reshape(v.type.shape) if v.name in known else v.data
            for v in graph.inputs
        }
        found = run_graph(graph, values)
        return [found[v] for v in graph.outputs], expected

    return run
