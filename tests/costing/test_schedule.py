"""Pipeline schedules: the papers' bubbles and memory come out of the simulation."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costing.pipeline_timeline import PassSeconds, PipelineTimeline, StageSeconds, simulate
from costing.pipeline_work import BACKWARD, FORWARD, INPUT, WEIGHT
from costing.schedule import Schedule
from graph_ir.errors import MeshError

NAMES = ("gpipe", "1f1b", "interleaved:2", "interleaved:3", "zb-h1", "zb-v", "dualpipe")
ranks = st.integers(1, 8)


def passes(f: float, b: float, w: float, send: float = 0.0, share: float = 1.0) -> StageSeconds:
    """A stage that computes for f, b and w seconds, or for a share of them."""
    times = {FORWARD: f, INPUT: b, WEIGHT: w, BACKWARD: b + w}
    return {
        k: PassSeconds.computing(t * share, send if k != WEIGHT else 0.0) for k, t in times.items()
    }


def run(name: str, p: int, m: int, f=1.0, b=1.0, w=1.0, send=0.0) -> PipelineTimeline:
    """Equal stages; f, b and w are a rank's, to which all its stages add up."""
    schedule = Schedule.parse(name)
    stage = passes(f, b, w, send, 1 / schedule.chunks)
    return simulate(schedule, [stage] * (p * schedule.chunks), p, m)


def bubble(timeline: PipelineTimeline) -> float:
    return timeline.step_time_s - max(timeline.busy_s)


# --- textbook --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(ranks, st.integers(1, 40), st.sampled_from(["gpipe", "1f1b"]))
def test_the_bubble_of_equal_stages(p: int, m: int, name: str) -> None:
    assert run(name, p, m).bubble_over_ideal == pytest.approx((p - 1) / m)


@settings(deadline=None, max_examples=40)
@given(ranks, st.integers(1, 8), st.integers(1, 5))
def test_interleaving_divides_the_bubble(p: int, groups: int, v: int) -> None:
    m = p * groups
    expected = (p - 1) / (v * m)
    assert run(f"interleaved:{v}", p, m).bubble_over_ideal == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(ranks, st.integers(0, 20), st.floats(0.2, 2), st.floats(0, 1), st.floats(0, 1))
def test_zb_h1_hides_the_weights_gradients(
    p: int, more: int, w: float, over_f: float, over_b: float
) -> None:
    """(p - 1)(F + B - W), arXiv 2401.10241, table 2; where W is the shortest, as it is in practice."""
    timeline = run("zb-h1", p, p + more, w + over_f, w + over_b, w)
    assert bubble(timeline) == pytest.approx((p - 1) * (w + over_f + over_b))


@settings(deadline=None, max_examples=40)
@given(ranks, st.integers(0, 20))
def test_zb_v_leaves_no_bubble_within_a_rank(p: int, more: int) -> None:
    """At F = B = W no rank waits between its first and its last pass (arXiv 2405.15362, section 4)."""
    timeline = run("zb-v", p, 2 * p - 1 + more)
    assert timeline.rank_bubbles_s == pytest.approx([0.0] * p)
    # The last rank starts, and ends, p - 1 half passes after the first.
    assert bubble(timeline) == pytest.approx((p - 1) / 2)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(0, 6))
def test_dualpipe_waits_in_its_middle_only(half: int, more: int) -> None:
    """(p/2 - 1)(F&B + B - 3W) with B the whole backward pass, arXiv 2412.19437, table 2."""
    p = 2 * half
    timeline = run("dualpipe", p, 2 * (p + more))
    assert bubble(timeline) == pytest.approx((half - 1) * (3 + 2 - 3))


def test_dualpipe_hides_collectives_behind_the_other_way() -> None:
    times = {FORWARD: (2.0, 1.0, 1.0), INPUT: (2.0, 1.0, 1.0), WEIGHT: (1.0, 1.0, 0.0)}
    times[BACKWARD] = (3.0, 2.0, 1.0)
    stage = {kind: PassSeconds(*seconds) for kind, seconds in times.items()}
    assert stage[FORWARD].beside(stage[BACKWARD]) == 3.0
    timeline = simulate(Schedule.parse("dualpipe"), [stage] * 2, 2, 40)
    assert timeline.step_time_s < 40 * 5 * 0.7
    assert simulate(Schedule.parse("1f1b"), [stage] * 2, 2, 40).step_time_s >= 40 * 5


