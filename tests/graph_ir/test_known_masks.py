"""Masks that are known by their numbers: bands are found however they are made, and only bands."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pattern_graph import Maker

from graph_ir.canonicalize import canonicalize
from graph_ir.graph import Graph, Node, Value
from graph_ir.ops.attention import causal_fraction
from graph_ir.tensor_type import DType, TensorType

LOW = np.array(-3e38)


def positions(m: Maker, count: int, *shape: int) -> Value:
    made = [TensorType((count,), DType.INT64)]
    (line,) = m.builder.emit("fill", [], made, {"start": 0, "step": 1})
    return m.reshape(line, *shape)


def compared(m: Maker, name: str, a: Value, b: Value) -> Value:
    shape = np.broadcast_shapes(a.type.shape, b.type.shape)
    return m.builder.emit(name, [a, b], [TensorType(shape, DType.BOOL)])[0]


def attend(m: Maker, s: int, t: int, keep: Value) -> Graph:
    q, k, v = (
        m.builder.add_input(n, TensorType((2, 4, c, 8), DType.FLOAT32))
        for n, c in zip("qkv", (s, t, t), strict=True)
    )
    scores = m.where(keep, m.matmul(q, m.swap(k)), m.constant(LOW))
    return m.build(m.matmul(m.softmax(scores, axis=-1), v))


def attention_of(graph: Graph) -> Node:
    (node,) = (n for n in canonicalize(graph).nodes if n.op == "attention")
    return node


def ranges(m: Maker, s: int, t: int, window: int | None = None) -> Value:
    rows, columns = m.add(positions(m, s, s, 1), t - s), positions(m, t, 1, t)
    keep = compared(m, "less_equal", columns, rows)
    if window:
        keep = compared(
            m, "logical_and", keep, compared(m, "greater", columns, m.sub(rows, window))
        )
    return keep


@pytest.mark.parametrize(
    ("s", "t", "window"), [(6, 6, None), (6, 9, None), (6, 6, 3), (5, 9, 4), (1, 9, 4)]
)
def test_a_band_made_from_positions(s: int, t: int, window: int | None) -> None:
    m = Maker()
    node = attention_of(attend(m, s, t, ranges(m, s, t, window)))
    table = np.tril(np.ones((s, t), dtype=bool), t - s)
    if window:
        table = np.triu(table, t - s - window + 1)
    assert len(node.inputs) == 3
    assert node.attrs.get("window") == window
    assert causal_fraction(node) == pytest.approx(table.mean())


def random_table(s: int) -> NDArray[Any]:
    return np.random.default_rng(0).random((s, s)) < 0.5


@pytest.mark.parametrize(
    "table",
    [
        np.triu(np.ones((6, 6), dtype=bool)),
        np.tril(np.ones((6, 6), dtype=bool), 1),
        np.tril(np.ones((6, 6), dtype=bool)) ^ np.eye(6, k=-3, dtype=bool),
        random_table(6),
    ],
)
def test_what_is_no_band_stays(table: NDArray[Any]) -> None:
    m = Maker()
    node = attention_of(attend(m, 6, 6, m.constant(table, DType.BOOL)))
    assert len(node.inputs) == 4
    assert not node.attrs["causal"]


def test_a_padding_mask_beside_a_causal_one_stays() -> None:
    m = Maker()
    padding = m.input(2, 1, 1, 6, dtype=DType.BOOL)
    node = attention_of(attend(m, 6, 6, compared(m, "logical_and", ranges(m, 6, 6), padding)))
    assert node.attrs["causal"]
    assert node.inputs[3].type.shape == (2, 1, 1, 6)


def test_a_mask_that_keeps_everything_goes() -> None:
    m = Maker()
    node = attention_of(attend(m, 6, 6, m.constant(np.ones((1, 6), dtype=bool), DType.BOOL)))
    assert len(node.inputs) == 3
    assert not node.attrs["causal"]


def test_a_huge_mask_is_never_whole() -> None:
    m = Maker()
    s = 100_000
    graph = attend(m, s, s, ranges(m, s, s, 4096))
    tracemalloc.start()
    node = attention_of(graph)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert node.attrs["window"] == 4096
    assert peak < 300e6


def test_what_never_changes_is_prepared_once() -> None:
    m = Maker()
    x = m.input(2, 6, 8)
    angles = m.mul(m.cast(positions(m, 6, 6, 1), DType.FLOAT32), m.constant(np.ones(8)))
    found = canonicalize(m.build(m.mul(x, m.cos(angles))))
    assert [n.op for n in found.nodes] == ["mul"]
    assert found.nodes[0].inputs[1].kind == "constant"


def test_random_numbers_are_drawn_each_time() -> None:
    m = Maker()
    x = m.input(2, 6, 8)
    (noise,) = m.builder.emit("fill", [], [TensorType((2, 6, 8), DType.FLOAT32)], {})
    found = canonicalize(m.build(m.mul(x, m.cos(noise))))
    assert [n.op for n in found.nodes] == ["fill", "cos", "mul"]
