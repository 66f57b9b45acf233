"""onnxruntime's quantised operators, mixtures and caches: its shapes, and FLOPs counted by hand."""

import numpy as np
import pytest

from importers import load

U8, I8 = np.uint8, np.int8
SCALE = np.asarray(0.02, np.float32)
ZERO = np.asarray(128, U8)


def bytes_(*shape, seed=0, dtype=U8):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


QUANTIZED = {"s": SCALE, "z": ZERO}
# Name: graph, inputs, weights, FLOPs of its contractions.
CASES = {
    "add": (
        "m (uint8[2, 3, 4] a, uint8[4] b) => (uint8[2, 3, 4] y)"
        "{ y = com.microsoft.QLinearAdd (a, s, z, b, s, z, s, z) }",
        {"a": bytes_(2, 3, 4), "b": bytes_(4)},
        QUANTIZED,
        0,
    ),
    "sigmoid and leaky relu": (
        "m (uint8[2, 3] a) => (uint8[2, 3] y) { b = com.microsoft.QLinearSigmoid (a, s, z, s, z)"
        "y = com.microsoft.QLinearLeakyRelu <alpha = 0.1> (b, s, z, s, z) }",
        {"a": bytes_(2, 3)},
        QUANTIZED,
        0,
    ),
    "softmax": (
        "m (uint8[2, 3] a) => (uint8[2, 3] y)"
        "{ y = com.microsoft.QLinearSoftmax <axis = -1, opset = 13> (a, s, z, s, z) }",
        {"a": bytes_(2, 3)},
        QUANTIZED,
        0,
    ),
    "pooling": (
        "m (uint8[1, 4, 7, 9] a) => (uint8[1, 4, 3, 4] y) { y = com.microsoft.QLinearAveragePool"
        "<kernel_shape = [3, 3], strides = [2, 2]> (a, s, z, s, z) }",
        {"a": bytes_(1, 4, 7, 9)},
        QUANTIZED,
        0,
    ),
    "pooling of everything, channels last": (
        "m (uint8[1, 7, 9, 4] a) => (uint8[1, 1, 1, 4] y)"
        "{ y = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (a, s, z, s, z) }",
        {"a": bytes_(1, 7, 9, 4)},
        QUANTIZED,
        0,
    ),
    "concat": (
        "m (uint8[2, 3] a, uint8[2, 5] b) => (uint8[2, 8] y)"
        "{ y = com.microsoft.QLinearConcat <axis = 1> (s, z, a, s, z, b, s, z) }",
        {"a": bytes_(2, 3), "b": bytes_(2, 5)},
        QUANTIZED,
        0,
    ),
    "where": (
        "m (bool[2, 1] c, uint8[2, 3] a, uint8[3] b) => (uint8[2, 3] y)"
        "{ y = com.microsoft.QLinearWhere (c, a, s, z, b, s, z, s, z) }",
        {"c": np.array([[True], [False]]), "a": bytes_(2, 3), "b": bytes_(3)},
        QUANTIZED,
        0,
    ),
    "gemm": (
        "m (uint8[3, 6] a) => (uint8[3, 4] y) { y = com.microsoft.QGemm <transB = 1>"
        "(a, s, z, w, s, z, b, s, z) }",
        {"a": bytes_(3, 6)},
        QUANTIZED | {"w": bytes_(4, 6), "b": bytes_(4, dtype=np.int32)},
        2 * 3 * 6 * 4,
    ),
    "convolution, channels last": (
        "m (uint8[1, 7, 9, 4] a) => (uint8[1, 5, 7, 6] y)"
        "{ y = com.microsoft.QLinearConv <channels_last = 1> (a, s, z, w, s, z, s, z) }",
        {"a": bytes_(1, 7, 9, 4)},
        QUANTIZED | {"w": bytes_(6, 4, 3, 3)},
        2 * 5 * 7 * 6 * 4 * 9,
    ),
    "dynamic product": (
        "m (float[3, 6] a) => (float[3, 4] y)"
        "{ y = com.microsoft.DynamicQuantizeMatMul (a, w, s, z, b) }",
        {"a": floats(3, 6)},
        QUANTIZED | {"w": bytes_(6, 4), "b": floats(4)},
        2 * 3 * 6 * 4,
    ),
    "product to floats": (
        "m (uint8[3, 6] a) => (float[3, 4] y)"
        "{ y = com.microsoft.MatMulIntegerToFloat (a, w, s, s, z, z, b) }",
        {"a": bytes_(3, 6)},
        QUANTIZED | {"w": bytes_(6, 4), "b": floats(4)},
        2 * 3 * 6 * 4,
    ),
    "attention": (
        "m (uint8[2, 3, 8] a) => (float[2, 3, 8] y)"
        "{ y = com.microsoft.QAttention <num_heads = 2> (a, w, b, s, s, none, z, z) }",
        {"a": bytes_(2, 3, 8)},
        QUANTIZED | {"w": bytes_(8, 24), "b": floats(24)},
        2 * 2 * 3 * 8 * 24 + 2 * 2 * 2 * 3 * 3 * 8,
    ),
    "table of blocks": (
        "m (int64[2, 3] i) => (float[2, 3, 32] y) { y = com.microsoft.GatherBlockQuantized"
        "<gather_axis = 0, quantize_axis = 1, block_size = 16> (t, i, g) }",
        {"i": np.array([[0, 1, 2], [3, 4, 0]])},
        {"t": np.zeros((5, 16), U8), "g": floats(5, 2)},
        0,
    ),
    "bias softmax, gelu, norm": (
        "m (float[2, 3, 4] x) => (float[2, 3, 4] y)"
        "{ y = com.microsoft.TransposeMatMul <alpha = 2.0> (x, w) }",
        {"x": floats(2, 3, 4)},
        {"w": floats(4, 4)},
        2 * 2 * 3 * 4 * 4,
    ),
    "adopted by the standard": (
        "m (float[3, 3] x) => (float[3, 3] y) { y = com.microsoft.Trilu <upper = 0> (x) }",
        {"x": floats(3, 3)},
        {},
        0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_flops(onnx_model, contraction_flops, case):
    runtime = pytest.importorskip("onnxruntime")
    text, inputs, weights, flops = CASES[case]
    text = text.replace(", none,", ", ,")
    path = onnx_model(text, weights=weights, domains=("com.microsoft",))
    graph = load(path).graph
    assert contraction_flops(graph) == flops
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for ours, theirs in zip(graph.outputs, session.run(None, inputs), strict=True):
        assert ours.type.shape == theirs.shape
        assert ours.type.dtype.label == str(theirs.dtype)


def experts(onnx_model, tokens, bits=None):
    """Eight experts, two per token, hidden 16, inner 32."""
    head = f"m (float[{tokens}, 16] x, float[{tokens}, 8] r) => (float[{tokens}, 16] y) {{"
    if bits is None:
        text = (
            f'{head} y = com.microsoft.MoE <k = 2, activation_type = "silu"> (x, r, a, , b, , c) }}'
        )
        weights = {"a": floats(8, 32, 16), "b": floats(8, 16, 32), "c": floats(8, 32, 16)}
    else:
        text = (
            f'{head} y = com.microsoft.QMoE <k = 2, activation_type = "relu", expert_weight_bits = {bits}>'
            "(x, r, a, sa, , b, sb) }"
        )
        weights = {
            "a": np.zeros((8, 32, 16 * bits // 8), U8),
            "sa": floats(8, 32),
            "b": np.zeros((8, 16, 32 * bits // 8), U8),
            "sb": floats(8, 16),
        }
    return onnx_model(text, weights=weights, domains=("com.microsoft",))


@pytest.mark.parametrize("tokens", [1, 3, 8, 13])
def test_a_mixture_computes_only_what_it_routes(onnx_model, contraction_flops, tokens):
    graph = load(experts(onnx_model, tokens)).graph
    assert contraction_flops(graph) == 3 * 2 * (2 * tokens) * 16 * 32
    assert sum(p.type.elements for p in graph.parameters) == 3 * 8 * 16 * 32
    products = [n for n in graph.nodes if n.op == "grouped_matmul"]
    read = sum(n.inputs[1].type.elements for n in products)
    assert read == 3 * min(2 * tokens, 8) * 16 * 32


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_experts_count_their_true_bits(onnx_model, contraction_flops, bits):
    graph = load(experts(onnx_model, 8, bits)).graph
    assert contraction_flops(graph) == 2 * 2 * 16 * 16 * 32
    weights = [p for p in graph.parameters if p.name in ("a", "b")]
    assert [w.type.bytes for w in weights] == [8 * 32 * 16 * bits // 8] * 2


def test_a_paged_cache_is_read_as_far_as_it_is_filled(onnx_model, contraction_flops):
    heads, groups, d, batch = 8, 2, 16, 4
    path = onnx_model(
        f"m (float16[{batch}, {heads * d}] q, float16[{batch}, {groups * d}] k,"
        f"float16[{batch}, {groups * d}] v, float16[64, 16, {groups}, {d}] key_cache,"
        f"float16[64, 16, {groups}, {d}] value_cache, int32[{batch + 1}] c, int32[{batch}] p,"
        f"int32[{batch}, 8] t) => (y, nk, nv) {{ y, nk, nv = com.microsoft.PagedAttention"
        f"<num_heads = {heads}, kv_num_heads = {groups}> (q, k, v, key_cache, value_cache, c, p, t) }}",
        domains=("com.microsoft",),
    )
    full = load(path).graph
    assert contraction_flops(full) == 2 * 2 * batch * heads * d * 8 * 16
    partly = load(path, values={"p": [9, 9, 9, 9]}).graph
    assert contraction_flops(partly) == 2 * 2 * batch * heads * d * 10
    assert partly.outputs[1].type.shape == (64, 16, groups, d)
    caches = [v for v in partly.inputs if v.role == "kv_cache"]
    assert [v.name for v in caches] == ["key_cache", "value_cache"]


def test_sparse_attention_reads_its_blocks(onnx_model, contraction_flops):
    path = onnx_model(
        "m (float16[1, 64, 64] q, float16[1, 64, 32] k, float16[1, 64, 32] v,"
        "float16[1, 2, 64, 16] pk, float16[1, 2, 64, 16] pv, int32[1, 5] rows, int32[1, 7] columns,"
        "int32 total, int32[1] lengths) => (y, nk, nv) { y, nk, nv = com.microsoft.SparseAttention"
        "<num_heads = 4, kv_num_heads = 2, sparse_block_size = 16>"
        "(q, k, v, pk, pv, rows, columns, total, lengths) }",
        domains=("com.microsoft",),
    )
    graph = load(path).graph
    # Seven blocks in four rows: two blocks of 16 keys per query.
    assert contraction_flops(graph) == 2 * 2 * 4 * 16 * 64 * 32
    assert graph.outputs[1].type.shape == (1, 2, 64, 16)


def test_images_with_channels_last_cost_what_those_with_channels_first_do(
    onnx_model, contraction_flops
):
    path = onnx_model(
        "m (float[1, 8, 8, 3] x) => (y) { a = com.ms.internal.nhwc.Conv <pads = [1, 1, 1, 1]> (x, w)"
        "b = com.ms.internal.nhwc.MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)"
        "y = com.microsoft.NhwcConv (b, w2) }",
        weights={"w": floats(4, 3, 3, 3), "w2": floats(5, 4, 1, 1)},
        domains=("com.microsoft", "com.ms.internal.nhwc"),
    )
    graph = load(path).graph
    assert graph.outputs[0].type.shape == (1, 4, 4, 5)
    assert contraction_flops(graph) == 2 * (64 * 4 * 27 + 16 * 5 * 4)
