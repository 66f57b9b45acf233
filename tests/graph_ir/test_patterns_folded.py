"""Patterns in repeated layers, across the cut between two of them, and in very large graphs."""

from __future__ import annotations

import time

import pytest
from pattern_cases import layer_norm
from pattern_graph import Maker, operators

from graph_ir.canonicalize import canonicalize
from graph_ir.fold import fold
from graph_ir.graph import Graph, Value
from graph_ir.tensor_type import DType
from graph_ir.training import training_graph


def layers(count: int) -> Graph:
    """A residual stream through RMS norm, gated product and layer norm, as Llama's casts have it."""
    m = Maker()
    x = m.input(4, 8, dtype=DType.BFLOAT16)
    for _ in range(count):
        x = m.add(x, _gated(m, _rms(m, x)))
    return m.build(x)


def _rms(m: Maker, x: Value) -> Value:
    wide = m.cast(x, DType.FLOAT32)
    scale = m.rsqrt(m.add(m.mean(m.mul(wide, wide)), 1e-6))
    normed = m.cast(m.mul(wide, scale), DType.BFLOAT16)
    return m.mul(m.weight(8, dtype=DType.BFLOAT16), normed)


def _gated(m: Maker, x: Value) -> Value:
    gate, up = (m.matmul(x, m.weight(8, 8, dtype=DType.BFLOAT16)) for _ in range(2))
    return m.mul(m.mul(gate, m.sigmoid(gate)), up)


def test_folded_and_unfolded_become_the_same() -> None:
    graph = layers(6)
    before = canonicalize(fold(graph))
    after = fold(canonicalize(graph))
    for found in (before, after):
        (block,) = found.blocks
        assert (block.count, block.stop - block.start) == (6, 6)
        counted = [n.op for n in found.nodes for _ in range(n.count)]
        assert counted.count("rms_norm") == counted.count("silu") == 6
        assert all(n.count == 6 == len(n.instances) for n in found.nodes)
        assert all(v.count == 6 for n in found.nodes for v in n.outputs)
    assert [n.signature for n in before.nodes] == [n.signature for n in after.nodes]


def test_folded_layers_train() -> None:
    graph = training_graph(fold(canonicalize(layers(6), training=True)))
    found = operators(graph)
    assert found["rms_norm_backward"] == found["silu_backward"] == 1
    saved = next(n for n in graph.nodes if n.op == "rms_norm").outputs[1]
    assert (saved.type.shape, saved.type.dtype, saved.count) == ((4,), DType.FLOAT32, 6)


def test_a_pattern_ends_at_the_border_of_a_block() -> None:
    """What every repetition hands on cannot vanish, nor what the last one leaves behind."""
    graph = fold(layers(6))
    carried = {c.result for b in graph.blocks for c in b.carries}
    after = canonicalize(graph)
    assert carried == {c.result for b in after.blocks for c in b.carries}
    assert carried <= {v for n in after.nodes for v in n.outputs}


def test_names_stay_unique() -> None:
    maker = Maker()
    graph = maker.build(maker.add(layer_norm(maker), layer_norm(maker)))
    after = canonicalize(graph, training=True)
    names = [n.name for n in after.nodes]
    values = [v.name for n in after.nodes for v in n.outputs] + [v.name for v in after.inputs]
    assert len(set(names)) == len(names)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("training", [False, True])
def test_time_is_linear_in_nodes(training: bool) -> None:
    def seconds(count: int) -> float:
        graph = layers(count)
        start = time.perf_counter()
        found = canonicalize(graph, training=training)
        assert operators(found)["rms_norm"] == count
        return time.perf_counter() - start

    small, large = seconds(300), seconds(2400)
    assert large < 8 * 4 * max(small, 0.01)
