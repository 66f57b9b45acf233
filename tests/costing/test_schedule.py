"""Pipeline schedules: the papers' bubbles come out of the simulation."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costing.schedule import PipelineTimeline, Schedule, simulate
from graph_ir.errors import MeshError

stage_counts = st.integers(1, 12)


def run(text: str, stages: int, microbatches: int, transfer_s: float = 0.0) -> PipelineTimeline:
    return simulate(Schedule.parse(text), [1.0] * stages, [2.0] * stages, microbatches, transfer_s)


@settings(deadline=None)
@given(stage_counts, st.integers(1, 40), st.sampled_from(["gpipe", "1f1b"]))
def test_the_bubble_of_equal_stages(p: int, m: int, name: str) -> None:
    assert run(name, p, m).bubble_over_ideal == pytest.approx((p - 1) / m)


@settings(deadline=None)
@given(stage_counts, st.integers(1, 8), st.integers(1, 5))
def test_interleaving_divides_the_bubble(p: int, groups: int, v: int) -> None:
    m = p * groups
    expected = (p - 1) / (v * m)
    assert run(f"interleaved:{v}", p, m).bubble_over_ideal == pytest.approx(expected)


@settings(deadline=None)
@given(stage_counts, st.integers(1, 40))
def test_micro_batches_in_flight(p: int, m: int) -> None:
    assert run("gpipe", p, m).in_flight == ((m,),) * p
    assert run("1f1b", p, m).in_flight == tuple((min(p - s, m),) for s in range(p))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0.1, 5), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.floats(0, 1),
)
def test_every_pass_happens_once_and_in_order(
    times: list[float], groups: int, v: int, transfer_s: float
) -> None:
    p = len(times)
    m = p * groups
    text = f"interleaved:{v}"
    timeline = simulate(Schedule.parse(text), times, [2 * t for t in times], m, transfer_s)
    assert len(timeline.events) == 2 * m * p * v
    ended = {(e.stage, e.work): e.end_s for e in timeline.events}
    assert len(ended) == len(timeline.events)
    for e in timeline.events:
        place = e.work.chunk * p + e.stage
        before = place - 1 if e.work.forward else place + 1
        if 0 <= before < p * v:
            needed = e.work._replace(chunk=before // p)
            wait = transfer_s if before % p != e.stage else 0.0
            assert e.start_s >= ended[before % p, needed] + wait - 1e-9
    for stage in range(p):
        own = sorted((e for e in timeline.events if e.stage == stage), key=lambda e: e.start_s)
        for a, b in pairwise(own):
            assert b.start_s >= a.end_s - 1e-9
    assert timeline.step_time_s >= max(timeline.busy_s) - 1e-9


def test_without_a_backward_pass_the_pipeline_fills_and_drains() -> None:
    timeline = simulate(Schedule.parse("1f1b"), [1.0] * 4, [0.0] * 4, 8)
    assert timeline.step_time_s == pytest.approx(8 + 3)


def test_chunks_may_take_different_times() -> None:
    timeline = simulate(Schedule.parse("interleaved:2"), [[1.0, 3.0]] * 2, [[2.0, 6.0]] * 2, 4)
    assert timeline.busy_s == (48.0, 48.0)


def test_many_micro_batches_on_many_stages_simulate_fast() -> None:
    start = time.process_time()
    run("1f1b", 64, 512)
    # 0.2 s on an idle core.
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "text", ["2f2b", "interleaved", "interleaved:0", "interleaved:x", "1f1b:2"]
)
def test_an_unknown_schedule_is_refused(text: str) -> None:
    with pytest.raises(MeshError, match="known: gpipe, 1f1b, interleaved:V"):
        Schedule.parse(text)


def test_interleaving_needs_whole_groups_of_micro_batches() -> None:
    with pytest.raises(MeshError, match="multiple of 4 micro-batches"):
        run("interleaved:2", 4, 6)
