"""`opbound annotate` as a process: figures on every node, and otherwise the very same model."""

import json

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

PREFIX = "opbound."


def notes_of(proto):
    return {p.key.removeprefix(PREFIX): p.value for p in proto.metadata_props if PREFIX in p.key}


def without_notes(model):
    """The model as it was before: its serialised form."""
    for proto in (model, *model.graph.node):
        kept = [p for p in proto.metadata_props if not p.key.startswith(PREFIX)]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
    return model.SerializeToString(deterministic=True)


def outputs_of(path, **arrays):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, arrays)


def annotate(opbound, *arguments):
    process = opbound("annotate", *arguments)
    assert process.returncode == 0, process.stderr
    assert process.stdout == process.stderr == ""


@pytest.fixture
def outside_model(tmp_path):
    """y = x W + b, with W in a file beside the model."""
    weight = np.random.default_rng(5).normal(size=(64, 32)).astype(np.float32)
    bias = numpy_helper.from_array(np.arange(32, dtype=np.float32), "b")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "W", "b"], ["y"], name="layer.gemm")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 32))],
        [numpy_helper.from_array(weight, "W"), bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="author", value="somebody")
    path = tmp_path / "gemm.onnx"
    onnx.save(model, path, save_as_external_data=True, location="gemm.bin", size_threshold=1024)
    return path


def test_a_real_network(opbound, light, tmp_path):
    source = light / "light_squeezenet.onnx"
    annotate(opbound, source, "-o", "out.onnx", "--hardware", "a100-sxm-80gb")
    before, after = onnx.load(source), onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(after)
    figures = [notes_of(node) for node in after.graph.node]
    for node, notes in zip(after.graph.node, figures, strict=True):
        # A constant and a dropout that is left out at inference run nothing.
        assert bool(notes) == (node.op_type not in ("ConstantOfShape", "Dropout"))

    process = opbound("analyze", source, "--hardware", "a100-sxm-80gb", "--format", "json")
    totals = json.loads(process.stdout)["totals"]
    for key in ("flops", "bytes_read", "bytes_written"):
        assert sum(int(notes[key]) for notes in figures if notes) == totals[key]
    step_s = sum(float(notes["time_s"]) for notes in figures if notes)
    assert step_s == pytest.approx(totals["step_time_s"])
    assert float(notes_of(after)["step_time_s"]) == totals["step_time_s"]
    assert notes_of(after)["hardware"].startswith("a100-sxm-80gb")

    assert without_notes(after) == before.SerializeToString(deterministic=True)
    picture = np.random.default_rng(3).normal(size=(1, 3, 224, 224)).astype(np.float32)
    (ours,), (theirs,) = (
        outputs_of(path, data_0=picture) for path in (tmp_path / "out.onnx", source)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_figures_of_a_node_are_those_of_all_its_operators(opbound, outside_model, tmp_path):
    annotate(opbound, outside_model, "-o", "out.onnx")
    (node,) = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.node
    notes = notes_of(node)
    # The product, a multiply-add being 2, and an addition per element of the bias' epilogue.
    assert int(notes["flops"]) == 2 * 4 * 64 * 32 + 4 * 32
    assert notes["bound"] in notes["summary"]


def test_weights_stay_where_they_are(opbound, outside_model, tmp_path):
    weights = (tmp_path / "gemm.bin").read_bytes()
    x = np.random.default_rng(3).normal(size=(4, 64)).astype(np.float32)
    (before,) = outputs_of(outside_model, x=x)
    annotate(opbound, outside_model, "-o", "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gemm.bin", "gemm.onnx", "out.onnx"]
    assert (tmp_path / "gemm.bin").read_bytes() == weights
    (after,) = outputs_of(tmp_path / "out.onnx", x=x)
    np.testing.assert_array_equal(after, before)


def test_annotating_again_and_in_place_replaces_the_notes(opbound, outside_model):
    original = outside_model.read_bytes()
    annotate(opbound, outside_model, "-o", outside_model)
    once = outside_model.read_bytes()
    annotate(opbound, outside_model, "-o", outside_model)
    assert outside_model.read_bytes() == once
    annotate(opbound, outside_model, "-o", outside_model, "--batch", 8)
    model = onnx.load(outside_model, load_external_data=False)
    assert "batch 8" in notes_of(model)["mode"]
    assert int(notes_of(model.graph.node[0])["flops"]) == 2 * 8 * 64 * 32 + 8 * 32
    assert [p.value for p in model.metadata_props if p.key == "author"] == ["somebody"]
    parsed = onnx.load_model_from_string(original)
    assert without_notes(model) == parsed.SerializeToString(deterministic=True)


@pytest.mark.parametrize("place", ["other/out.onnx", "gemm.bin", "nowhere/out.onnx", "."])
def test_a_place_that_would_lose_the_weights(opbound, outside_model, tmp_path, place):
    (tmp_path / "other").mkdir()
    weights = (tmp_path / "gemm.bin").read_bytes()
    before = sorted(tmp_path.rglob("*"))
    process = opbound("annotate", outside_model, "-o", place)
    assert_one_line(process)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "gemm.bin").read_bytes() == weights


def test_nodes_of_one_name_share_their_figures(opbound, tmp_path, relu_model):
    model = onnx.load(relu_model)
    model.graph.node[0].output[0] = "h"
    model.graph.node.append(helper.make_node("Exp", ["h"], ["y"]))
    for node in model.graph.node:
        node.name = "same"
    onnx.save(model, relu_model)
    annotate(opbound, relu_model, "-o", "out.onnx")
    first, second = (notes_of(node) for node in onnx.load(tmp_path / "out.onnx").graph.node)
    assert first == second
    # 32 elements: relu counts 1 and exp 4 per element.
    assert int(first["flops"]) == 32 * (1 + 4)
    assert "2 nodes" in first["shared"]


def test_wrong_input(opbound, relu_model, tmp_path):
    (tmp_path / "out.onnx").write_text("old", encoding="utf-8")
    text = tmp_path / "model.onnxtxt"
    text.write_text(str(onnx.load(relu_model)), encoding="utf-8")
    (tmp_path / "broken.onnx").write_bytes(relu_model.read_bytes()[:-9])
    for arguments, says in (
        ((relu_model,), "-o"),
        (("missing.onnx", "-o", "out.onnx"), "missing.onnx"),
        (("hf:gpt2", "-o", "out.onnx"), "no ONNX file"),
        ((text, "-o", "out.onnx"), "text form"),
        (("broken.onnx", "-o", "out.onnx"), "broken.onnx"),
        ((relu_model, "-o", "out.onnx", "--parallel", "tp=2"), "--parallel"),
        ((relu_model, "-o", "out.onnx", "--hardware", "h100"), "h100-sxm-80gb"),
    ):
        assert_one_line(opbound("annotate", *arguments), says)
    assert (tmp_path / "out.onnx").read_text(encoding="utf-8") == "old"


def assert_one_line(process, says=""):
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("opbound: error: ")
    assert process.stderr.count("\n") == 1
    assert "internal error" not in process.stderr
    assert says in process.stderr


def test_what_only_hands_on_an_input_has_notes_too(opbound, tmp_path):
    text = "m (float[4, 8] x) => (float[4, 8] y, float[4, 8] z) { y = Relu (x) z = Identity (x) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {text}')
    onnx.save(model, tmp_path / "in.onnx")
    annotate(opbound, "in.onnx", "-o", "out.onnx")
    figures = [notes_of(node) for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert [notes["bytes_read"] for notes in figures] == ["128", "128"]
