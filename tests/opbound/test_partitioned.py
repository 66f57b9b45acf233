"""Reports of partitioned steps: what the rows, the totals and the timeline must add up to."""

import itertools

import pytest

import opbound

torch = pytest.importorskip("torch")


class Block(torch.nn.Module):
    """A feed-forward block: its inner width can be split."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up = torch.nn.Linear(width, 4 * width)
        self.down = torch.nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def analyse():
    model = torch.nn.Sequential(*(Block() for _ in range(8)))

    def run(**options):
        return opbound.analyze(model, example_inputs=(torch.zeros(16, 32, 64),), **options)

    return run


def linear_flops(report) -> int:
    return sum(row.flops for row in report.operators if row.op == "linear")


# Both products of 8 blocks over 16 x 32 tokens.
FORWARD_FLOPS = 8 * 2 * (2 * 16 * 32 * 64 * 256)


def test_one_device(analyse):
    report = analyse(mode="training", batch=16)
    # The backward pass has two products for each of the forward pass, the first input's too or not.
    backward = linear_flops(report) - FORWARD_FLOPS
    first = FORWARD_FLOPS // 16
    assert backward in (2 * FORWARD_FLOPS, 2 * FORWARD_FLOPS - first)
    assert report.totals.compute_time_s == pytest.approx(report.totals.step_time_s)
    ends = [event.start_s + event.duration_s for event in report.timeline]
    assert max(ends) == pytest.approx(report.totals.step_time_s)


@pytest.mark.parametrize("parallel", ["dp=4", "tp=4", "dp=2,tp=2"])
def test_the_devices_share_the_work(analyse, parallel):
    whole = analyse(mode="training", batch=16)
    part = analyse(mode="training", batch=16, parallel=parallel)
    assert linear_flops(part) * 4 == linear_flops(whole)
    assert part.strategy.devices == 4
    assert part.totals.parameters == whole.totals.parameters
    totals = part.totals
    assert totals.compute_time_s + totals.exposed_communication_s == pytest.approx(
        totals.step_time_s
    )
    assert totals.bytes_communicated > 0


def test_data_parallel_reduces_every_gradient_once(analyse):
    report = analyse(mode="training", batch=16, parallel="dp=4", microbatch=2)
    assert report.strategy.microbatches == 2
    sent = sum(row.bytes_communicated for row in report.operators if row.op == "all_reduce")
    # A ring sends 2 (n - 1) / n of the gradients, once per step and not per micro-batch.
    gradients = 4 * report.totals.parameters
    assert sent == pytest.approx(2 * 3 / 4 * gradients, rel=0.001)


@pytest.mark.parametrize("microbatch", [1, 2, 4])
def test_micro_batches_do_not_change_the_work(analyse, microbatch):
    whole = analyse(mode="training", batch=16)
    split = analyse(mode="training", batch=16, microbatch=microbatch)
    assert linear_flops(split) == linear_flops(whole)
    assert split.model.batch == whole.model.batch == 16
    updates = [r.count for r in (whole, split) for r in r.operators if r.phase == "optimizer"]
    assert updates[: len(updates) // 2] == updates[len(updates) // 2 :]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved:2"])
def test_a_pipeline(analyse, schedule):
    report = analyse(mode="training", batch=16, parallel="pp=4", schedule=schedule)
    assert report.strategy.microbatches == 16
    totals = report.totals
    bubble_s = totals.bubble_time_s
    assert bubble_s > 0
    assert totals.compute_time_s + totals.exposed_communication_s + bubble_s == pytest.approx(
        totals.step_time_s
    )
    passes = [e for e in report.timeline if e.phase in ("forward", "backward")]
    chunks = 2 if schedule.startswith("interleaved") else 1
    assert len(passes) == 4 * 16 * chunks * 2
    for stage in range(4):
        own = sorted((e.start_s, e.duration_s) for e in report.timeline if e.stage == stage)
        assert all(
            start + duration <= later + 1e-12
            for (start, duration), (later, _) in itertools.pairwise(own)
        )


def test_zero_shards_what_is_stored(analyse):
    kinds = {
        zero: analyse(mode="training", batch=16, parallel="dp=4", zero=zero).memory.by_kind_bytes
        for zero in (0, 1, 2, 3)
    }
    assert kinds[1]["optimizer"] == pytest.approx(kinds[0]["optimizer"] / 4, rel=0.01)
    assert kinds[2]["gradients"] == pytest.approx(kinds[0]["gradients"] / 4, rel=0.01)
    assert kinds[3]["parameters"] == pytest.approx(kinds[0]["parameters"] / 4, rel=0.01)


def test_lifting_the_limit_is_a_faster_step(analyse):
    report = analyse(mode="training", batch=16, parallel="tp=2")
    assert "times as fast" in report.totals.conclusions[1]


def test_fusing_saves_traffic_and_no_flops(analyse):
    eager, fused = (analyse(mode="training", batch=16, execution=e) for e in ("eager", "fused"))
    assert fused.totals.flops == eager.totals.flops
    assert fused.totals.bytes_read < eager.totals.bytes_read
    assert fused.totals.step_time_s < eager.totals.step_time_s
