"""Rows and columns chosen: filter, order, columns, tree."""

import dataclasses

import pytest

from graph_ir.errors import OpboundError
from reports.row_filter import filter_rows
from reports.tree import module_tree
from reports.view import View


def names(report, expression):
    return [row.op for row in filter_rows(report.operators, expression)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("bound == compute", ["linear"]),
        ("bound == network", ["all_reduce"]),
        ("bound == network:nvlink", ["all_reduce"]),
        ("bound == network:infiniband", []),
        ("bound != network", ["embedding", "linear"]),
        ("time > 5us", ["linear", "all_reduce"]),
        ("time > 0.01ms and bound == compute", ["linear"]),
        ("op == embedding or op == all_reduce", ["embedding", "all_reduce"]),
        ("not op ~ reduce", ["embedding", "linear"]),
        ("module ~ layers", ["linear", "all_reduce"]),
        ("module !~ 'model.*mlp'", ["embedding"]),
        ("(op == linear or op == embedding) and share >= 70%", ["linear"]),
        ("flops >= 1k", ["linear"]),
        ("sent > 30kB", ["all_reduce"]),
        ("use < 0.45", ["all_reduce"]),
    ],
)
def test_filter(report, expression, expected):
    assert names(report, expression) == expected


@pytest.mark.parametrize(
    "expression",
    ["", "bound", "bound = memory", "bound ==", "tim > 1ms", "time > fast", "time ~ 1", "op > 3",
     "(op == add", "op == add)", "op == add and", "time > 1GB", "op == 'a"],
)  # fmt: skip
def test_what_cannot_be_read_is_told_in_one_line(report, expression):
    with pytest.raises(OpboundError) as error:
        filter_rows(report.operators, expression)
    assert "--filter" in str(error.value)
    assert "\n" not in str(error.value)


def test_order_and_columns(report):
    by_name = View(sort="op", columns=("op", "time")).table(report)[1]
    assert by_name.headers == ["op", "time"]
    assert [row[0] for row in by_name.rows] == ["all_reduce", "embedding", "linear"]
    model = View(sort="model", columns=("op",)).table(report)[1]
    assert [row[0] for row in model.rows] == ["embedding", "linear", "all_reduce"]
    assert len(View(top=1).table(report)[1].rows) == 1


@pytest.mark.parametrize("wrong", [{"sort": "tim"}, {"columns": ("tiem",)}])
def test_unknown_keys(wrong):
    with pytest.raises(OpboundError, match="did you mean"):
        View(**wrong)


def test_the_tree_adds_up(report):
    def check(module):
        if not module.parts:
            return
        parts = module.parts.values()
        assert module.count == sum(part.count for part in parts)
        assert module.flops == sum(part.flops for part in parts)
        assert module.moved_bytes == sum(part.moved_bytes for part in parts)
        assert module.time_s == pytest.approx(sum(part.time_s for part in parts))
        for part in parts:
            check(part)

    tree = module_tree(report.operators)
    check(tree)
    assert tree.flops == report.totals.flops
    assert list(tree.parts["model"].parts) == ["embed", "layers"]


def test_depth_of_the_tree(report):
    cells = View(tree=True, depth=1).table(report)[1]
    assert [row[0] for row in cells.rows] == ["(all)", "│ model"]


def test_a_hostile_module_path(make_report, nodes):
    node = dataclasses.replace(nodes[1], module="a\x1b[31m/b|\n", instances=())
    text = make_report(nodes=(node,)).to_text(view=View(tree=True))
    assert "\x1b" not in text
