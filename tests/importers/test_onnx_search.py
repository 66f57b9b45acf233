"""Generation inside one node: the prompt once, then the decoder once per token."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from graph_ir.errors import DimensionError
from importers import load

HIDDEN, VOCABULARY, HEADS = 8, 32, 2


def decoder():
    """A layer of attention over a cache, as the converters of onnxruntime write it."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node(
            "Attention",
            ["x", "w", "b", "", "past_0"],
            ["a", "present_0"],
            domain="com.microsoft",
            num_heads=HEADS,
            unidirectional=1,
        ),
        helper.make_node("MatMul", ["a", "head"], ["logits"]),
    ]
    shape = [2, "batch", HEADS, "past", HIDDEN // HEADS]
    weights = {
        "table": (VOCABULARY, HIDDEN),
        "w": (HIDDEN, 3 * HIDDEN),
        "b": (3 * HIDDEN,),
        "head": (HIDDEN, VOCABULARY),
    }
    return helper.make_graph(
        nodes,
        "decoder",
        [
            info("input_ids", TensorProto.INT32, ["batch", "sequence"]),
            info("past_0", TensorProto.FLOAT, shape),
        ],
        [info("logits", TensorProto.FLOAT, None), info("present_0", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in weights.items()],
    )


def search(tmp_path, op, *, beams=1, limit=12, prompt=4, batch=2):
    numbers = {"max": limit, "min": 1, "beams": beams, "back": 1}
    names = ["ids", "max", "min", *(("beams", "back") if op == "BeamSearch" else ())]
    node = helper.make_node(
        op, names, ["sequences"], "search", domain="com.microsoft", decoder=decoder(),
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, [batch, prompt]),
            *(
                [helper.make_tensor_value_info("max", TensorProto.INT32, [1])]
                if limit is None
                else []
            ),
        ],
        [helper.make_tensor_value_info("sequences", TensorProto.INT32, None)],
        [
            numpy_helper.from_array(np.asarray([n], np.int32), name)
            for name, n in numbers.items()
            if n is not None
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "search.onnx"
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def by_hand(rows, prompt, steps):
    """FLOPs of the prompt and of each further token, behind a cache that grows."""

    def run(length, past):
        linear = 2 * rows * length * HIDDEN * (3 * HIDDEN + VOCABULARY)
        return linear + 4 * rows * length * (past + length) * HIDDEN

    return run(prompt, 0) + sum(run(1, prompt + i) for i in range(steps - 1))


@pytest.mark.parametrize(("op", "beams"), [("GreedySearch", 1), ("BeamSearch", 4), ("Sampling", 1)])
def test_every_token_is_counted(tmp_path, contraction_flops, op, beams):
    model = load(search(tmp_path, op, beams=beams))
    assert contraction_flops(model.graph) == by_hand(2 * beams, 4, 8)
    assert "7 times" in model.notes[0]
    # The prompt and the tokens after it share their weights.
    expected = VOCABULARY * HIDDEN * 2 + 3 * HIDDEN * (HIDDEN + 1)
    assert sum(p.type.elements for p in model.graph.parameters) == expected
    assert [v.name for v in model.graph.inputs if v.role] == ["search/decoder/past_0"]


def test_an_open_end_is_asked_for(tmp_path, contraction_flops):
    path = search(tmp_path, "GreedySearch", limit=None)
    with pytest.raises(DimensionError, match="--trip-count 'search=N'"):
        load(path)
    for answer in ({"trip_counts": {"search": 8}}, {"values": {"max": [12]}}):
        assert contraction_flops(load(path, **answer).graph) == by_hand(2, 4, 8)