@settings(deadline=None, max_examples=40)
@given(ranks, st.integers(1, 40))
def test_micro_batches_in_flight(p: int, m: int) -> None:
    assert run("gpipe", p, m).in_flight == ((m,),) * p
    assert run("1f1b", p, m).in_flight == tuple((min(p - s, m),) for s in range(p))
    # As many on every rank as on the first of 1F1B.
    assert run("zb-h1", p, m).in_flight == ((min(p, m),),) * p


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(2, 4), st.integers(2, 5))
def test_activations_of_the_fullest_rank(p: int, v: int, groups: int) -> None:
    """In units of what one micro-batch leaves on one of p ranks."""

    def held(name: str, m: int) -> float:
        timeline = run(name, p, m)
        stages = len(timeline.layout[0])
        copies = 2 if name == "dualpipe" else 1
        share = [copies / stages] * stages
        return max(timeline.held(rank, share, share) for rank in range(p))

    m = p * groups
    assert held("1f1b", m) == pytest.approx(p)
    # Korthikanti et al. 2022, arXiv 2205.05198, section 4.2: 1 + (p - 1)/(p v) times as much.
    assert held(f"interleaved:{v}", m) == pytest.approx(p * (1 + (p - 1) / (p * v)))
    assert held("zb-h1", m) == pytest.approx(p)
    assert held("zb-v", 2 * m) == pytest.approx(p)
    if p % 2 == 0:
        assert held("dualpipe", 2 * m) == pytest.approx(p + 1)


def test_what_waits_for_the_weights_gradients_may_be_less() -> None:
    timeline = run("zb-h1", 4, 8)
    # Rank 0 never puts anything off; the last rank holds one micro-batch and three that wait.
    assert timeline.held(0, [1.0], [0.5]) == 4.0
    assert timeline.held(3, [1.0], [0.5]) == 1.0 + 3 * 0.5


