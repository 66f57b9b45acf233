"""What looks like a pattern and is none stays as it is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pattern_cases import LOW, attention, hard_swish, layer_norm, rms_norm, rotary
from pattern_graph import Maker, operators

from graph_ir.canonicalize import recognised
from graph_ir.graph import Graph, Value
from graph_ir.tensor_type import DType
from graph_ir.training import training_graph


def mean_of(m: Maker, *axes: int) -> Value:
    x = m.weight(2, 8, 8)
    centred = m.sub(x, m.mean(x, *axes))
    return m.div(centred, m.sqrt(m.add(m.mean(m.pow(centred, 2), *axes), 1e-3)))


def two_axes(m: Maker) -> Value:
    x = m.weight(2, 8, 8)
    centred = m.sub(x, m.mean(x, 2))
    again = m.sub(x, m.mean(x, 1))
    return m.div(centred, m.sqrt(m.add(m.mean(m.pow(again, 2), 2), 1e-3)))


def eps_outside(m: Maker) -> Value:
    x = m.weight(2, 3, 8)
    centred = m.sub(x, m.mean(x))
    return m.div(centred, m.add(m.sqrt(m.mean(m.pow(centred, 2))), 1e-3))


def other_power(m: Maker) -> Value:
    x = m.weight(2, 3, 8)
    return m.mul(x, m.rsqrt(m.add(m.mean(m.pow(x, 4)), 1e-3)))


def square_of_another(m: Maker) -> Value:
    x, other = m.weight(2, 3, 8), m.weight(2, 3, 8)
    return m.mul(x, m.rsqrt(m.add(m.mean(m.pow(other, 2)), 1e-3)))


def gelu_with(half: float, root: float) -> Callable[[Maker], Value]:
    def build(m: Maker) -> Value:
        x = m.weight(4, 5)
        return m.mul(m.mul(x, half), m.add(m.erf(m.div(x, root)), 1.0))

    return build


def steep_gate(m: Maker) -> Value:
    x = m.weight(4, 5)
    return m.mul(x, m.sigmoid(m.mul(x, m.weight(5))))


def unbiased(m: Maker) -> Value:
    """Statistics divided by one less than there are elements."""
    x = m.weight(2, 3, 8)
    centred = m.sub(x, m.mean(x))
    squares = m.pow(centred, 2)
    variance = m.op("reduce_mean", [squares], (2, 3, 1), axes=(2,), keepdims=True, divisor=7)
    return m.div(centred, m.sqrt(m.add(variance, 1e-3)))


def no_eps(m: Maker) -> Value:
    x = m.weight(2, 3, 8)
    return m.mul(x, m.rsqrt(m.mean(m.pow(x, 2))))


def sum_of_squares(m: Maker) -> Value:
    x = m.weight(2, 3, 8)
    return m.mul(x, m.rsqrt(m.add(m.div(m.reduce("sum", m.mul(x, x)), 7.0), 1e-3)))


def turned_backwards(m: Maker) -> Value:
    """Signs that turn the second part the other way."""
    x, cos, sin = m.weight(2, 3, 5, 8), m.input(5, 4), m.input(5, 4)
    a, b = m.slice(x, 0, 4), m.slice(x, 4, 8)
    first = m.sub(m.mul(a, cos), m.mul(b, sin))
    return m.concat(first, m.sub(m.mul(b, cos), m.mul(a, sin)))


def gate(m: Maker) -> Value:
    return m.mul(m.weight(4, 5), m.sigmoid(m.weight(4, 5)))


def relu5(m: Maker) -> Value:
    x = m.weight(4, 5)
    return m.div(m.mul(x, m.clamp(m.add(x, 3.0), min=0.0, max=5.0)), 6.0)


def scaled_mask(m: Maker) -> Value:
    scores = m.add(m.matmul(m.weight(2, 4, 5, 8), m.weight(2, 4, 8, 6)), m.input(2, 1, 5, 6))
    return m.matmul(m.softmax(m.mul(scores, 0.3), axis=-1), m.weight(2, 4, 6, 8))


def flipped_mask(m: Maker) -> Value:
    """A negative factor makes the largest scores of those that a mask cut out."""
    scores = m.matmul(m.weight(2, 4, 5, 8), m.weight(2, 4, 8, 6))
    cut = m.where(m.input(5, 6, dtype=DType.BOOL), scores, m.constant(LOW))
    return m.matmul(m.softmax(m.mul(cut, -0.3), axis=-1), m.weight(2, 4, 6, 8))


def mild_mask(m: Maker) -> Value:
    scores = m.matmul(m.weight(2, 4, 5, 8), m.weight(2, 4, 8, 6))
    cut = m.where(m.input(5, 6, dtype=DType.BOOL), scores, m.constant(np.array(-1.0)))
    return m.matmul(m.softmax(cut, axis=-1), m.weight(2, 4, 6, 8))


def other_axis(m: Maker) -> Value:
    scores = m.matmul(m.weight(2, 4, 6, 8), m.weight(2, 4, 8, 6))
    return m.matmul(m.softmax(scores, axis=2), m.weight(2, 4, 6, 8))


def cap_behind_a_mask(m: Maker) -> Value:
    scores = m.add(m.matmul(m.weight(2, 4, 6, 8), m.weight(2, 4, 8, 6)), m.input(6, 6))
    return m.matmul(m.softmax(m.tanh(scores), axis=-1), m.weight(2, 4, 6, 8))


def mask_behind_the_softmax(m: Maker) -> Value:
    weights = m.softmax(m.matmul(m.weight(2, 4, 6, 8), m.weight(2, 4, 8, 6)), axis=-1)
    return m.matmul(m.mul(weights, m.input(6, 6)), m.weight(2, 4, 6, 8))


def scaled_by_a_tensor(m: Maker) -> Value:
    scores = m.mul(m.matmul(m.weight(2, 4, 6, 8), m.weight(2, 4, 8, 6)), m.weight(4, 1, 1))
    return m.matmul(m.softmax(scores, axis=-1), m.weight(2, 4, 6, 8))


def weights_transposed(m: Maker) -> Value:
    """Sums over the queries, not over the keys."""
    weights = m.softmax(m.matmul(m.weight(2, 4, 6, 8), m.weight(2, 4, 8, 6)), axis=-1)
    return m.matmul(m.transpose(weights, 0, 1, 3, 2), m.weight(2, 4, 6, 8))


def heads_shared_crosswise(m: Maker) -> Value:
    """Groups share by their outer dim: no run of query heads reads one key head."""
    q, k = m.weight(2, 2, 2, 5, 8), m.weight(2, 1, 2, 8, 6)
    return m.matmul(m.softmax(m.matmul(q, k), axis=-1), m.weight(2, 1, 2, 6, 7))


def mask_of_images(m: Maker) -> Value:
    """The windows of an image share a mask, which no batch of masks can say without copies."""
    q, k, v = (m.weight(6, 4, 5, 8) for _ in range(3))
    scores = m.matmul(q, m.swap(k))
    scores = m.add(m.reshape(scores, 2, 3, 4, 5, 5), m.input(2, 1, 1, 5, 5))
    return m.matmul(m.softmax(m.reshape(scores, 6, 4, 5, 5), axis=-1), v)


def softmax_of_two_axes(m: Maker) -> Value:
    powers = m.exp(m.weight(4, 5, 6))
    return m.div(powers, m.reduce("sum", powers, 1, 2))


def mixed_halves(m: Maker) -> Value:
    x = m.weight(2, 3, 5, 8)
    turned = m.concat(m.neg(m.slice(x, 0, 4)), m.slice(x, 4, 8))
    return m.add(m.mul(x, m.input(5, 8)), m.mul(turned, m.input(5, 8)))


MISSES: dict[str, Callable[[Maker], Value]] = {
    "mean over the wrong axis": lambda m: mean_of(m, 1),
    "mean over two axes apart": lambda m: mean_of(m, 0, 2),
    "means over different axes": two_axes,
    "eps outside of the root": eps_outside,
    "fourth power": other_power,
    "square of another tensor": square_of_another,
    "gelu without its half": gelu_with(0.6, 2**0.5),
    "gelu with another root": gelu_with(0.5, 1.5),
    "gate of a trained steepness": steep_gate,
    "unbiased variance": unbiased,
    "RMS norm without eps": no_eps,
    "sum of squares over another number": sum_of_squares,
    "rotary of other signs": turned_backwards,
    "gate of another tensor": gate,
    "clamp to 5": relu5,
    "scale behind a mask": scaled_mask,
    "negative scale behind a mask": flipped_mask,
    "mask that only lowers scores": mild_mask,
    "softmax over queries": other_axis,
    "tanh behind a mask": cap_behind_a_mask,
    "mask behind the softmax": mask_behind_the_softmax,
    "scores scaled by a tensor": scaled_by_a_tensor,
    "weights transposed": weights_transposed,
    "heads shared crosswise": heads_shared_crosswise,
    "mask of whole images": mask_of_images,
    "softmax over two axes": softmax_of_two_axes,
    "rotary with the wrong half negated": mixed_halves,
}
CANONICAL = set(
    """layer_norm rms_norm group_norm attention rotary_embedding gelu gelu_tanh silu hardswish softplus
    mish log_softmax""".split()
)


@pytest.mark.parametrize("name", MISSES)
def test_a_near_miss_stays_as_it_is(name: str) -> None:
    maker = Maker()
    graph = maker.build(MISSES[name](maker))
    found = recognised(graph)
    if name in ("means over different axes",):
        assert not {"layer_norm", "group_norm"} & set(operators(found))
    else:
        assert operators(found) == operators(graph)


def _all_read(maker: Maker, build: Callable[[Maker], Value], op: str) -> list[Graph]:
    """The graph, once per inner value that is also a result."""
    last = build(maker)
    values = [n.outputs[0] for n in maker.builder.nodes[:-1] if n.op == op]
    return [maker.build(value, last) for value in values]


@pytest.mark.parametrize(
    ("build", "inner", "wanted"),
    [
        (layer_norm, "sqrt", "layer_norm"),
        (layer_norm, "div", "layer_norm"),
        (rms_norm, "rsqrt", "rms_norm"),
        (hard_swish, "clamp", "hardswish"),
        (rotary, "concat", "rotary_embedding"),
        (attention, "softmax", "attention"),
        (attention, "matmul", "attention"),
    ],
)
def test_an_inner_value_that_others_read_stays(
    build: Callable[[Maker], Value], inner: str, wanted: str
) -> None:
    """Returned by the model, or read by another operator."""
    arguments = {"order": 1} if build is hard_swish else {}
    for graph in _all_read(Maker(), lambda m: build(m, **arguments), inner):
        after = recognised(graph)
        kept = {v for n in after.nodes for v in n.outputs}
        assert set(graph.outputs) <= kept
        if inner != "div":  # what a norm's weight multiplies is a norm by itself
            assert wanted not in operators(after)
    maker = Maker()
    last = build(maker, **arguments)
    value = next(n.outputs[0] for n in maker.builder.nodes if n.op == inner)
    graph = maker.build(last, maker.neg(value))
    if inner != "div":
        assert operators(recognised(graph)) == operators(graph)


def test_a_mask_that_is_trained_gets_a_gradient() -> None:
    """A table of position biases, as T5 and Swin train it."""
    maker = Maker()
    scores = maker.matmul(maker.weight(2, 4, 5, 8), maker.weight(2, 4, 8, 6))
    biased = maker.add(scores, maker.weight(1, 4, 5, 6))
    weights = maker.softmax(biased, axis=-1)
    graph = maker.build(maker.matmul(weights, maker.weight(2, 4, 6, 8)))
    (node,) = (
        n
        for n in training_graph(recognised(graph, training=True)).nodes
        if n.op == "attention_backward"
    )
    assert [v.type.shape for v in node.outputs][3:] == [(1, 4, 5, 6)]


def test_dropout_is_part_of_attention() -> None:
    maker = Maker()
    graph = maker.build(attention(maker, dropout=0.1))
    (node,) = (n for n in recognised(graph, training=True).nodes if n.op == "attention")
    assert node.attrs["dropout"] == 0.1
    assert [v.type.shape for v in node.outputs] == [(2, 4, 5, 7), (2, 4, 5)]


def test_a_constant_triangle_is_causal() -> None:
    for mask in ("causal", "triangle"):
        maker = Maker()
        graph = recognised(maker.build(attention(maker, mask, s=6, t=6)))
        (node,) = (n for n in graph.nodes if n.op == "attention")
        assert node.attrs["causal"]
        assert len(node.inputs) == 3
