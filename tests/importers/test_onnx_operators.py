"""Every operator of the standard, and every node test that onnx ships."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import defs

from graph_ir.errors import DimensionError, OpboundError
from graph_ir.op_def import all_ops
from importers import load
from importers.onnx_ops import RULES, rule_of
from importers.onnx_resolve import _ADOPTED, _SPECIAL

# Their function bodies are subgraphs over sequences; they are expanded, not listed.
DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview.training")


def newest_schemas():
    newest = {}
    for schema in defs.get_all_schemas_with_history():
        key = (schema.domain, schema.name)
        if key not in newest or schema.since_version > newest[key].since_version:
            newest[key] = schema
    return newest


def test_every_standard_operator_has_a_rule_or_a_body():
    missing = []
    for (domain, name), schema in newest_schemas().items():
        if domain not in DOMAINS or schema.deprecated:
            continue
        known = (domain, name) in RULES or (domain, name) in _SPECIAL
        has_body = schema.has_function or schema.has_context_dependent_function
        if not known and not has_body and name != "Gradient":
            missing.append(f"{domain}::{name}")
    assert missing == []


def test_every_operator_of_onnxruntime_has_a_rule_or_a_body():
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    bodies = {
        key
        for key, s in newest_schemas().items()
        if s.has_function or s.has_context_dependent_function
    }
    missing = {
        f"{s.domain}::{s.name}"
        for s in state.get_all_operator_schema()
        if (s.domain, s.name) not in {*RULES, *_SPECIAL, *bodies}
        and not (s.domain == "com.microsoft" and s.name in _ADOPTED)
    }
    # A part compiled for one device says nothing of itself; the rest are experiments that were given
    # up. They count their bytes, and a note says so.
    exempt = {"com.microsoft::EPContext", "com.microsoft::Snpe", "com.microsoft::AttnLSTM"}
    exempt |= {"::GRUUnit", "::DynamicSlice", "::GivenTensorFill", "::DisentangledAttention_TRT"}
    assert missing - exempt == set()
    assert all(rule_of(*name.split("::")) for name in exempt)


def test_onnxruntimes_rules_are_for_operators_that_it_has():
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    known = {s.name for s in state.get_all_operator_schema() if s.domain == "com.microsoft"}
    # In older versions, or only where it is built for another device.
    known |= {"BiasAdd", "BiasDropout", "FusedMatMulActivation", "GemmFastGelu", "GroupNorm"}
    known |= {"MatMulBnb4", "SkipGroupNorm", "SimplifiedLayerNormalization"}
    ours = {name for domain, name in (*RULES, *_SPECIAL) if domain == "com.microsoft"}
    assert ours - known == set()
    assert len(ours) > 120


def test_rules_are_for_operators_that_exist():
    """A misspelt rule would never be used."""
    known = {(s.domain, s.name) for s in defs.get_all_schemas_with_history()}
    # Removed from the standard, or onnxruntime's own in the standard domain.
    known |= {("", name) for name in ("SpatialBN", "SimplifiedLayerNormalization")}
    foreign = {"ConcatFromSequence", "Identity", "MemcpyFromHost", "MemcpyToHost"}
    # Plug-ins that exporters write into the standard domain.
    plugins = {name for domain, name in RULES if domain == "trt.plugins"}
    experimental = {"Affine", "Crop", "ImageScaler", "ParametricSoftplus", "Scale", "ScaledTanh"}
    for domain, name in RULES:
        if domain in DOMAINS and name not in foreign | experimental | plugins:
            assert (domain, name) in known, (domain, name)
    assert len(all_ops()) > 100


@pytest.mark.slow
def test_shapes_of_all_node_tests_of_onnx(tmp_path):
    """1,800 models of one operator, with the shapes that their authors computed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = [c for c in collect_testcases(None) if c.model is not None]
    right, wrong, refused = 0, [], []
    path = tmp_path / "case.onnx"
    for case in cases:
        path.write_bytes(case.model.SerializeToString())
        try:
            model = load(path)
        except OpboundError as error:
            # Shapes that depend on the contents of an input, which a file cannot tell.
            if not isinstance(error, DimensionError):
                refused.append((case.name, str(error)))
            continue
        expected = case.data_sets[0][1]
        if not all(isinstance(a, np.ndarray) for a in expected):
            continue
        maximum = any("maximum" in note for note in model.notes)
        for value, array in zip(model.graph.outputs, expected, strict=True):
            if value.type.shape != array.shape and not maximum:
                wrong.append((case.name, value.type.shape, array.shape))
        right += 1
    assert not wrong
    assert len(refused) <= 1  # Scan before opset 9
    assert right > 0.8 * len(cases)