# --- any times -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_every_pass_happens_once_and_in_order(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    p = data.draw(st.integers(1, 6))
    m = data.draw(st.integers(1, 4 * p))
    schedule = Schedule.parse(name)
    if name == "dualpipe":
        p += p % 2
        m = 2 * (p + m // 2)
    elif name.startswith("interleaved"):
        m = p * -(-m // p)
    seconds = st.floats(0.1, 5)
    stages = [
        passes(*(data.draw(seconds) for _ in range(3)), data.draw(st.floats(0, 1)))
        for _ in range(p * schedule.chunks)
    ]
    timeline = simulate(schedule, stages, p, m)
    count = len(stages)
    done: dict[tuple[int, int, str], tuple[int, float, float]] = {}
    for event in timeline.events:
        for work in event.works:
            kinds = (INPUT, WEIGHT) if work.kind == BACKWARD else (work.kind,)
            for kind in kinds:
                key = (work.stage, work.microbatch, kind)
                assert key not in done
                done[key] = (event.rank, event.start_s, event.end_s)
        length = event.end_s - event.start_s
        alone = sum(stages[w.stage][w.kind].time_s for w in event.works)
        assert length == pytest.approx(alone)
    assert len(done) == 3 * m * count
    for (stage, microbatch, kind), (rank, start_s, _) in done.items():
        assert stage in timeline.layout[rank]
        if kind == FORWARD:
            before = (stage - 1, microbatch, FORWARD) if stage else None
        elif kind == WEIGHT:
            # A backward pass in one makes both at once.
            before = None
            assert done[stage, microbatch, INPUT][0] == rank
            assert done[stage, microbatch, INPUT][1] <= start_s
        elif stage == count - 1:
            before = (stage, microbatch, FORWARD)
        else:
            before = (stage + 1, microbatch, INPUT)
        if before is not None:
            source, _, end_s = done[before]
            wait = stages[before[0]][before[2]].send_s if source != rank else 0.0
            assert start_s >= end_s + wait - 1e-9
    for rank in range(p):
        own = sorted((e.start_s, e.end_s) for e in timeline.events if e.rank == rank)
        assert all(later[0] >= earlier[1] - 1e-9 for earlier, later in pairwise(own))
        assert sum(timeline.runs(rank)) == m * len(timeline.layout[rank]) / (
            2 if name == "dualpipe" and p > 1 else 1
        )
        # All memory is given back.
        ones = [1.0] * len(timeline.layout[rank])
        assert timeline.held(rank, ones, ones) >= 1
    assert timeline.step_time_s >= max(timeline.busy_s) - 1e-9


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(NAMES), st.integers(1, 6), st.integers(1, 12))
def test_without_a_backward_pass_the_pipeline_fills_and_drains(name: str, p: int, m: int) -> None:
    schedule = Schedule.parse(name)
    if name == "dualpipe":
        p += p % 2
    if name.startswith("interleaved"):
        m = p * -(-m // p)
    share = 1 / schedule.chunks
    stages = [{FORWARD: PassSeconds.computing(share)}] * (p * schedule.chunks)
    timeline = simulate(schedule, stages, p, m)
    works = [w for e in timeline.events for w in e.works]
    assert len(set(works)) == len(works) == m * len(stages)
    assert timeline.step_time_s <= m + p - 1 + (m % 2) + 1e-9


def test_torch_puts_the_passes_in_the_same_order() -> None:
    """PyTorch's pipelining module has several of the schedules; its orders are an independent oracle."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    kinds = {"FORWARD": FORWARD, "BACKWARD_INPUT": INPUT, "BACKWARD_WEIGHT": WEIGHT}
    for name, rule, chunks in (
        ("interleaved:2", "ScheduleInterleaved1F1B", 2),
        ("interleaved:3", "ScheduleInterleaved1F1B", 3),
        ("zb-v", "ScheduleZBVZeroBubble", 2),
    ):
        for p in (2, 4, 8):
            for m in (p, 2 * p, 4 * p):
                theirs = object.__new__(getattr(schedules, rule))
                theirs.pp_group_size, theirs.n_local_stages = p, chunks
                theirs._num_stages = theirs.num_stages = p * chunks
                theirs._n_microbatches = m
                theirs.number_of_rounds = max(1, m // p)
                theirs.microbatches_per_round = m // theirs.number_of_rounds
                for rank in range(p):
                    order = [
                        (
                            a.stage_index,
                            a.microbatch_index,
                            kinds.get(a.computation_type.name, BACKWARD),
                        )
                        for a in theirs._calculate_single_rank_operations(rank)
                        if a is not None
                    ]
                    ours = [w for s in Schedule.parse(name).order(rank, p, m, True) for w in s]
                    assert [tuple(w) for w in ours] == order, (name, p, m, rank)


def test_many_micro_batches_on_many_stages_simulate_fast() -> None:
    start = time.process_time()
    run("1f1b", 64, 512)
    # 0.2 s on an idle core.
    assert time.process_time() - start < 3


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["2f2b", "interleaved", "interleaved:0", "interleaved:x", "1f1b:2", "zb-v:2", "zb-h1:"]
)
def test_an_unknown_schedule_is_refused(text: str) -> None:
    with pytest.raises(MeshError, match="known: gpipe, 1f1b, interleaved:V"):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("name", "p", "m", "says"),
    [
        (
            "interleaved:2",
            4,
            6,
            "multiple of 4 micro-batches .* not 6; the nearest that works is 8",
        ),
        ("interleaved:2", 4, 9, "the nearest that works is 8"),
        ("interleaved:2", 4, 1, "the nearest that works is 4"),
        ("dualpipe", 4, 6, "8 or more for pp=4, not 6; the nearest that works is 8"),
        ("dualpipe", 4, 9, "the nearest that works is 10"),
        ("dualpipe", 3, 8, "even number of ranks, not pp=3; the nearest that works is pp=4"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(name: str, p: int, m: int, says: str) -> None:
    with pytest.raises(MeshError, match=says):
        run(name, p, m)
