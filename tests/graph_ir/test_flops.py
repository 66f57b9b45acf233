"""FLOPs of products, forward and backward, against PyTorch's own counter."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from op_cases import backward, tensors_of, torch_results  # noqa: E402
from op_sample import Sample, normal, sample  # noqa: E402
from op_samples import SAMPLES  # noqa: E402
from samples_contraction import conv_sample, conv_transpose_sample  # noqa: E402

from graph_ir.graph import Node  # noqa: E402
from graph_ir.ops.attention import attend  # noqa: E402

PRODUCTS = [
    s
    for s in SAMPLES
    if s.op in ("linear", "matmul", "grouped_matmul", "conv", "conv_transpose")
    or str(s) == "einsum-compound"
]


def counted(sample: Sample) -> tuple[int, int]:
    """FLOPs of the forward and of the backward pass that PyTorch counts while it runs them."""
    from torch.utils.flop_counter import FlopCounterMode

    tensors = [t.requires_grad_() for t in tensors_of(sample)]
    with FlopCounterMode(display=False) as forward:
        (result,) = torch_results(sample, tensors)
    with FlopCounterMode(display=False) as back:
        result.backward(torch.ones_like(result))
    return forward.get_total_flops(), back.get_total_flops()


def gradient_nodes(sample: Sample) -> list[Node]:
    return [n for n in backward(sample).graph.nodes[1:] if n.definition.kind != "data_movement"]


@pytest.mark.parametrize("sample", PRODUCTS, ids=str)
def test_products_equal_the_counter(sample: Sample) -> None:
    _, node = sample.node()
    forward, back = counted(sample)
    assert node.flops == forward
    nodes = gradient_nodes(sample)
    groups = sample.attrs.get("groups", 1)
    if groups == 1:
        assert sum(n.flops for n in nodes) == back
        return
    # The counter multiplies every input channel with every output channel in a weight gradient, also
    # across groups. Each gradient costs what the forward pass costs.
    by_operand = {n.attrs["gradient_of"]: n.flops for n in nodes}
    assert by_operand == {0: forward, 1: forward}
    assert back == by_operand[0] + groups * by_operand[1]


def test_convolution_by_hand() -> None:
    """ResNet-50's first layer: 112 x 112 positions, 64 filters of 3 x 7 x 7."""
    sample = conv_sample((1, 3, 224, 224), (64, 3, 7, 7), stride=(2, 2), padding=(3, 3))
    _, node = sample.node()
    assert node.flops == 2 * 112 * 112 * 64 * 3 * 7 * 7
    assert node.equation.gemm == (1, 112 * 112, 64, 3 * 7 * 7)


def test_depthwise_convolution_is_no_matrix_product() -> None:
    """Nothing is reused between channels, so a matrix engine is of no use."""
    _, node = conv_sample((2, 8, 9, 9), (8, 1, 3, 3), groups=8, padding=(1, 1)).node()
    assert node.flops == 2 * 2 * 8 * 9 * 9 * 9
    assert node.equation.gemm == (8, 2 * 9 * 9, 1, 9)
    assert node.definition.engine_of(node) == "vector"


def test_gradients_of_a_convolution_are_gemms() -> None:
    """Input gradient: positions x channels, summed over filters and taps; weight gradient: over positions."""
    sample = conv_sample((2, 3, 9, 9), (5, 3, 3, 3))
    shapes = {n.attrs["gradient_of"]: n.equation.gemm for n in gradient_nodes(sample)}
    assert shapes[0] == (1, 2 * 7 * 7, 3, 5 * 3 * 3)
    assert shapes[1] == (1, 5, 3 * 3 * 3, 2 * 7 * 7)
    assert conv_transpose_sample((2, 3, 5, 5), (3, 4, 3, 3)).node()[1].equation.gemm == (
        *(1, 2 * 5 * 5, 4, 3 * 3 * 3),
    )


ATTENTION = [s for s in SAMPLES if s.op == "attention" and "parts" not in s.attrs]


@pytest.mark.parametrize("sample", ATTENTION, ids=str)
def test_attention_equals_the_formulas(sample: Sample) -> None:
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    _, node = sample.node()
    q, k, v = (value.type.shape for value in node.inputs[:3])
    out = node.outputs[0].type.shape
    assert node.flops == sdpa_flop_count(q, k, v)
    (back,) = gradient_nodes(sample)
    assert back.flops == sdpa_backward_flop_count(out, q, k, v)


def test_causal_attention_executes_half() -> None:
    """Of a square, the diagonal and what is below; with cached keys, all but the last triangle."""
    for s, t, pairs in ((6, 6, 21), (1, 9, 9), (3, 8, 6 + 7 + 8), (5, 2, 1 + 2 + 2 + 2 + 2)):
        q, k = normal(1, 2, s, 4), normal(1, 2, t, 4)
        results = [((1, 2, s, 4), "float64"), ((1, 2, s), "float64")]
        _, node = sample("attention", [q, k, k], results, {"causal": True}).node()
        fraction = node.definition.executed_fraction
        assert fraction is not None
        assert fraction(node) == pytest.approx(pairs / (s * t))
        _, _, probabilities = attend(q, k, k, None, {"causal": True})
        assert np.count_nonzero(probabilities) == 2 * pairs


def test_engines() -> None:
    """Products with reuse on both sides run on matrix engines, the rest on vector engines."""
    _, linear = sample("linear", [normal(3, 4), normal(5, 4)], (3, 5)).node()
    _, dot = sample("matmul", [normal(1, 4), normal(4, 5)], (1, 5)).node()
    _, add = sample("add", [normal(3), normal(3)]).node()
    _, view = sample("reshape", [normal(6)], (2, 3), {"view": True}).node()
    _, copy = sample("reshape", [normal(6)], (2, 3)).node()
    engines = [n.definition.engine_of(n) for n in (linear, dot, add, view, copy)]
    assert engines == ["matrix", "matrix", "vector", "none", "copy"]
