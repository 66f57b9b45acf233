"""Operators of two reports are matched by what they do, whatever they are called."""

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.diff import compare
from reports.diff.matching import match_rows, work


@pytest.fixture
def rows(report):
    """Forty operators of five kinds, each with a name of its own."""
    one = report.operators[0]
    return [
        dataclasses.replace(one, name=f"node_{i}", module="", flops=100 + i % 5, instances=())
        for i in range(40)
    ]


def states(before, after):
    found = {"same": 0, "renamed": 0, "moved": 0, "changed": 0, "added": 0, "removed": 0}
    for match in match_rows(before, after):
        if match.before is None:
            found["added"] += 1
        elif match.after is None:
            found["removed"] += 1
        elif not match.same_work:
            found["changed"] += 1
        else:
            found["moved" if match.moved else "renamed" if match.renamed else "same"] += 1
    return {state: count for state, count in found.items() if count}


def renamed(rows, prefix="other_"):
    return [dataclasses.replace(row, name=f"{prefix}{i}") for i, row in enumerate(rows)]


def test_nothing_changed(rows):
    assert states(rows, rows) == {"same": 40}


def test_every_name_changed(rows):
    assert states(rows, renamed(rows)) == {"renamed": 40}


def test_a_node_put_in_shifts_all_numbers(rows):
    extra = dataclasses.replace(rows[0], op="transpose", flops=0)
    after = renamed([*rows[:7], extra, *rows[7:]], "node_")
    found = states(rows, after)
    assert found.pop("added") == 1
    assert sum(found.values()) == 40
    assert "changed" not in found


def test_a_wider_layer_keeps_its_name(rows):
    after = list(rows)
    after[3] = dataclasses.replace(rows[3], flops=999_999)
    assert states(rows, after) == {"same": 39, "changed": 1}


def test_a_wider_layer_of_a_renamed_model(rows):
    after = renamed(rows)
    after[3] = dataclasses.replace(after[3], flops=999_999)
    assert states(rows, after) == {"renamed": 39, "changed": 1}


def test_another_order_of_independent_operators(rows):
    after = [rows[5], *rows[:5], *rows[6:]]
    assert states(rows, after) == {"same": 39, "moved": 1}


@given(seed=st.integers(0, 2**32), edits=st.integers(0, 12))
def test_each_row_is_matched_once_and_no_work_is_lost(seed, edits):
    from reports.figures import OpRow

    one = OpRow(
        name="n", module="", op="add", phase="forward", count=1, shapes=((2,),), dtypes=("float32",),
        flops=1, bytes_read=8, bytes_written=8, bytes_communicated=0, arithmetic_intensity=0.1,
        time_s=1e-6, share=0.1, bound="latency", engine="v", utilization=0.5,
    )  # fmt: skip
    rng = random.Random(seed)
    before = [dataclasses.replace(one, name=f"a{i}", flops=rng.randrange(4)) for i in range(20)]
    after = [
        dataclasses.replace(row, name=rng.choice([row.name, "b" + row.name])) for row in before
    ]
    for _ in range(edits):
        if rng.random() < 0.5 and after:
            after.pop(rng.randrange(len(after)))
        else:
            fresh = dataclasses.replace(one, name=f"c{rng.random()}", flops=rng.randrange(6))
            after.insert(rng.randrange(len(after) + 1), fresh)
    matches = match_rows(before, after)
    assert sorted(m.before.name for m in matches if m.before) == sorted(r.name for r in before)
    assert [m.after.name for m in matches if m.after] == [r.name for r in after]
    # No operator is called added or removed while one that does the same is called the other.
    lost = {work(m.before) for m in matches if m.after is None}
    assert not lost & {work(m.after) for m in matches if m.before is None}


def test_totals_and_flips(make_report, nodes):
    slower = [dataclasses.replace(nodes[1], time_s=20e-6, bound="memory:dram"), *nodes[2:]]
    difference = compare(make_report(), make_report(nodes=slower))
    totals = {total.name: total for total in difference.totals}
    assert totals["operators"].change == -1
    assert difference.count("removed") == 1
    assert difference.count("same") == 4
    assert [change.bound for change in difference.changes if change.flips] == [
        "compute → memory:dram"
    ]
    assert not difference.same_work
