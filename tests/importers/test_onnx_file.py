"""Loading: weights stay on disk, wherever they are and however large."""

import hashlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph_ir.errors import ModelFileError
from importers import load
from importers.onnx_wire import PAYLOAD_LIMIT_BYTES, strip_weights


def linear_model(weight, opset=17):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, weight.dims[0]))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def external(shape, location, offset=0):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_large_payloads_are_dropped_and_small_ones_kept():
    large = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    model = linear_model(large)
    small = np.arange(6, dtype=np.int64)
    model.graph.initializer.append(numpy_helper.from_array(small, "shape"))
    stripped = onnx.ModelProto.FromString(strip_weights(model.SerializeToString()))
    w, shape = stripped.graph.initializer
    assert large.ByteSize() > PAYLOAD_LIMIT_BYTES > stripped.ByteSize()
    assert (list(w.dims), w.raw_data) == ([64, 64], b"")
    assert w.external_data[0].value == str(64 * 64 * 4)
    np.testing.assert_array_equal(numpy_helper.to_array(shape), small)


def test_payloads_in_subgraphs_constants_and_typed_fields_are_dropped(tmp_path):
    big = helper.make_tensor("c", TensorProto.FLOAT, (40, 40), [0.5] * 1600)
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=big),
            helper.make_node("Add", ["x", "c"], ["z"]),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, (40, 40))],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["p"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (40, 40)),
            helper.make_tensor_value_info("p", TensorProto.BOOL, ()),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (40, 40))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    assert len(strip_weights(model.SerializeToString())) < 2000 < model.ByteSize()
    path = tmp_path / "if.onnx"
    onnx.save(model, path)
    (add,) = load(path).graph.nodes
    assert add.inputs[1].type.shape == (40, 40)


def test_a_huge_external_file_is_never_opened(tmp_path):
    """100 GB of weights in a sparse file: the time and memory of the graph alone."""
    path = tmp_path / "huge.onnx"
    onnx.save(linear_model(external((1 << 17, 1 << 18), "huge.data")), path)
    with (tmp_path / "huge.data").open("wb") as file:
        file.truncate(1 << 37)
    model = load(path)
    assert model.graph.parameters[0].type.bytes == 1 << 37
    assert model.graph.nodes[0].flops == 2 * 4 << 35
    assert model.notes == ()


def test_absent_external_data_is_a_note_and_outside_paths_are_refused(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(linear_model(external((8, 8), "gone.data")), path)
    assert "gone.data" in load(path).notes[0]
    for location in ("../secret.bin", "/etc/passwd", "a/../../b"):
        onnx.save(linear_model(external((8, 8), location)), path)
        with pytest.raises(ModelFileError, match="outside the model's folder"):
            load(path)


@pytest.mark.parametrize("inside", ["Constant", "If"])
def test_tensors_of_nodes_and_subgraphs_are_looked_at_too(tmp_path, inside):
    constant = helper.make_node("Constant", [], ["y"], value=external((4, 4), "/etc/passwd"))
    if inside == "If":
        branch = helper.make_graph(
            [constant], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 4))]
        )
        constant = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [constant],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, ())],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 4))],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="outside"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "location", ["..\\w.bin", "C:\\w.bin", "C:w.bin", "a/../../w.bin", "/w.bin", "nul\0.bin"]
)
def test_every_way_out_of_the_folder_is_refused(tmp_path, location):
    (tmp_path / "m.onnx").write_bytes(linear_model(external((4, 4), location)).SerializeToString())
    with pytest.raises(ModelFileError, match="outside"):
        load(tmp_path / "m.onnx")


def test_links_may_lead_to_the_models_own_store_and_nowhere_else(tmp_path):
    folder, store = tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir()
    store.mkdir()
    (store / "1").write_bytes(linear_model(external((4, 4), "w.bin")).SerializeToString())
    (store / "2").write_bytes(bytes(64))
    (folder / "w.bin").symlink_to(store / "2")
    (folder / "linked.onnx").symlink_to(store / "1")
    assert load(folder / "linked.onnx").notes == ()
    (folder / "copied.onnx").write_bytes((store / "1").read_bytes())
    with pytest.raises(ModelFileError, match="outside"):
        load(folder / "copied.onnx")
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to("w.bin")
    with pytest.raises(ModelFileError, match="outside"):
        load(folder / "copied.onnx")


def test_the_hash_is_the_files_own_unless_weights_are_inside(tmp_path):
    path = tmp_path / "m.onnx"
    hashes = []
    for fill, side in ((0, 8), (0, 64), (1, 64)):
        weight = numpy_helper.from_array(np.full((side, side), fill, np.float32), "w")
        path.write_bytes(linear_model(weight).SerializeToString())
        hashes.append(load(path).sha256)
        assert (hashes[-1] == hashlib.sha256(path.read_bytes()).hexdigest()) == (side == 8)
    assert hashes[0] != hashes[1] == hashes[2]


def test_a_file_saved_without_its_weights(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(linear_model(TensorProto(name="w", data_type=1, dims=(8, 8))), path)
    assert load(path).graph.parameters[0].type.shape == (8, 8)


def test_text_formats(tmp_path):
    from google.protobuf import text_format

    model = linear_model(numpy_helper.from_array(np.ones((3, 2), np.float32), "w"))
    path = tmp_path / "m.onnxtxt"
    path.write_text(text_format.MessageToString(model))
    assert load(path).graph.outputs[0].type.shape == (4, 2)
    path = tmp_path / "syntax.onnx"
    path.write_text(
        '<ir_version: 8, opset_import: ["" : 17]> m (float[2] x) => (y) { y = Relu (x) }'
    )
    assert [n.op for n in load(path).graph.nodes] == ["relu"]


def test_a_dtype_replaces_the_ordinary_floats_only(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(linear_model(numpy_helper.from_array(np.ones((3, 2), np.float32), "w")), path)
    graph = load(path, dtype="bf16").graph
    assert {v.type.dtype.label for v in (*graph.inputs, *graph.outputs)} == {"bfloat16"}


def test_memory_and_speed_do_not_follow_the_weights(tmp_path):
    """128 MB of weights inside the file, and a fraction of that in memory."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(1 << 12, 1 << 13))
    weight.raw_data = bytes(1 << 27)
    path = tmp_path / "heavy.onnx"
    path.write_bytes(linear_model(weight).SerializeToString())
    del weight
    code = f"""
import resource
from importers import load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load({str(path)!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 48 << 20
