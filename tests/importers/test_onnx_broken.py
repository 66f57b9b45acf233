"""Broken files: one line each, whatever is wrong."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graph_ir.errors import ModelFileError, OpboundError, UnknownOperatorError
from importers import load


def write(path, nodes, inputs=(("x", (2, 3)),), outputs=("y",), initializers=(), opset=17):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, **attributes)


def one_line(path, match, kind=ModelFileError, **options):
    with pytest.raises(kind, match=match) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


def test_missing_empty_truncated_and_foreign_files(tmp_path, light):
    one_line(tmp_path / "absent.onnx", "no file")
    (tmp_path / "empty.onnx").touch()
    one_line(tmp_path / "empty.onnx", "empty")
    whole = (light / "light_squeezenet.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    one_line(tmp_path / "cut.onnx", "truncated")
    (tmp_path / "text.onnx").write_text("this is a readme, not a model\n" * 20)
    one_line(tmp_path / "text.onnx", "no ONNX model|no graph")
    (tmp_path / "folder.onnx").mkdir()
    one_line(tmp_path / "folder.onnx", "directory")
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)) * 8)
    one_line(tmp_path / "noise.onnx", "no ONNX model|no graph")


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        ([node("Relu", ["nowhere"], ["y"])], "'nowhere', which nothing produces"),
        ([node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"])], "exists already"),
        ([node("Add", ["x", "b"], ["a"]), node("Abs", ["a"], ["b"])], "cycle"),
        ([node("Relu", ["x"], ["z"])], "'y', which nothing produces"),
        ([node("MatMul", ["x", "x"], ["y"])], "MatMul"),
        ([node("Transpose", ["x"], ["y"], perm=[0, 5])], "Transpose"),
    ],
)
def test_graphs_that_cannot_be(tmp_path, nodes, match):
    one_line(write(tmp_path / "m.onnx", nodes), match)


def test_unsorted_nodes_are_sorted(tmp_path):
    path = write(tmp_path / "m.onnx", [node("Abs", ["a"], ["y"]), node("Relu", ["x"], ["a"])])
    assert [n.op for n in load(path).graph.nodes] == ["relu", "abs"]


def test_absurd_dims_and_wrong_element_counts(tmp_path):
    huge = [("x", (2**62, 4))]
    one_line(write(tmp_path / "a.onnx", [node("Relu", ["x"], ["y"])], huge), "dim of")
    tensor = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    tensor.dims[1] = 4
    nodes = [node("Add", ["x", "w"], ["y"])]
    one_line(write(tmp_path / "b.onnx", nodes, initializers=[tensor]), "24 bytes")
    large = onnx.numpy_helper.from_array(np.ones((2000, 3), np.float32), "w")
    large.dims[0] = 3000
    one_line(write(tmp_path / "c.onnx", nodes, initializers=[large]), "24000 bytes")
    negative = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    negative.dims[0] = -2
    one_line(write(tmp_path / "d.onnx", nodes, initializers=[negative]), "-2")


def test_duplicate_inputs_and_initializers(tmp_path):
    twice = [("x", (2, 3)), ("x", (2, 3))]
    one_line(write(tmp_path / "a.onnx", [node("Relu", ["x"], ["y"])], twice), "twice")
    w = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    nodes = [node("Add", ["x", "w"], ["y"])]
    one_line(write(tmp_path / "b.onnx", nodes, initializers=[w, w]), "twice")


def test_unknown_operators_name_the_node_and_where_to_add_it(tmp_path):
    custom = helper.make_node("Frobnicate", ["x"], ["y"], "net/blk/frob", domain="my.ops")
    graph = helper.make_graph(
        [custom],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 3))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    path = tmp_path / "custom.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    with pytest.raises(UnknownOperatorError) as caught:
        load(path)
    message = str(caught.value)
    for word in ("net/blk/frob", "my.ops::Frobnicate", "net.blk", "importers/onnx_ops/"):
        assert word in message
    (only,) = load(path, allow_unknown=True).graph.nodes
    assert only.op == "unknown"
    assert (only.bytes_read, only.bytes_written) == (24, 24)
    assert only.attrs["frontend"] == "my.ops::Frobnicate"


def test_functions_that_call_themselves_and_functions_that_explode(tmp_path):
    """Thirty functions that each call the next one twice would be a billion nodes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]

    def function(name, calls):
        body = [
            helper.make_node(c, ["a" if i == 0 else f"t{i}"], [f"t{i + 1}"], domain="f")
            for i, c in enumerate(calls)
        ]
        body.append(helper.make_node("Relu", [f"t{len(calls)}"], ["b"]))
        return helper.make_function("f", name, ["a"], ["b"], body, opsets)

    graph = helper.make_graph(
        [helper.make_node("F0", ["x"], ["y"], domain="f")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 3))],
    )
    loop = helper.make_model(graph, opset_imports=opsets, functions=[function("F0", ["F0"])])
    (tmp_path / "loop.onnx").write_bytes(loop.SerializeToString())
    one_line(tmp_path / "loop.onnx", "deeper")
    chain = [function(f"F{i}", [f"F{i + 1}"] * 2) for i in range(30)]
    relu = [helper.make_node("Relu", ["a"], ["b"])]
    chain.append(helper.make_function("f", "F30", ["a"], ["b"], relu, opsets))
    bomb = helper.make_model(graph, opset_imports=opsets, functions=chain)
    (tmp_path / "bomb.onnx").write_bytes(bomb.SerializeToString())
    one_line(tmp_path / "bomb.onnx", "expand to more than")


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bits_never_crash(tmp_path, light, seed):
    data = bytearray((light / "light_squeezenet.onnx").read_bytes())
    random = np.random.default_rng(seed)
    for place in random.integers(0, len(data), 1 + seed % 4):
        data[place] ^= 1 << int(random.integers(0, 8))
    path = tmp_path / "flipped.onnx"
    path.write_bytes(bytes(data))
    messages = []
    try:
        load(path)
    except OpboundError as error:
        messages.append(str(error))
    assert not any("\n" in message for message in messages)
