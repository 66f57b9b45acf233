"""Gradient rules against torch.autograd in float64: broadcasting, views, windows, masks, statistics."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from op_cases import backward, differentiable, has_gradient, tensors_of, torch_results  # noqa: E402
from op_sample import Sample  # noqa: E402
from op_samples import SAMPLES  # noqa: E402

from graph_ir.op_def import all_ops  # noqa: E402

# Records without a gradient rule: their result is no float, or constant almost everywhere.
FLAT = set(
    """floor ceil round sign logical_not isnan isinf bitwise_not equal not_equal less less_equal greater
    greater_equal logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor bit_shift_left
    bit_shift_right floor_divide fill argmax argmin histogram count_thresholds""".split()
)
NO_GRADIENT = FLAT | {
    *("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "send", "recv"),
    "collective_permute",
    *("adamw", "sgd", "own_part", "shard"),
    # Partitioning writes these, after the backward pass is there.
    *("ring_chunk", "ring_join", "attention_merge"),
    *("norm_sums", "norm_statistics", "norm_scale"),
    "detach",  # that is its meaning
}
DIFFERENTIABLE = [s for s in SAMPLES if has_gradient(s)]


def test_no_gradient_is_dropped_silently() -> None:
    without = {
        n
        for n, d in all_ops().items()
        if d.gradient is None and not n.endswith("_backward") and "_backward_" not in n
    }
    assert without == NO_GRADIENT


def test_every_gradient_rule_has_a_sample() -> None:
    tested = {s.op for s in DIFFERENTIABLE}
    rules = {n for n, d in all_ops().items() if d.gradient is not None and d.evaluate is not None}
    assert rules - tested <= {"dequantize", "quantize"}, "straight-through: not the true gradient"


@pytest.mark.parametrize("sample", DIFFERENTIABLE, ids=str)
def test_gradients_equal_autograd(sample: Sample) -> None:
    ours = backward(sample)
    wanted = differentiable(sample)
    tensors = tensors_of(sample)
    for i in wanted:
        tensors[i].requires_grad_()
    results = torch_results(sample, tensors)
    pairs = [(r, g) for r, g in zip(results, ours.cotangents, strict=False) if g is not None]
    expected = torch.autograd.grad(
        [r for r, _ in pairs], [tensors[i] for i in wanted], [torch.from_numpy(g) for _, g in pairs]
    )
    for i, theirs in zip(wanted, expected, strict=True):
        mine = ours.gradients[i]
        assert mine is not None, f"no gradient for operand {i}"
        assert mine.type.shape == tuple(theirs.shape)
        np.testing.assert_allclose(ours.values[mine], theirs.numpy(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sample", DIFFERENTIABLE, ids=str)
def test_only_wanted_gradients_are_computed(sample: Sample) -> None:
    """A product or a broadcast does no work for an operand that needs no gradient."""
    found = backward(sample)
    read = {v for n in found.graph.nodes for v in n.inputs} | set(found.graph.outputs)
    dead = [n for n in found.graph.nodes[1:] if not read.intersection(n.outputs)]
    assert not dead
