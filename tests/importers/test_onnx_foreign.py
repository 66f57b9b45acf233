"""Operators of other makers' domains: what they mean where that is public, else the bytes that they move."""

import onnx
import pytest

from graph_ir.errors import DimensionError, UnknownOperatorError
from importers import load

BOXES, SCORES = ("f", 1, 8400, 4), ("f", 1, 8400, 80)


@pytest.mark.parametrize("domain", ["", "TRT::"])
def test_suppression_of_boxes(node_model, domain):
    """Result shapes as TensorRT's documentation of its plug-ins states them."""
    op = f"{domain}EfficientNMS_TRT"
    path = node_model(op, [BOXES, SCORES], 4, {"max_output_boxes": 100})
    graph = load(path).graph
    assert [v.type.shape for v in graph.outputs] == [(1, 1), (1, 100, 4), (1, 100), (1, 100)]
    assert sum(n.bytes_read for n in graph.nodes) >= 4 * 8400 * 80


def test_deformable_convolutions_are_the_standards(node_model, contraction_flops):
    image, offsets = ("f", 1, 8, 16, 16), ("f", 1, 18, 16, 16)
    mask, weight, bias = ("f", 1, 9, 16, 16), ("f", 4, 8, 3, 3), ("f", 4)
    attributes = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    for op, operands in (
        ("mmcv::MMCVDeformConv2d", [image, offsets, weight]),
        ("mmdeploy::MMCVModulatedDeformConv2d", [image, offsets, mask, weight, bias]),
    ):
        graph = load(node_model(op, operands, 1, attributes)).graph
        assert contraction_flops(graph) == 2 * 4 * 8 * 9 * 16 * 16
        assert graph.outputs[0].type.shape == (1, 4, 16, 16)


@pytest.mark.parametrize(
    "op",
    [
        "org.pytorch.aten::ATen",
        "org.openvinotoolkit::FakeQuantize",
        "mmdeploy::Anything",
        "CustomQKVToContextPluginDynamic",
        "com.microsoft::EPContext",
    ],
)
def test_without_a_public_meaning_bytes_count_and_a_note_says_so(node_model, op):
    path = node_model(op, [("f", 8, 16)], 1, {})
    with pytest.raises(DimensionError, match=r"--dim 'y0\.0=INT'"):
        load(path)
    for how in ("by the user", "by the file"):
        if how == "by the file":
            model = onnx.load(path)
            model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y0", 1, (2, 3)))
            onnx.save(model, path)
        dims = {"y0.0": 2, "y0.1": 3} if how == "by the user" else {}
        loaded = load(path, dims=dims)
        (node,) = loaded.graph.nodes
        assert (node.op, node.bytes_read, node.bytes_written) == ("unknown", 4 * 8 * 16, 4 * 2 * 3)
        assert any(op.rpartition("::")[2] in note for note in loaded.notes)


def test_extensions_of_onnxruntime_cost_what_they_move(node_model):
    """Text and pictures, as the standard's own string operators."""
    path = node_model("ai.onnx.contrib::BertTokenizer", [("s", 4)], 1, {})
    loaded = load(path, dims={"y0.0": 20})
    assert sum(n.bytes_written for n in loaded.graph.nodes) > 0
    assert not any(n.op == "unknown" for n in loaded.graph.nodes)


def test_a_domain_that_nobody_knows_is_still_an_error(node_model):
    path = node_model("com.example::Frobnicate", [("f", 8, 16)], 1, {})
    with pytest.raises(UnknownOperatorError, match="--allow-unknown"):
        load(path)
