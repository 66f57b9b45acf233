"""Totals are sums of the rows, and a row is its node times its count."""

import dataclasses

import pytest

from graph_ir.errors import OpboundError
from reports import StepTimes


def test_a_row_is_the_sum_over_its_nodes(report, nodes):
    linear = next(row for row in report.operators if row.op == "linear")
    assert linear.count == 2
    assert linear.flops == 2 * nodes[1].flops
    assert linear.bytes_read == 2 * 12_288
    assert linear.time_s == pytest.approx(24e-6)
    assert linear.share == pytest.approx(24 / 32)
    # The intensity is a ratio: it does not grow with the count.
    assert linear.arithmetic_intensity == pytest.approx(nodes[1].flops / (12_288 + 16_384))


def test_totals_re_add_from_the_rows(report):
    rows, totals = report.operators, report.totals
    for key in ("flops", "bytes_read", "bytes_written", "bytes_communicated"):
        assert totals[key] == sum(row[key] for row in rows)
    assert sum(totals.time_s.by_phase.values()) == pytest.approx(sum(r.time_s for r in rows))
    assert sum(totals.time_s.by_bound.values()) == pytest.approx(sum(r.time_s for r in rows))
    # 3 us embedding + 2 x 12 us linear; 10 us of all-reduce, 5 us of it exposed.
    assert totals.compute_time_s == pytest.approx(27e-6)
    assert totals.compute_time_s + totals.exposed_communication_s == pytest.approx(
        totals.step_time_s
    )


def test_mfu_counts_the_model_and_not_the_recomputation(make_report, nodes):
    again = dataclasses.replace(nodes[1], phase="recompute", name="again", instances=())
    plain, recomputed = make_report(nodes), make_report((*nodes, again))
    assert recomputed.totals.flops == 2 * plain.totals.flops
    assert recomputed.totals.mfu == pytest.approx(plain.totals.mfu)
    # Both devices do 2 * nodes[1].flops in 32 us, at a peak of 1e12.
    assert plain.totals.mfu == pytest.approx(2 * nodes[1].flops / (32e-6 * 1e12))


def test_memory_sums_by_kind_and_says_whether_it_fits(make_report):
    report = make_report(capacity_bytes=54_592)
    assert report.memory.peak_bytes == 54_592
    assert report.memory.fits
    assert not make_report(capacity_bytes=54_591).memory.fits
    assert list(report.memory.by_kind_bytes) == [
        "parameters",
        "gradients",
        "optimizer",
        "activations",
        "kv_cache",
        "workspace",
        "communication",
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"memory_by_kind_bytes": {"weights": 1}}, "weights"),
        ({"nodes": ()}, "nothing to report"),
    ],
)
def test_what_cannot_be_reported_is_an_error(make_report, change, says):
    with pytest.raises(OpboundError, match=says):
        make_report(**change)


def test_a_model_of_views_takes_no_time(make_report, nodes):
    view = dataclasses.replace(nodes[0], time_s=0.0, terms_s={})
    report = make_report(nodes=(view,), times=StepTimes(step_time_s=0.0))
    assert report.totals.mfu == report.totals.flops_per_s == report.operators[0].share == 0
    assert "views" in report.totals.conclusions[0]


def test_records_read_like_their_json(report):
    assert report["totals"]["flops"] == report.totals.flops
    assert set(dict(report.memory)) >= {"peak_bytes", "capacity_bytes", "fits", "by_kind_bytes"}
    with pytest.raises(KeyError):
        report["label"]
