"""Pipelines through the whole program: schedules, cuts, recomputation, and what the report says of them."""

import json
from pathlib import Path

import pytest

import opbound
from graph_ir.errors import OpboundError

torch = pytest.importorskip("torch")

LAYERS = 12


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(64)
        self.up, self.down = torch.nn.Linear(64, 256), torch.nn.Linear(256, 64)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def analyse():
    model = torch.nn.Sequential(*(Layer() for _ in range(LAYERS)))

    def run(**options):
        given = {"mode": "training", "batch": 32, "parallel": "pp=4", **options}
        return opbound.analyze(model, example_inputs=(torch.zeros(16, 32, 64),), **given)

    return run


@pytest.mark.parametrize(
    "schedule", ["gpipe", "1f1b", "interleaved:3", "zb-h1", "zb-v", "dualpipe"]
)
def test_every_schedule_does_all_the_work(analyse, schedule):
    report = analyse(schedule=schedule)
    copies = 2 if schedule == "dualpipe" else 1
    assert sum(rank.layers for rank in report.pipeline) == copies * LAYERS
    passes = [e for e in report.timeline if e.phase == "forward"]
    stages = {"interleaved:3": 12, "zb-v": 8}.get(schedule, 4)
    assert len(passes) == 32 * stages
    busiest = min(report.pipeline, key=lambda rank: rank.waiting_s)
    assert busiest.waiting_s == pytest.approx(report.totals.bubble_time_s)
    assert max(rank.peak_bytes for rank in report.pipeline) == report.memory.peak_bytes
    assert schedule in str(report.strategy)


def test_schedules_rank_as_their_papers_say(analyse):
    steps = {
        name: analyse(schedule=name).totals.step_time_s
        for name in ("1f1b", "interleaved:3", "zb-h1", "zb-v")
    }
    assert steps["interleaved:3"] < steps["1f1b"]
    assert steps["zb-v"] < steps["zb-h1"] < steps["1f1b"]


def test_stages_by_layers(analyse):
    report = analyse(stages=[2, 4, 4, 2])
    assert [rank.layers for rank in report.pipeline] == [2, 4, 4, 2]
    for stages, says in (((3, 3, 3), "names 3 stages"), ((3, 3, 3, 4), "share out 12 repeated")):
        with pytest.raises(OpboundError, match=says):
            analyse(stages=stages)
    with pytest.raises(OpboundError, match="add pp=N"):
        analyse(stages=[12], parallel="dp=2")


def test_balancing_memory_lowers_the_peak(analyse):
    by_time, by_memory = (
        analyse(balance=balance, optimizer="sgd") for balance in ("time", "memory")
    )
    assert by_memory.memory.peak_bytes < by_time.memory.peak_bytes
    assert by_memory.totals.step_time_s > by_time.totals.step_time_s
    # 1F1B keeps most micro-batches on the first rank.
    layers = [rank.layers for rank in by_memory.pipeline]
    assert layers == sorted(layers)
    assert layers[0] < layers[-1]


@pytest.fixture
def small_device(tmp_path):
    """A device with as much memory as is asked for."""
    from costing.hardware_file import load_hardware

    def device(capacity_bytes: int) -> str:
        text = Path(load_hardware("h100-sxm-80gb").path).read_text(encoding="utf-8")
        path = tmp_path / f"{capacity_bytes}.yaml"
        small = text.replace("capacity: {value: 80 GB", f"capacity: {{value: {capacity_bytes} B")
        assert small != text
        # A context alone would take more than what such a small model does.
        small = small.replace("runtime: cuda-sm90\n", "")
        path.write_text(small, encoding="utf-8")
        return str(path)

    return device


def test_recomputation_as_needed(analyse, small_device):
    none, full = (analyse(recompute=r, stages=[3, 3, 3, 3]) for r in ("none", "full"))
    peaks = sorted(rank.peak_bytes for rank in none.pipeline)
    # Room for the two ranks that need least as they are.
    hardware = small_device(peaks[1])
    fit = analyse(recompute="fit", stages=[3, 3, 3, 3], hardware=hardware)
    assert [rank.recompute for rank in fit.pipeline] == ["full", "full", "none", "none"]
    assert fit.memory.fits
    assert none.totals.step_time_s < fit.totals.step_time_s
    for rank, uncut, short in zip(fit.pipeline, none.pipeline, full.pipeline, strict=True):
        expected = uncut if rank.recompute == "none" else short
        assert rank.peak_bytes == expected.peak_bytes
        assert rank.backward_s == pytest.approx(expected.backward_s)


def test_time_is_balanced_within_memory(analyse, small_device):
    free = analyse(optimizer="sgd")
    best = analyse(optimizer="sgd", balance="memory")
    between = (free.memory.peak_bytes + 3 * best.memory.peak_bytes) // 4
    fit = analyse(optimizer="sgd", balance="fit", hardware=small_device(between))
    assert fit.memory.fits
    assert free.totals.step_time_s <= fit.totals.step_time_s <= best.totals.step_time_s
    with pytest.raises(OpboundError, match=r"a rank needs .* but the device has"):
        analyse(optimizer="sgd", balance="fit", hardware=small_device(best.memory.peak_bytes // 2))


def test_the_report_shows_every_rank(analyse):
    report = analyse(schedule="zb-h1")
    text = report.to_text()
    assert "Pipeline, rank by rank (zb-h1" in text
    drawn = text.partition("Pipeline over the step\n")[2].splitlines()[:4]
    assert [line.split()[0] for line in drawn] == ["0", "1", "2", "3"]
    assert len({len(line) for line in drawn}) == 1
    assert all(letter in drawn[0] for letter in "FBW.")
    assert drawn[3].split()[1].startswith(".")
    again = type(report).from_json(report.to_json())
    assert again.pipeline == report.pipeline
    assert again.to_text() == text
    assert "pipeline" not in json.loads(analyse(parallel="dp=4").to_json())


def test_micro_batches_that_do_not_fit_say_what_does(analyse):
    with pytest.raises(OpboundError, match="not 6; the nearest that works is 8: change --batch"):
        analyse(schedule="interleaved:3", batch=6)
    with pytest.raises(OpboundError, match="even number of ranks, not pp=3"):
        analyse(schedule="dualpipe", parallel="pp=3")
    with pytest.raises(OpboundError, match=r"cut into at most .* nearest that works is pp="):
        analyse(schedule="interleaved:50", batch=32)
