"""What the imported graph computes, and its shapes, beside onnxruntime."""

import csv
import json

import numpy as np
import onnx
import pytest

from graph_ir.errors import OpboundError
from importers import load
from importers.imported_model import ImportOptions
from importers.onnx_dims import DimBinder
from importers.onnx_importer import TYPE_RULES
from importers.onnx_ops import RULES
from importers.onnx_resolve import Resolver

runtime = pytest.importorskip("onnxruntime")


def random(*shape, seed=0, low=-1.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


# text of the graph, inputs, weights, opset
CASES = {
    "gemm": (
        "m (float[3, 4] x) => (float[3, 5] y) { y = Gemm <transB = 1, alpha = 0.5> (x, w, b) }",
        {"x": random(3, 4)},
        {"w": random(5, 4), "b": random(5)},
    ),
    "gemm transposed": (
        "m (float[4, 3] x) => (float[3, 5] y) { y = Gemm <transA = 1, beta = 2.0> (x, w, b) }",
        {"x": random(4, 3)},
        {"w": random(4, 5), "b": random(3, 1)},
    ),
    "matmul broadcast": (
        "m (float[2, 1, 3, 4] x) => (float[2, 5, 3, 6] y) { y = MatMul (x, w) }",
        {"x": random(2, 1, 3, 4)},
        {"w": random(5, 4, 6)},
    ),
    "matmul vector": (
        "m (float[2, 3, 4] x) => (float[2, 3] y) { y = MatMul (x, w) }",
        {"x": random(2, 3, 4)},
        {"w": random(4)},
    ),
    "conv": (
        "m (float[2, 4, 9, 8] x) => (float[N, C, H, W] y) { y = Conv <group = 2, strides = [2, 1],"
        "pads = [1, 0, 2, 1], dilations = [1, 2]> (x, w, b) }",
        {"x": random(2, 4, 9, 8)},
        {"w": random(6, 2, 3, 3), "b": random(6)},
    ),
    "conv same": (
        'm (float[1, 2, 7] x) => (float[N, C, L] y) { y = Conv <auto_pad = "SAME_LOWER",'
        "strides = [2]> (x, w) }",
        {"x": random(1, 2, 7)},
        {"w": random(3, 2, 4)},
    ),
    "conv transpose": (
        "m (float[2, 4, 5, 6] x) => (float[N, C, H, W] y) { y = ConvTranspose <group = 2,"
        "strides = [2, 3], pads = [1, 1, 0, 1], output_padding = [1, 0]> (x, w, b) }",
        {"x": random(2, 4, 5, 6)},
        {"w": random(4, 3, 3, 4), "b": random(6)},
    ),
    "einsum of three": (
        "m (float[2, 3] a, float[5, 3, 7] b, float[2, 7] c) => (float[2, 5] y) { y = Einsum "
        '<equation = "ik, jkl, il -> ij"> (a, b, c) }',
        {"a": random(2, 3), "b": random(5, 3, 7), "c": random(2, 7)},
        {},
    ),
    "einsum ellipsis": (
        "m (float[2, 6, 3, 4] a, float[1, 6, 4, 5] b) => (float[2, 6, 3, 5] y) { y = Einsum "
        '<equation = "...ij, ...jk -> ...ik"> (a, b) }',
        {"a": random(2, 6, 3, 4), "b": random(1, 6, 4, 5)},
        {},
    ),
    "max pool": (
        "m (float[1, 2, 7, 8] x) => (float[N, C, H, W] y) { y = MaxPool <kernel_shape = [3, 2],"
        "strides = [2, 2], pads = [1, 0, 1, 0]> (x) }",
        {"x": random(1, 2, 7, 8)},
        {},
    ),
    "average pool": (
        "m (float[1, 2, 7, 8] x) => (float[N, C, H, W] y) { y = AveragePool <kernel_shape = [3, 2],"
        "strides = [2, 2], pads = [1, 0, 1, 0]> (x) }",
        {"x": random(1, 2, 7, 8)},
        {},
    ),
    "batch norm": (
        "m (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = BatchNormalization <epsilon = 0.01>"
        "(x, w, b, m, v) }",
        {"x": random(2, 3, 4)},
        {"w": random(3), "b": random(3), "m": random(3), "v": random(3, low=0.5)},
    ),
    "layer norm": (
        "m (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = LayerNormalization <axis = -1>"
        "(x, w, b) }",
        {"x": random(2, 3, 4)},
        {"w": random(4), "b": random(4)},
    ),
    "instance norm": (
        "m (float[2, 3, 4, 5] x) => (float[2, 3, 4, 5] y) { y = InstanceNormalization (x, w, b) }",
        {"x": random(2, 3, 4, 5)},
        {"w": random(3), "b": random(3)},
    ),
    "mean variance norm": (
        "m (float[2, 3, 4, 5] x) => (float[2, 3, 4, 5] y) { y = MeanVarianceNormalization (x) }",
        {"x": random(2, 3, 4, 5)},
        {},
    ),
    "local response norm": (
        "m (float[2, 7, 4, 5] x) => (float[2, 7, 4, 5] y) { y = LRN <size = 5, alpha = 0.1,"
        "beta = 0.7, bias = 1.5> (x) }",
        {"x": random(2, 7, 4, 5)},
        {},
    ),
    "softmax": (
        "m (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax <axis = 1> (x) }",
        {"x": random(2, 3, 4)},
        {},
    ),
    "reductions": (
        "m (float[2, 3, 4] x) => (float[2, 1, 4] a, float[3] b, float[2, 3, 1] c, float[2, 3] d) {"
        "a = ReduceMean <axes = [1]> (x) b = ReduceL2 <axes = [0, 2], keepdims = 0> (x)"
        "c = ReduceLogSumExp <axes = [-1]> (x) d = ReduceSumSquare <axes = [2], keepdims = 0> (x) }",
        {"x": random(2, 3, 4)},
        {},
    ),
    "arithmetic": (
        "m (float[2, 3] x, float[3] z) => (float[2, 3] y) { a = Add (x, z) b = Mul (a, k)"
        "c = Sub (k, b) d = Div (c, z) e = Max (d, x, z) f = Sum (e, x, d) y = Mean (f, x, z) }",
        {"x": random(2, 3), "z": random(3, low=0.5)},
        {"k": np.asarray(2.5, np.float32)},
    ),
    "functions": (
        "m (float[2, 3] x) => (float[2, 3] y) { a = Tanh (x) b = Sigmoid (a) c = Exp (b)"
        "d = Sqrt (c) e = Erf (d) f = Softplus (e) g = HardSwish (f) h = Atan (g) y = Cosh (h) }",
        {"x": random(2, 3)},
        {},
    ),
    "prelu clip where": (
        "m (float[2, 3, 4] x) => (float[2, 3, 4] y) { a = PRelu (x, s) b = Clip (a, lo, hi)"
        "c = Greater (x, b) y = Where (c, x, b) }",
        {"x": random(2, 3, 4)},
        {
            "s": random(3, 1),
            "lo": np.asarray(-0.2, np.float32),
            "hi": np.asarray(0.5, np.float32),
        },
    ),
    "movement": (
        "m (float[2, 6, 4] x) => (float[Q, R, S] y) { a = Transpose <perm = [1, 0, 2]> (x)"
        "b, c = Split <axis = 0> (a) d = Concat <axis = 2> (b, c)"
        "e = Slice (d, starts, ends, axes, steps) f = Pad (e, pads) y = Gather <axis = 1> (f, i) }",
        {"x": random(2, 6, 4)},
        {
            "starts": np.asarray([7, 0]),
            "ends": np.asarray([-100, 2]),
            "axes": np.asarray([2, 0]),
            "steps": np.asarray([-2, 1]),
            "pads": np.asarray([0, 1, 0, 1, 0, 2]),
            "i": np.asarray([0, 2, 1]),
        },
    ),
    "space": (
        "m (float[1, 8, 2, 3] x) => (float[N, C, H, W] y) { a = DepthToSpace <blocksize = 2> (x)"
        "b = SpaceToDepth <blocksize = 2> (a) c = Tile (b, r) y = Expand (c, s) }",
        {"x": random(1, 8, 2, 3)},
        {"r": np.asarray([1, 1, 2, 1]), "s": np.asarray([3, 8, 4, 3])},
    ),
    "cumulative and extremes": (
        "m (float[2, 5] x) => (float[2, 5] a, int64[2, 1] b, float[2, 2] c) {"
        "a = CumSum (x, one) b = ArgMax <axis = 1> (x) c, d = TopK (x, two) }",
        {"x": random(2, 5)},
        {"one": np.asarray(1), "two": np.asarray([2])},
    ),
    "lstm": (
        "m (float[3, 2, 4] x) => (float[S, D, B, H] y, float[D, B, H] h, float[D, B, H] c) {"
        'y, h, c = LSTM <hidden_size = 5, direction = "bidirectional"> (x, w, r, b) }',
        {"x": random(3, 2, 4)},
        {"w": random(2, 20, 4), "r": random(2, 20, 5), "b": random(2, 40)},
    ),
    "gru": (
        "m (float[3, 2, 4] x) => (float[S, D, B, H] y, float[D, B, H] h) {"
        "y, h = GRU <hidden_size = 5, linear_before_reset = 1> (x, w, r) }",
        {"x": random(3, 2, 4)},
        {"w": random(1, 15, 4), "r": random(1, 15, 5)},
    ),
    "rnn": (
        "m (float[3, 2, 4] x) => (float[S, D, B, H] y, float[D, B, H] h) {"
        "y, h = RNN <hidden_size = 5> (x, w, r, b) }",
        {"x": random(3, 2, 4)},
        {"w": random(1, 5, 4), "r": random(1, 5, 5), "b": random(1, 10)},
    ),
    "scan": (
        "m (float[2] s, float[3, 2] x) => (float[2] t, float[3, 2] y) { t, y = Scan"
        "<num_scan_inputs = 1, body = b (float[2] a, float[2] e) => (float[2] o, float[2] p) {"
        "o = Add (a, e) p = Mul (o, e) }> (s, x) }",
        {"s": random(2), "x": random(3, 2)},
        {},
    ),
    "loop": (
        "m (float[2] x) => (float[2] y, float[K, 2] z) { y, z = Loop <body = b (int64 i, bool c,"
        "float[2] a) => (bool d, float[2] o, float[2] p) { d = Identity (c) o = Mul (a, k)"
        "p = Add (o, a) }> (n, t, x) }",
        {"x": random(2)},
        {
            "n": np.asarray(4),
            "t": np.asarray(True),
            "k": np.asarray(1.5, np.float32),
        },
    ),
    "shape arithmetic": (
        "m (float[2, 3, 4] x) => (float[6, 4] y) { s = Shape (x) a = Gather (s, zero)"
        "b = Gather (s, one) c = Mul (a, b) d = Unsqueeze (c, axes) e = Concat <axis = 0> (d, rest)"
        "y = Reshape (x, e) }",
        {"x": random(2, 3, 4)},
        {
            "zero": np.asarray(0),
            "one": np.asarray(1),
            "axes": np.asarray([0]),
            "rest": np.asarray([-1]),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_equal(onnx_model, run_both, case):
    text, inputs, weights = CASES[case]
    path = onnx_model(text, weights=weights)
    found, expected = run_both(path, inputs, weights)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_shape_arithmetic_leaves_no_node(onnx_model):
    text, _, weights = CASES["shape arithmetic"]
    graph = load(onnx_model(text, weights=weights)).graph
    assert [n.op for n in graph.nodes] == ["reshape"]


def test_recurrent_products_by_hand(onnx_model, contraction_flops):
    text, _, weights = CASES["lstm"]
    steps, batch, width, hidden, directions = 3, 2, 4, 5, 2
    expected = directions * steps * batch * 2 * 4 * hidden * (width + hidden)
    graph = load(onnx_model(text, weights=weights)).graph
    assert contraction_flops(graph) == expected


def resolved_shapes(path, **options):
    """The shape of every tensor that survives the resolution, by its name in the file."""
    model = onnx.load(path, load_external_data=False)
    binder = DimBinder(ImportOptions(**options))
    resolver = Resolver(model, binder, lambda domain, op, _: (domain, op) in RULES, TYPE_RULES, len)
    resolver.run(model.graph)
    return {v.name: v.shape for n in resolver.nodes for v in n.outputs if v is not None}


ZOO = {
    "fastestdet__FastestDet.onnx": {},
    "ultraface__version-RFB-320.onnx": {},
    "libfacedetection.train__yunet_n_dynamic.onnx": {
        "batch": 2,
        "dims": {"height": 96, "width": 160},
    },
    "vespa__dummy_transformer.onnx": {"batch": 2, "sequence": 7},
    "windows-machine-learning__SqueezeNet_fp16.onnx": {},
    "libonnx__mnist_8_model.onnx": {},
    "qonnx__residual_block_clean.onnx": {},
    "burn-onnx__opset_11.onnx": {},
    "onnxruntime-genai__marian-batch-beams_decoder.onnx": {},
}


@pytest.mark.parametrize("file", ZOO)
def test_every_shape_equals_onnxruntimes(zoo, file):
    assert compare_shapes(zoo / file, **ZOO[file]) > 5


@pytest.mark.slow
def test_every_shape_of_every_model_that_onnxruntime_runs(zoo):
    compared, wrong, not_run = 0, [], []
    with (zoo / "INDEX.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["loads_in_onnxruntime"] == "yes"]
    for row in rows:
        dims = json.loads(row["reference_dims"] or "{}")
        try:
            compared += compare_shapes(zoo / row["file"], dims=dims)
        except AssertionError as error:
            wrong.append((row["file"], str(error)))
        except RUNTIME_ERRORS as error:
            not_run.append((row["file"], str(error)[:200]))
    assert not wrong
    assert compared > 1000
    # Inputs of ones are no valid indices, lengths or audio everywhere.
    assert len(not_run) <= len(rows) // 4, not_run


RUNTIME_ERRORS = (
    runtime.capi.onnxruntime_pybind11_state.Fail,
    runtime.capi.onnxruntime_pybind11_state.InvalidArgument,
    runtime.capi.onnxruntime_pybind11_state.InvalidGraph,
    runtime.capi.onnxruntime_pybind11_state.NotImplemented,
    runtime.capi.onnxruntime_pybind11_state.RuntimeException,
    OpboundError,
)


def compare_shapes(path, **options):
    """How many tensors were compared with those that onnxruntime made."""
    ours = resolved_shapes(path, **options)
    model = onnx.load(path)
    known = {o.name for o in model.graph.output}
    names = [n for node in model.graph.node for n in node.output if n in ours and n not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    session = runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    shapes = {v.name: v.type.shape for v in load(path, **options).graph.inputs}
    feeds = {
        i.name: np.ones(shapes[i.name], KINDS.get(i.type[7:-1], np.int64))
        for i in session.get_inputs()
        if i.name in shapes
    }
    outputs = [o.name for o in session.get_outputs()]
    theirs = dict(zip(outputs, session.run(outputs, feeds), strict=True))
    compared = [n for n, v in theirs.items() if n in ours and isinstance(v, np.ndarray)]
    differing = {n: (ours[n], theirs[n].shape) for n in compared if ours[n] != theirs[n].shape}
    # Where the data decides a length, the longest is taken; what follows from it is as long.
    assert not differing.keys() - longest_lengths(model)
    return len(compared)


def longest_lengths(model):
    """Tensors whose length the data decides, and everything that is computed from them."""
    found = set()
    for node in model.graph.node:
        if node.op_type in (
            "NonZero",
            "NonMaxSuppression",
            "Unique",
            "Compress",
        ) or found.intersection(node.input):
            found.update(node.output)
    return found


KINDS = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int32": np.int32,
    "uint32": np.uint32,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}
