"""onnxruntime's recurrences, selected and quantised attention, and packed weights, by hand counts."""

import numpy as np
import pytest

from graph_ir.evaluate import run_graph
from importers import load

MS = "com.microsoft::"
B, S, H, K, V = 2, 16, 4, 8, 32
WIDTH, HEADS, HEAD = 64, 4, 16
ONE = ("f", 1)


def ints(*numbers):
    return np.asarray(numbers, np.int32)


# name: operator, operands, results, attributes, FLOPs of its contractions, shape of the first result
CASES = {
    "gated delta rule": (
        MS + "LinearAttention",
        [
            ("f", B, S, H * K),
            ("f", B, S, H * K),
            ("f", B, S, H * V),
            None,
            ("f", B, S, H),
            ("f", B, S, H),
        ],
        2,
        {"q_num_heads": H, "kv_num_heads": H},
        6 * B * S * H * K * V,
        (B, S, H * V),
    ),
    "gated, queries share heads": (
        MS + "LinearAttention",
        [
            ("f", B, S, 2 * H * K),
            ("f", B, S, H * K),
            ("f", B, S, H * V),
            ("f", B, H, K, V),
            ("f", B, S, H * K),
        ],
        2,
        {"q_num_heads": 2 * H, "kv_num_heads": H, "update_rule": "gated"},
        2 * B * S * (H + 2 * H) * K * V,
        (B, S, 2 * H * V),
    ),
    "delta net of packed tokens, more values than keys": (
        MS + "GatedDeltaNet",
        [
            ("f", B * S, 2 * H * K + 2 * H * V),
            None,
            None,
            ("i", B + 1),
            ("f", B * S, 2 * H),
            ("f", B * S, 2 * H),
            ("f", B, 2 * H, V, K),
            ("f", 2 * H),
            ("f", 2 * H),
        ],
        2,
        {"gate_activation": "qwen", "beta_activation": "sigmoid", "qk_l2_norm": 1},
        6 * B * S * 2 * H * K * V,
        (B * S, 2 * H, V),
    ),
    "delta net without decay": (
        MS + "GatedDeltaNet",
        [
            ("f", B, S, H, K),
            ("f", B, S, H, K),
            ("f", B, S, H, V),
            None,
            None,
            ("f", B, S, H),
            ("f", B, H, V, K),
        ],
        2,
        {"update_rule": "delta"},
        6 * B * S * H * K * V,
        (B, S, H, V),
    ),
    "causal convolution": (
        MS + "CausalConvWithState",
        [("f", B, K, S), ("f", K, 1, 4), ("f", K), ("f", B, K, 3)],
        2,
        {"activation": "silu"},
        2 * B * K * S * 4,
        (B, K, S),
    ),
    "causal convolution of packed tokens": (
        MS + "VarlenCausalConvWithState",
        [("f", B * S, K), ("f", K, 1, 4), ("i", B + 1), None, ("f", B, K, 3)],
        2,
        {},
        2 * B * K * S * 4,
        (B * S, K),
    ),
    "mixed streams": (
        MS + "HyperConnectionPostMix",
        [("f", B, S, 4, K), ("f", B, S, K), ("f", B, S, 4), ("f", B, S, 4, 4)],
        1,
        {},
        2 * B * S * 4 * 4 * K,
        (B, S, 4, K),
    ),
    "one token, shared cache of which 31 are there": (
        MS + "DecoderMaskedSelfAttention",
        [
            ("f", B, 1, WIDTH),
            ("f", WIDTH, 3 * WIDTH),
            ("f", 3 * WIDTH),
            None,
            ("f", 2, B, HEADS, 64, HEAD),
            None,
            ints(31),
        ],
        2,
        {"num_heads": HEADS, "past_present_share_buffer": 1},
        2 * B * WIDTH * 3 * WIDTH + 4 * B * HEADS * 32 * HEAD,
        (B, 1, WIDTH),
    ),
    "packed tokens": (
        MS + "PackedAttention",
        [
            ("f", B * S, WIDTH),
            ("f", WIDTH, 3 * WIDTH),
            ("f", 3 * WIDTH),
            ("i", B, S),
            ("i", B + 1),
        ],
        1,
        {"num_heads": HEADS},
        2 * B * S * WIDTH * 3 * WIDTH + 4 * B * HEADS * S * S * HEAD,
        (B * S, WIDTH),
    ),
    "longformer": (
        MS + "LongformerAttention",
        [
            ("f", B, S, WIDTH),
            ("f", WIDTH, 3 * WIDTH),
            ("f", 3 * WIDTH),
            ("f", B, S),
            ("f", WIDTH, 3 * WIDTH),
            ("f", 3 * WIDTH),
            ("i", B, S),
        ],
        1,
        {"num_heads": HEADS, "window": 4},
        2 * 2 * B * S * WIDTH * 3 * WIDTH + 4 * B * HEADS * S * 8 * HEAD,
        (B, S, WIDTH),
    ),
    "8-bit attention": (
        MS + "QOrderedAttention",
        [
            ("b", B, S, WIDTH),
            *[ONE] * 4,
            *[("b", WIDTH, WIDTH)] * 3,
            *[ONE] * 3,
            *[("f", WIDTH)] * 3,
            *[ONE] * 3,
        ],
        1,
        {"num_heads": HEADS},
        2 * B * S * WIDTH * 3 * WIDTH + 4 * B * HEADS * S * S * HEAD,
        (B, S, WIDTH),
    ),
    "32 selected keys of 100": (
        MS + "DynamicSparseAttention",
        [
            ("f", B, S, 8 * HEAD),
            ("f", B, S, 2 * HEAD),
            ("f", B, S, 2 * HEAD),
            ("f", B, 2, 128, HEAD),
            ("f", B, 2, 128, HEAD),
            None,
            None,
            ("i", B * S, 32),
            ("i", B * S),
            ("i", B),
            ints(100),
        ],
        3,
        {"num_heads": 8, "kv_num_heads": 2},
        4 * B * 8 * S * 32 * HEAD,
        (B, S, 8 * HEAD),
    ),
    "32 selected keys of a cache in blocks": (
        MS + "SparsePagedAttention",
        [
            ("f", B * S, 8 * HEAD),
            ("f", B * S, 2 * HEAD),
            ("f", B * S, 2 * HEAD),
            ("f", 40, 16, 2, HEAD),
            ("f", 40, 16, 2, HEAD),
            ("i", B + 1),
            ("i", B),
            ("i", B, 16),
            None,
            ("i", B * S, 32),
            ("i", B * S),
        ],
        3,
        {"num_heads": 8, "kv_num_heads": 2},
        4 * B * 8 * S * 32 * HEAD,
        (B * S, 8 * HEAD),
    ),
    "indexer: 4 heads score 32 blocks of 4 tokens": (
        MS + "SparseAttentionIndexer",
        [
            ("f", B, S, 4 * HEAD),
            ("f", B, S, HEAD),
            ("f", HEAD),
            ("f", HEAD),
            ("f", 256, HEAD),
            ("f", 256, HEAD),
            None,
            ("f", B, 112, HEAD),
        ],
        2,
        {"policy_mode": "qsa", "token_budget": 32, "compress_ratio": 4},
        2 * B * S * 4 * HEAD * 32,
        (B, S, 35),
    ),
    "4-bit query, key and value behind a norm": (
        MS + "MatMulNBitsQkv",
        [
            ("f", B, S, WIDTH),
            ("f", B, S, WIDTH),
            ("f", WIDTH),
            *[("B", 128, 2, 16), ("f", 256), None],
            *[("B", 32, 2, 16), ("f", 64), None] * 2,
        ],
        4,
        {"K": WIDTH, "Nq": 128, "Nkv": 32, "block_size": 32},
        2 * B * S * WIDTH * (128 + 32 + 32),
        (B, S, 128),
    ),
    "4-bit gated feed-forward": (
        MS + "MatMulNBitsMlp",
        [("f", B, S, WIDTH), None, None, *[("B", 128, 2, 16), ("f", 256), None] * 2],
        1,
        {"K": WIDTH, "N": 128, "block_size": 32, "activation": "silu"},
        2 * B * S * WIDTH * 256,
        (B, S, 128),
    ),
    "4-bit blob": (
        MS + "MatMulFpQ4",
        [("f", B, S, WIDTH), ("B", 32 * 2 * 20), np.asarray([WIDTH, 32])],
        1,
        {},
        2 * B * S * WIDTH * 32,
        (B, S, 32),
    ),
    "8-bit float weight and operand": (
        MS + "MatMulBlockQuantizedFp8Weight",
        [("h", B, S, WIDTH), ("8", 32, WIDTH), ("f", 32, 1), ("f",)],
        1,
        {},
        2 * B * S * WIDTH * 32,
        (B, S, 32),
    ),
    "8-bit LSTM, both ways": (
        MS + "DynamicQuantizeLSTM",
        [
            ("f", 5, B, 8),
            ("b", 2, 8, 64),
            ("b", 2, 16, 64),
            ("f", 2, 128),
            *[None] * 4,
            *[("f", 2), ("b", 2)] * 2,
        ],
        3,
        {"hidden_size": 16, "direction": "bidirectional"},
        2 * 2 * 5 * B * 64 * (8 + 16),
        (5, 2, B, 16),
    ),
    "words of characters": (
        MS + "WordConvEmbedding",
        [("i", S, 12), ("f", 32, 1, 3, 8), ("f", 32), ("f", 100, 8)],
        1,
        {},
        2 * S * 10 * 32 * 3 * 8,
        (S, 32),
    ),
    "channels last": (
        "com.ms.internal.nhwc::ConvTranspose",
        [("f", 1, 8, 8, 4), ("f", 4, 3, 3, 3), ("f", 3)],
        1,
        {"strides": [2, 2]},
        2 * 8 * 8 * 4 * 3 * 9,
        (1, 17, 17, 3),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_contractions_and_shapes(node_model, contraction_flops, case):
    op, operands, outputs, attributes, flops, shape = CASES[case]
    graph = load(node_model(op, operands, outputs, attributes)).graph
    assert contraction_flops(graph) == flops
    assert graph.outputs[0].type.shape == shape


def test_one_token_of_a_recurrence_by_numbers(node_model):
    """The delta rule written out in numpy, with decay, update rate and a state."""
    shapes = {
        "x0": (B, 1, H * K),
        "x1": (B, 1, H * K),
        "x2": (B, 1, H * V),
        "x3": (B, H, K, V),
        "x4": (B, 1, H),
        "x5": (B, 1, H),
    }
    generator = np.random.default_rng(0)
    arrays = {n: generator.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    operands = [("f", *s) for s in shapes.values()]
    attributes = {"q_num_heads": H, "kv_num_heads": H}
    path = node_model("LinearAttention", operands, 2, attributes, opset=27)
    graph = load(path).graph
    found = run_graph(graph, {v: arrays[v.name] for v in graph.inputs})
    q, k, v = (arrays[n].reshape(B, H, -1) for n in ("x0", "x1", "x2"))
    state = arrays["x3"] * np.exp(arrays["x4"]).reshape(B, H, 1, 1)
    gap = v - np.einsum("bhk,bhkv->bhv", k, state)
    state = state + np.einsum("bhk,bhv->bhkv", k, gap * arrays["x5"].reshape(B, H, 1))
    expected = np.einsum("bhk,bhkv->bhv", q, state) * K**-0.5
    out, present = (found[v] for v in graph.outputs)
    np.testing.assert_allclose(out.reshape(B, H, V), expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(present, state, rtol=2e-5, atol=2e-5)


def test_packed_weights_count_their_true_bits(node_model):
    weight = np.zeros((128, 2, 16), np.uint8)
    operands = [("f", S, 64), None, None, *[weight, np.ones(256, np.float32), None] * 2]
    attributes = {"K": 64, "N": 128, "block_size": 32, "activation": "silu"}
    path = node_model(MS + "MatMulNBitsMlp", operands, 1, attributes)
    inputs = load(path).graph.inputs
    assert sum(v.type.bytes for v in inputs if v.type.dtype.bits == 4) == 2 * 128 * 64 // 2
