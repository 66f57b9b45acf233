"""Folding layers to a row and expanding it again changes no sum."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import Instance, OpRow
from reports.rows import busiest_first, expand_rows, fold_rows, intensity, layer_pattern

SUMS = ("count", "flops", "bytes_read", "bytes_written", "bytes_communicated", "time_s", "share")


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("model.layers.12.mlp", "model.layers.*.mlp"),
        ("/h.0/attn/MatMul", "/h.*/attn/MatMul"),
        ("layer1.0.conv2", "layer1.*.conv2"),
        ("Conv_12", "Conv_12"),
        ("0", "*"),
        ("n[3-9]", "n[3-9]"),
        ("layers.[0-31].mlp", "layers.*.mlp"),
        ("", ""),
    ],
)
def test_only_whole_numbers_in_a_path_are_layer_indices(path, pattern):
    assert layer_pattern(path) == pattern


def test_a_folded_node_becomes_a_pattern(report):
    linear = next(row for row in report.operators if row.op == "linear")
    assert (linear.module, linear.name) == (
        "model.layers.[0-1].mlp",
        "model.layers.[0-1].mlp.matmul",
    )
    assert linear.label == "model.layers.[0-1].mlp.matmul"


def test_a_fold_and_its_neighbours_become_one_row(report):
    """The first and last layer often stay out of a fold, because they are wired differently."""
    single = report.every_node().operators[1]
    last = dataclasses.replace(
        single, name="model.layers.2.mlp.matmul", module="model.layers.2.mlp"
    )
    folded = next(row for row in report.operators if row.op == "linear")
    (row,) = fold_rows([folded, last])
    assert (row.name, row.module) == ("model.layers.[0-2].mlp.matmul", "model.layers.[0-2].mlp")
    assert row.count == 3


def test_expanding_names_every_node(report):
    rows = report.every_node().operators
    assert [row.name for row in rows] == [
        "embed",
        "model.layers.0.mlp.matmul",
        "model.layers.1.mlp.matmul",
        "model.layers.0.mlp.all_reduce",
        "model.layers.1.mlp.all_reduce",
    ]
    assert rows[2].module == "model.layers.1.mlp"
    assert all(row.count == 1 for row in rows)


def test_expanding_keeps_sums_and_folding_takes_it_back(report):
    rows = report.every_node().operators
    for key in SUMS:
        assert sum(r[key] for r in rows) == pytest.approx(sum(r[key] for r in report.operators))
    again = fold_rows(rows)
    assert [row.name for row in again] == [row.name for row in report.operators]
    for folded, row in zip(again, report.operators, strict=True):
        for key in SUMS:
            assert folded[key] == pytest.approx(row[key])
        assert folded.instances == row.instances


@given(
    count=st.integers(1, 9),
    flops=st.integers(0, 10**15),
    read=st.integers(0, 10**12),
    parts=st.integers(2, 7),
)
def test_expanding_never_loses_a_unit(count, flops, read, parts):
    row = OpRow(
        name="h.*.a",
        module="h.*",
        op="add",
        phase="forward",
        count=count * parts,
        shapes=(),
        dtypes=(),
        flops=flops,
        bytes_read=read,
        bytes_written=0,
        bytes_communicated=0,
        arithmetic_intensity=0.0,
        time_s=1.0,
        share=1.0,
        bound="compute",
        engine="vector",
        utilization=1.0,
        instances=tuple(Instance(f"h.{i}.a", f"h.{i}") for i in range(parts)),
    )
    rows = expand_rows([row])
    assert sum(r.flops for r in rows) == flops
    assert sum(r.bytes_read for r in rows) == read
    assert {r.count for r in rows} == {count}


def test_rows_with_another_bound_do_not_merge(report):
    first = report.every_node().operators[1]
    other = dataclasses.replace(first, name="model.layers.1.mlp.matmul", bound="memory:dram")
    assert len(fold_rows([first, other])) == 2


def test_busiest_first_keeps_the_order_of_equals(report):
    assert [row.op for row in busiest_first(report.operators, 2)] == ["linear", "all_reduce"]
    twins = [dataclasses.replace(report.operators[0], name=name) for name in "ab"]
    assert [row.name for row in busiest_first(twins)] == ["a", "b"]


def test_intensity_without_bytes():
    assert intensity(0, 0) == 0.0
    assert intensity(8, 0) is None
    assert intensity(8, 2) == 4.0
