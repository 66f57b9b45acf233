"""Trips, branches, contents and shapes that the user gives, in Python and as options of the command line."""

import numpy as np
import pytest

from graph_ir.errors import DimensionError, OpboundError
from importers import load
from opbound.arguments import options_of
from opbound.commands import build_parser

LOOP = (
    "m (int64 n, bool c, float[2, 4] x) => (float[2, 4] y) {"
    "again = Identity (c)"
    "y = Loop <body = step (int64 i, bool go, float[2, 4] a) => (bool next, float[2, 4] b) {"
    "next = Identity (again) b = Relu (a) }> (n, c, x) }"
)
IF = (
    "m (bool c, float[2, 4] x) => (float[2, k] y) {"
    "y = If (c) <then_branch = t () => (float[2, 4] a) { a = Relu (x) },"
    "else_branch = e () => (float[2, 8] b) { b = MatMul (x, w) }> }"
)
WEIGHTS = {"w": np.zeros((4, 8), np.float32)}


def test_trips_are_asked_for_by_the_loops_name(onnx_model):
    path = onnx_model(LOOP)
    with pytest.raises(DimensionError, match=r"give --trip-count 'y=N'"):
        load(path)
    for trips in (1, 7):
        assert len(load(path, trip_counts={"y": trips}).graph.nodes) == trips
    with pytest.raises(
        DimensionError, match=r"--trip-count z.*did you mean|--trip-count z.*known: y"
    ):
        load(path, trip_counts={"y": 2, "z": 2})
    # The limit is an input: its contents say the same.
    assert len(load(path, values={"n": [5]}).graph.nodes) == 5


def test_the_dearer_branch_counts_unless_one_is_chosen(onnx_model):
    path = onnx_model(IF, weights=WEIGHTS)
    model = load(path)
    assert [n.op for n in model.graph.nodes] == ["matmul"]
    assert "else branch" in model.notes[0]
    assert "then 8 FLOPs, else 128 FLOPs" in model.notes[0]
    chosen = load(path, branches={"y": "then"})
    assert [n.op for n in chosen.graph.nodes] == ["relu"]
    assert "as asked for" in chosen.notes[0]
    with pytest.raises(DimensionError, match="no If of that name"):
        load(path, branches={"q": "then"})
    with pytest.raises(OpboundError, match="then or else"):
        load(path, branches={"y": "both"})


def test_contents_settle_a_shape(onnx_model):
    path = onnx_model("m (float[2, 6] x, int64[2] s) => (float[a, b] y) { y = Reshape (x, s) }")
    with pytest.raises(DimensionError, match=r"--value 's=\.\.\.'|dim"):
        load(path)
    assert load(path, values={"s": [3, -1]}).graph.outputs[0].type.shape == (3, 4)
    with pytest.raises(DimensionError, match="3 numbers are given"):
        load(path, values={"s": [3, 2, 2]})


def test_shapes_of_inputs_bind_all_their_dims(onnx_model):
    path = onnx_model("m (float[n, 3, h, w] x, float[n, 3, h, w] z) => (y) { y = Add (x, z) }")
    assert load(path, input_shapes={"x": (2, 3, 8, 9)}).graph.outputs[0].type.shape == (2, 3, 8, 9)
    for shape, match in (
        ((2, 3, 8), "3 sizes are given, but it has 4 dims"),
        ((2, 4, 8, 9), "where 3 is 3"),
    ):
        with pytest.raises(DimensionError, match=match):
            load(path, input_shapes={"x": shape})
    with pytest.raises(DimensionError, match="where 'n' is 5"):
        load(path, input_shapes={"x": (2, 3, 8, 9)}, dims={"n": 5})
    with pytest.raises(DimensionError, match="no input of that name"):
        load(path, input_shapes={"q": (2,), "x": (2, 3, 8, 9)})


def options(*words):
    return options_of(build_parser().parse_args(["analyze", "m.onnx", *words]))


def test_the_command_line_reads_them():
    found = options(
        *("--trip-count", "a=b=3", "--branch", "If_0=else"),
        *("--value", "s=1, -2,true,0.5", "--input", "x=1x3x8", "--input", "z=[2,4]"),
    )
    assert found.trip_counts == {"a=b": 3}
    assert found.branches == {"If_0": "else"}
    assert found.values == {"s": (1, -2, 1, 0.5)}
    assert found.input_shapes == {"x": (1, 3, 8), "z": (2, 4)}


@pytest.mark.parametrize(
    "words",
    [
        ("--trip-count", "a"),
        ("--trip-count", "a=-1"),
        ("--branch", "a=maybe"),
        ("--value", "a=x"),
        ("--input", "a=0x3"),
        ("--input", "=3"),
        ("--branch", "a=then", "--branch", "a=else"),
    ],
)
def test_answers_of_another_form_name_the_option(words):
    with pytest.raises(OpboundError, match=words[0]):
        options(*words)


def test_only_onnx_models_have_such_questions():
    with pytest.raises(OpboundError, match="--branch applies to ONNX models only"):
        load("hf:llama-2-7b", branches={"a": "then"})


def test_caches_are_counted_once_and_as_caches(onnx_model):
    """A step that lengthens a cache keeps the longer one; one that only reads it keeps that."""
    path = onnx_model(
        "m (float[1, 2, p, 4] past_key, float[1, 2, 1, 4] k, float[1, 2, 5, 4] cross_cache)"
        "=> (present_key, float[1, 2, 5, 4] z)"
        "{ present_key = Concat <axis = 2> (past_key, k) z = Relu (cross_cache) }"
    )
    graph = load(path, dims={"p": 7}).graph
    roles = {v.name: v.role for v in (*graph.inputs, *graph.outputs)}
    assert roles == {
        "past_key": "",
        "k": "",
        "cross_cache": "kv_cache",
        "present_key": "kv_cache",
        "z": "",
    }


def test_trips_share_the_weights_of_a_loops_body(onnx_model):
    path = onnx_model(
        "m (float[2, 4] x) => (float[2, 4] y) { n = Constant <value = int64 {3}> ()"
        "y = Loop <body = step (int64 i, bool go, float[2, 4] a) => (bool next, float[2, 4] b)"
        "<float[4, 4] w = {1,2,3,4,1,2,3,4,1,2,3,4,1,2,3,4}> {"
        "next = Identity (go) v = Transpose (w) b = MatMul (a, v) }> (n, , x) }"
    )
    graph = load(path).graph
    assert sum(n.count for n in graph.nodes if n.op == "matmul") == 3
    assert [(p.type.shape, p.count) for p in graph.parameters] == [((4, 4), 1)]
