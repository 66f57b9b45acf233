"""Layouts against numpy: random chains of reshapes, transposes and expansions; what is read in place."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_graph import Maker, feeds, results

from graph_ir.graph import Graph, Value
from graph_ir.patterns.in_place import read_in_place
from graph_ir.patterns.layout import (
    Layout,
    contiguous,
    expanded,
    is_strided,
    reshaped,
    shape_of,
    way_from,
)


def placed(layout: Layout) -> np.ndarray:
    """Where each element of a layout lies in its source."""
    whole = np.zeros((), dtype=int)
    for dim in layout:
        axis = np.zeros((), dtype=int)
        for n, stride in dim:
            axis = (axis[..., None] + np.arange(n) * stride).reshape(-1)
        whole = whole[..., None] + axis.reshape(-1)
    return whole


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_chains_put_every_element_where_numpy_does(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    found = np.arange(prod(shape)).reshape(shape)
    layout: Layout | None = contiguous(shape)
    for _ in range(data.draw(st.integers(1, 5))):
        how = data.draw(st.sampled_from(["transpose", "expand", "merge", "split"]))
        if how == "transpose":
            perm = data.draw(st.permutations(range(found.ndim)))
            found, layout = found.transpose(perm), tuple(layout[p] for p in perm)
            continue
        if how == "expand":
            target = tuple(2 if n == 1 else n for n in found.shape)
            found, layout = np.broadcast_to(found, target), expanded(layout, target)
            continue
        i = data.draw(st.integers(0, found.ndim - 1))
        before, n, after = found.shape[:i], found.shape[i], found.shape[i + 1 :]
        if how == "split" and n % 2 == 0:
            target = (*before, 2, n // 2, *after)
        else:
            target = (*before, n * prod(after[:1]), *after[1:])
        again = reshaped(layout, target)
        found = found.reshape(target)
        if again is None:
            return
        layout = again
    assert shape_of(layout) == found.shape
    np.testing.assert_array_equal(placed(layout), found)
    way = way_from(shape, layout)
    if way is not None:
        cut, perm = way
        source = np.arange(prod(shape)).reshape(cut).transpose(perm)
        np.testing.assert_array_equal(source.reshape(found.shape), found)


def copies(graph: Graph) -> list[str]:
    return [
        n.op for n in graph.nodes if n.definition.view_of is not None and not n.attrs.get("view")
    ]


def moved(m: Maker) -> Value:
    return m.op("transpose", [m.weight(2, 3, 4)], (3, 2, 4), perm=(1, 0, 2))


def test_a_kernel_reads_by_strides() -> None:
    maker = Maker()
    graph = maker.build(maker.relu(moved(maker)))
    assert copies(graph) == ["transpose"]
    assert copies(read_in_place(graph)) == []


def test_a_result_of_the_model_is_stored_as_it_is_written() -> None:
    maker = Maker()
    graph = maker.build(moved(maker))
    assert read_in_place(graph) is graph


def test_a_sort_wants_its_operand_row_by_row() -> None:
    maker = Maker()
    y = moved(maker)
    types = [y.type, y.type]
    graph = maker.build(*maker.builder.emit("sort", [y], types, {"axis": 2}))
    assert read_in_place(graph) is graph


def test_a_reshape_across_strides_is_the_copy() -> None:
    maker = Maker()
    graph = maker.build(maker.relu(maker.reshape(moved(maker), 6, 4)), maker.input(1))
    assert copies(read_in_place(graph)) == ["reshape"]
    maker = Maker()
    graph = maker.build(maker.relu(maker.reshape(moved(maker), 3, 2, 2, 2)))
    after = read_in_place(graph)
    assert copies(after) == []
    numbers = feeds(graph)
    for ours, theirs in zip(results(after, numbers), results(graph, numbers), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_strides_add_up() -> None:
    layout = reshaped(contiguous((4, 6)), (2, 2, 6))
    assert layout is not None
    assert is_strided(layout)
    assert [d[0][1] for d in layout] == [12, 6, 1]
