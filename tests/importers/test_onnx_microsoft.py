"""onnxruntime's own operators: what the imported graph computes, beside onnxruntime itself."""

import numpy as np
import pytest

from graph_ir.errors import ModelFileError
from importers import load

pytest.importorskip("onnxruntime")


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


CASES = {
    "fused matmul": (
        "m (float[2, 4, 3] x) => (float[2, 3, 5] y) { y = com.microsoft.FusedMatMul"
        "<transA = 1, transB = 1, alpha = 0.5> (x, w) }",
        {"x": random(2, 4, 3)},
        {"w": random(2, 5, 4)},
    ),
    "bias gelu": (
        "m (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = com.microsoft.BiasGelu (x, b) }",
        {"x": random(2, 3, 4)},
        {"b": random(4)},
    ),
    "fast gelu": (
        "m (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = com.microsoft.FastGelu (x, b) }",
        {"x": random(2, 3, 4)},
        {"b": random(4)},
    ),
    "skip layer norm": (
        "m (float[2, 3, 4] x, float[2, 3, 4] s) => (float[2, 3, 4] y, float[2, 3, 4] z) {"
        "y, a, b, z = com.microsoft.SkipLayerNormalization <epsilon = 1e-5> (x, s, g, h, i) }",
        {"x": random(2, 3, 4), "s": random(2, 3, 4, seed=1)},
        {"g": random(4), "h": random(4, seed=2), "i": random(4, seed=3)},
    ),
    "simplified layer norm": (
        "m (float[2, 3, 4] x) => (float[2, 3, 4] y) {"
        "y = SimplifiedLayerNormalization <epsilon = 1e-5, axis = -1> (x, g) }",
        {"x": random(2, 3, 4)},
        {"g": random(4)},
    ),
    "embed layer norm": (
        "m (int32[2, 3] i, int32[2, 3] s) => (float[2, 3, 4] y, int32[2] m) {"
        "y, m = com.microsoft.EmbedLayerNormalization <epsilon = 1e-5> (i, s, w, p, t, g, b) }",
        {
            "i": np.array([[0, 1, 2], [3, 4, 5]], np.int32),
            "s": np.array([[0, 1, 0], [1, 0, 1]], np.int32),
        },
        {
            "w": random(6, 4),
            "p": random(8, 4, seed=1),
            "t": random(2, 4, seed=2),
            "g": random(4, seed=3),
            "b": random(4, seed=4),
        },
    ),
    "multi head attention": (
        "m (float[2, 3, 8] q, float[2, 5, 8] k, float[2, 5, 8] v) => (float[2, 3, 8] y) {"
        "y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, b) }",
        {"q": random(2, 3, 8), "k": random(2, 5, 8, seed=1), "v": random(2, 5, 8, seed=2)},
        {"b": random(24, seed=3)},
    ),
    "attention": (
        "m (float[2, 3, 8] x) => (float[2, 3, 8] y) {"
        "y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, b) }",
        {"x": random(2, 3, 8)},
        {"w": random(8, 24, seed=1), "b": random(24, seed=2)},
    ),
    "quick gelu": (
        "m (float[2, 3] x) => (float[2, 3] y) { y = com.microsoft.QuickGelu <alpha = 1.0> (x) }",
        {"x": random(2, 3)},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_equal(onnx_model, run_both, case):
    text, inputs, weights = CASES[case]
    path = onnx_model(text, weights=weights, domains=("com.microsoft",))
    found, expected = run_both(path, inputs, weights)
    compared = 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
            compared += 1
    assert compared


def test_grouped_queries_with_a_cache(onnx_model, contraction_flops):
    b, s, past, heads, groups, d = 2, 1, 15, 8, 2, 16
    path = onnx_model(
        f"m (float[{b}, {s}, {heads * d}] q, float[{b}, {s}, {groups * d}] k,"
        f"float[{b}, {s}, {groups * d}] v, float[{b}, {groups}, {past}, {d}] pk,"
        f"float[{b}, {groups}, {past}, {d}] pv, int32[{b}] n, int32 t) => (y, nk, nv) {{"
        f"y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = {heads},"
        f"kv_num_heads = {groups}> (q, k, v, pk, pv, n, t) }}",
        domains=("com.microsoft",),
    )
    graph = load(path).graph
    assert contraction_flops(graph) == 2 * b * heads * s * (past + 1) * 2 * d
    assert graph.outputs[1].type.shape == (b, groups, past + 1, d)
    (fused,) = (n for n in graph.nodes if n.op == "attention")
    assert fused.attrs["causal"]


def packed_linear(onnx_model, n, k, block, scales):
    blocks = k // block
    return onnx_model(
        f"m (float[3, {k}] x) => (float[3, {n}] y) {{ y = com.microsoft.MatMulNBits"
        f"<K = {k}, N = {n}, bits = 4, block_size = {block}> (x, w, s) }}",
        weights={
            "w": np.zeros((n, blocks, block // 2), np.uint8),
            "s": np.ones(scales, np.float32),
        },
        domains=("com.microsoft",),
    )


def test_packed_weights_count_their_true_bits(onnx_model):
    graph = load(packed_linear(onnx_model, 64, 128, 32, 64 * 4)).graph
    product = next(n for n in graph.nodes if n.op == "linear")
    assert product.flops == 2 * 3 * 128 * 64
    assert product.inputs[1].type.bytes == 64 * 128 // 2
    assert sum(p.type.elements for p in graph.parameters) == 64 * 128 + 64 * 4


def test_scales_that_do_not_fit_are_an_error(onnx_model):
    with pytest.raises(ModelFileError, match="scales"):
        load(packed_linear(onnx_model, 64, 128, 32, 63 * 4))


def test_quantised_chains_compute_what_onnxruntime_computes(onnx_model, run_both):
    weights = {
        "s": np.asarray(0.02, np.float32),
        "z": np.asarray(128, np.uint8),
        "w": np.random.default_rng(0).integers(-127, 127, (6, 4)).astype(np.int8),
        "ws": np.linspace(0.01, 0.02, 4, dtype=np.float32),
        "wz": np.zeros(4, np.int8),
    }
    path = onnx_model(
        "m (float[3, 6] x) => (float[3, 4] y) { a = QuantizeLinear (x, s, z)"
        "b = DequantizeLinear (a, s, z) c = DequantizeLinear <axis = 1> (w, ws, wz)"
        "y = MatMul (b, c) }",
        weights=weights,
    )
    found, expected = run_both(path, {"x": random(3, 6)}, weights)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)
    graph = load(path).graph
    assert next(p for p in graph.parameters if p.name == "w").type.dtype.label == "int8"
