"""Dynamic dims: bound by role or name; unbound and misspelt ones are errors that name the cure."""

import pytest

from graph_ir.errors import DimensionError, OpboundError
from importers import load

DYNAMIC = """
m (float[batch, seq_len, 8] x) => (float[batch, seq_len, 4] y) { y = MatMul (x, w) }
"""


@pytest.fixture
def dynamic(onnx_model):
    import numpy as np

    return onnx_model(DYNAMIC, weights={"w": np.ones((8, 4), np.float32)})


def test_batch_and_sequence_bind_by_role(dynamic):
    model = load(dynamic, batch=3, sequence=5)
    assert model.graph.inputs[0].type.shape == (3, 5, 8)
    assert model.graph.inputs[0].dim_names == ("batch", "sequence", None)
    assert model.dims == {"batch": 3, "seq_len": 5}
    assert (model.batch, model.sequence) == (3, 5)


def test_names_win_over_roles(dynamic):
    model = load(dynamic, batch=3, dims={"seq_len": 7})
    assert model.graph.outputs[0].type.shape == (3, 7, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ("'batch'", "--batch", "'x'")),
        ({"batch": 1}, ("'seq_len'", "--sequence", "'x'")),
        ({"batch": 1, "dims": {"seq_length": 4}}, ("seq_length", "'seq_len'")),
        ({"batch": 1, "sequence": 1, "dims": {"x.9": 4}}, ("x.9", "no dim")),
    ],
)
def test_what_is_missing_or_misspelt_is_named(dynamic, options, words):
    with pytest.raises(DimensionError) as caught:
        load(dynamic, **options)
    assert all(word in str(caught.value) for word in words)


def test_nameless_dims_are_called_by_input_and_place(onnx_model):
    path = onnx_model("m (float[?, 4] x) => (float[?, 4] y) { y = Relu (x) }")
    assert load(path, batch=6).graph.outputs[0].type.shape == (6, 4)
    assert load(path, dims={"x.0": 2}).graph.outputs[0].type.shape == (2, 4)


def test_expressions_and_the_cache(tmp_path):
    """Exporters write sums of dims where a name belongs."""
    import onnx
    from onnx import TensorProto, helper

    def tensor(name, *dims):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    inputs = [
        tensor("x", "batch_size", "sequence_length", 4),
        tensor("past_key", "batch_size", 2, "past_sequence_length", 4),
        tensor("mask", "batch_size", "past_sequence_length + sequence_length"),
    ]
    nodes = [helper.make_node("Relu", [i.name], [f"{i.name}_out"]) for i in inputs]
    outputs = [tensor(f"{i.name}_out", *[None] * len(i.type.tensor_type.shape.dim)) for i in inputs]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    path = tmp_path / "cache.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    model = load(path, batch=2, sequence=1, past_tokens=15, mode="decode")
    shapes = [v.type.shape for v in model.graph.inputs]
    assert shapes == [(2, 1, 4), (2, 2, 15, 4), (2, 16)]
    assert model.graph.inputs[1].role == "kv_cache"


def test_a_fixed_batch_is_replaced_where_reshapes_spell_it_out(onnx_model):
    path = onnx_model(
        "m (float[1, 4, 6] x) => (float[1, 24] y) { s = Constant <value_ints = [1, 24]> ()\n"
        "y = Reshape (x, s) }"
    )
    assert load(path, batch=5).graph.outputs[0].type.shape == (5, 24)


def test_a_batch_that_cannot_be_replaced_is_an_error(onnx_model):
    """A target that mixes the batch into another dim than the first cannot be told apart."""
    path = onnx_model(
        "m (float[2, 4] x) => (float[3] y) { s = Constant <value_ints = [3, 5]> ()\n"
        "e = Expand (x, s) y = Relu (e) }"
    )
    with pytest.raises(OpboundError, match="Expand"):
        load(path, batch=7)


def test_sequence_without_a_sequence_dim_is_an_error(onnx_model):
    path = onnx_model("m (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    with pytest.raises(DimensionError, match="--sequence does not apply"):
        load(path, batch=1, sequence=8)


def test_data_dependent_lengths_take_their_maximum_and_say_so(onnx_model):
    path = onnx_model("m (float[3, 5] x) => (int64[2, N] y) { y = NonZero (x) }")
    model = load(path)
    assert model.graph.outputs[0].type.shape == (2, 15)
    assert any("maximum" in note for note in model.notes)
    assert load(path, dims={"y.1": 4}).graph.outputs[0].type.shape == (2, 4)


def test_the_leading_dim_is_the_batch_whatever_the_exporter_called_it(onnx_model):
    path = onnx_model("m (float[s77, 4] x) => (float[s77, 4] y) { y = Relu (x) }")
    assert load(path, batch=3).graph.outputs[0].type.shape == (3, 4)
    packed = onnx_model("m (float[num_tokens, 4] x) => (float[n, 4] y) { y = Relu (x) }")
    assert load(packed, sequence=9).graph.outputs[0].type.shape == (9, 4)
    with pytest.raises(DimensionError, match="--batch does not apply"):
        load(packed, batch=3, sequence=9)


def test_prefill_and_decode_bind_the_cache(onnx_model):
    text = (
        "m (float[batch, seq, 4] x, float[batch, 2, past_len, 4] past_key) => (float[B, S, 4] y,"
        "float[B, 2, T, 4] z) { y = Relu (x) z = Relu (past_key) }"
    )
    path = onnx_model(text)
    prefill = load(path, batch=2, sequence=16, mode="prefill").graph
    assert [v.type.shape for v in prefill.inputs] == [(2, 16, 4), (2, 2, 0, 4)]
    decode = load(path, batch=2, sequence=16, past_tokens=20, mode="decode").graph
    assert [v.type.shape for v in decode.inputs] == [(2, 1, 4), (2, 2, 20, 4)]
    stateless = onnx_model("m (float[batch, seq, 4] x) => (float[B, S, 4] y) { y = Relu (x) }")
    with pytest.raises(DimensionError, match="no KV cache"):
        load(stateless, batch=2, sequence=16, past_tokens=20, mode="decode")
    fixed = onnx_model("m (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }", name="fixed.onnx")
    with pytest.raises(DimensionError, match="no dynamic sequence dim and no KV cache") as raised:
        load(fixed, batch=2, sequence=16, mode="prefill")
    assert "--mode generation" in str(raised.value)