def test_functions_of_a_model_and_of_a_schema_are_expanded(onnx_model, tmp_path):
    body = [
        helper_node("Mul", ["a", "a"], ["b"]),
        helper_node("LeakyRelu", ["b"], ["c"], alpha=("ref", "slope")),
    ]
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("my", 1)]
    function = onnx.helper.make_function("my", "SquareLeaky", ["a"], ["c"], body, opsets, ["slope"])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("SquareLeaky", ["x"], ["y"], "block", domain="my", slope=0.3)],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, (2, 3))],
        [onnx.helper.make_tensor_value_info("y", 1, (2, 3))],
    )
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    path = tmp_path / "function.onnx"
    onnx.save(model, path)
    nodes = load(path).graph.nodes
    assert [n.op for n in nodes] == ["mul", "leaky_relu"]
    assert nodes[1].attrs["alpha"] == pytest.approx(0.3)
    assert all(n.name.startswith("block/") for n in nodes)
    path = onnx_model(
        "m (float[2, 5] x, int64[2] t) => (float l) { l = SoftmaxCrossEntropyLoss (x, t) }"
    )
    assert "log_softmax" in [n.op for n in load(path).graph.nodes]


def helper_node(op, inputs, outputs, **attributes):
    node = onnx.helper.make_node(op, inputs, outputs)
    for name, (_, reference) in attributes.items():
        attribute = node.attribute.add(name=name, type=onnx.AttributeProto.FLOAT)
        attribute.ref_attr_name = reference
    return node


def test_branches_loops_and_their_notes(onnx_model):
    text = (
        "m (float[4, 4] x, bool p) => (float[4, 4] y) { y = If (p) <"
        "then_branch = a () => (float[4, 4] z) { z = MatMul (x, x) },"
        "else_branch = b () => (float[4, 4] z) { z = Relu (x) }> }"
    )
    model = load(onnx_model(text))
    assert [n.op for n in model.graph.nodes] == ["matmul"]
    assert "then branch" in model.notes[0]
    known = text.replace("bool p)", "bool q)").replace(
        "{ y =", "{ p = Constant <value = bool {0}> () y ="
    )
    assert [n.op for n in load(onnx_model(known)).graph.nodes] == ["relu"]


def test_a_loop_that_the_data_ends_asks_for_its_trips(onnx_model):
    text = (
        "m (float[2] x, int64 n, bool t) => (float[2] y) { y = Loop (n, t, x) <body = b "
        "(int64 i, bool c, float[2] a) => (bool d, float[2] o) { d = Identity (c) o = Relu (a) }> }"
    )
    path = onnx_model(text)
    with pytest.raises(DimensionError, match=r"--trip-count 'y=N'"):
        load(path)
    assert len(load(path, trip_counts={"y": 5}).graph.nodes) == 5


def test_models_that_onnx_ships_have_the_shapes_of_their_data(light):
    """Converted and written out by PyTorch's old exporter, and little ones: 140 files."""
    wrong, checked = [], 0
    for path in sorted(light.parent.glob("*/*/model.onnx")):
        model = onnx.load(path, load_external_data=False)
        if path.parent.name == "test_sequence_model8":
            continue  # an input says into which parts it is split
        loaded = load(path)
        found = [v.type.shape for v in loaded.graph.outputs]
        expected = []
        for index, info in enumerate(model.graph.output):
            data = path.parent / f"test_data_set_0/output_{index}.pb"
            if data.is_file() and info.type.WhichOneof("value") == "tensor_type":
                tensor = onnx.TensorProto()
                tensor.ParseFromString(data.read_bytes())
                expected.append(tuple(tensor.dims))
        if expected:
            checked += 1
            if found != expected and not loaded.notes:
                wrong.append((path.parent.name, found, expected))
    assert not wrong
    assert checked > 120
