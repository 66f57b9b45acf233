"""The closing sentences are computed: each expected figure is worked out beside its test."""

import dataclasses

import pytest

from reports import StepTimes
from reports.conclusions import BUBBLE, StepParts, bound_words, find_limit


def parts_of(report, **changes):
    given = {
        "rows": report.operators,
        "step_time_s": report.totals.step_time_s,
        "exposed_communication_s": report.totals.exposed_communication_s,
        "bubble_fraction": report.totals.bubble_fraction,
    }
    return StepParts(**(given | changes))


def test_the_limit_is_the_bound_with_the_most_visible_time(report):
    limit = find_limit(parts_of(report))
    assert limit.bound == "compute"
    assert limit.time_s == pytest.approx(24e-6)
    assert limit.row is not None
    assert limit.row.op == "linear"


def test_without_the_limit_the_next_term_counts(report):
    # Each linear falls from 10 + 2 us to 4 (dram) + 2 (latency): the step loses 2 x 6 us of 32.
    limit = find_limit(parts_of(report))
    assert limit.lifted_step_s == pytest.approx(20e-6)
    # Then dram bounds the linears: 12 us, against 5 us of network and 3 us of latency.
    assert limit.next_bound == "memory:dram"


def test_without_latency_only_latency_goes(make_report, nodes):
    # Alone, the embedding is 1 us of dram and 2 us of latency.
    report = make_report(nodes[:1], StepTimes(step_time_s=3e-6))
    limit = find_limit(parts_of(report))
    assert limit.bound == "latency"
    assert limit.lifted_step_s == pytest.approx(1e-6)


def test_what_a_shape_loses_stays_with_the_limiting_resource(make_report, nodes):
    # The linear now takes 15 us where its terms say 10 + 2: 3 us are lost in its tiles.
    lossy = dataclasses.replace(nodes[1], time_s=15e-6)
    one = StepTimes(step_time_s=30e-6)
    # Without compute the loss goes with it: 4 + 2 us, twice.
    assert find_limit(parts_of(make_report((lossy,), one))).lifted_step_s == pytest.approx(12e-6)
    # Beside latency-bound nodes, lifting latency leaves the loss: 2 x 13 us, and 1 us each.
    many = dataclasses.replace(nodes[0], count=100)
    report = make_report((lossy, many), StepTimes(step_time_s=330e-6))
    limit = find_limit(parts_of(report))
    assert limit.bound == "latency"
    assert limit.lifted_step_s == pytest.approx(126e-6)


def test_hidden_communication_does_not_limit(make_report, nodes):
    slow = dataclasses.replace(nodes[2], time_s=50e-6, terms_s={"network:nvlink": 50e-6})
    hidden = make_report((*nodes[:2], slow), StepTimes(step_time_s=27e-6))
    exposed = make_report(
        (*nodes[:2], slow), StepTimes(step_time_s=127e-6, exposed_communication_s=100e-6)
    )
    assert find_limit(parts_of(hidden)).bound == "compute"
    limit = find_limit(parts_of(exposed))
    assert limit.bound == "network:nvlink"
    assert limit.lifted_step_s == pytest.approx(27e-6)


def test_a_bubble_can_be_the_limit(report):
    # Half the step waits: 32 us of work take 64 us.
    limit = find_limit(parts_of(report, step_time_s=64e-6, bubble_fraction=0.5))
    assert limit.bound == BUBBLE
    assert limit.row is None
    assert limit.lifted_step_s == pytest.approx(32e-6)
    assert limit.next_bound == "compute"


def test_a_bubble_shrinks_with_the_stage(report):
    # A bubble of a quarter: 32 us busy in 42.67 us. 20 us busy take 26.67 us.
    limit = find_limit(parts_of(report, step_time_s=32e-6 / 0.75, bubble_fraction=0.25))
    assert limit.lifted_step_s == pytest.approx(20e-6 / 0.75)


def test_a_simulation_is_taken_where_there_is_one(report):
    assert find_limit(parts_of(report), lambda bound: 7e-6).lifted_step_s == 7e-6


def test_the_three_sentences(report):
    limit, gain, memory = report.totals.conclusions
    assert limit == (
        "On toy, arithmetic throughput limits this model: 75 % of the step goes to operators that "
        "it bounds, the largest of them model.layers.[0-1].mlp.matmul (linear, 75 %)."
    )
    assert gain == (
        "Without that limit the step would take 20.0 µs instead of 32.0 µs, 1.60 times as fast, "
        "and dram bandwidth would limit it."
    )
    assert memory == (
        "It fits: the peak is 54.6 kB of 1.00 MB per device, the largest part activations (40.0 kB)."
    )


def test_the_largest_part_may_be_no_tensor(make_report):
    sentence = make_report(overhead_bytes={"context": 50_000}).totals.conclusions[2]
    assert "the peak is 105 kB of 1.00 MB" in sentence
    assert sentence.endswith("the largest part the driver's context (50.0 kB).")


def test_what_does_not_fit_is_said(make_report):
    sentence = make_report(capacity_bytes=27_296).totals.conclusions[2]
    assert sentence.startswith("It does not fit: the peak is 54.6 kB of 27.3 kB per device")
    assert sentence.endswith("2.00 times what a device has.")


def test_an_only_term_leaves_nothing(make_report, nodes):
    only = dataclasses.replace(nodes[2], phase="forward")
    report = make_report((only,), StepTimes(step_time_s=10e-6))
    assert "nothing measurable" in report.totals.conclusions[1]


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        ("memory:l2", "l2 bandwidth"),
        ("network:nvlink", "the nvlink link"),
        ("latency", "latency"),
        ("compute", "arithmetic throughput"),
    ],
)
def test_bounds_in_words(bound, words):
    assert bound_words(bound) == words
