"""The rule that says when workers of several devices overtake data parallelism alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graph_ir.errors import OpboundError
from opbound.crossover import crossover, epochs_at, read_epochs
from opbound.options import Options
from opbound.placement import Request
from reports.crossover import crossover_of, crossover_page, crossover_rows

# Speed-ups of two devices for one worker as the paper's networks have them, and how many times the
# epochs must grow before hybrid wins: 2 / SU^2.
NETWORKS = [(1.32, 1.515), (1.15, 1.739), (1.22, 1.639)]


@pytest.mark.parametrize(("speedup", "growth"), NETWORKS)
@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_both_sides_of_the_rule(speedup: float, growth: float, factor: float) -> None:
    """With perfect scaling, hybrid wins once doubling the batch costs more than M / SU^M of the epochs."""
    exact = 2 / speedup
    assert exact == pytest.approx(growth, abs=1e-3)
    epochs = {1: 10.0, 2: 10.0 * exact * factor}
    (row,) = crossover_rows({1: 1.0, 2: 1.0}, epochs.get, 2, speedup)
    assert row.hybrid_wins == (factor > 1)
    assert row.data_parallel == pytest.approx(2 * 10.0 / epochs[2])
    assert row.hybrid == pytest.approx(speedup)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_needed_speedup_is_where_both_are_equal(workers: int) -> None:
    steps_s = {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.5}
    epochs = {1: 10.0, 2: 11.0, 4: 13.0, 8: 22.0}
    (row,) = (r for r in crossover_rows(steps_s, epochs.get, workers, 1.0) if r.devices == 8)
    few = 8 // workers
    # The rule as the paper writes it.
    scaling = (1 / steps_s[8]) / (1 / steps_s[few])
    assert row.needed == pytest.approx(workers * scaling * epochs[few] / epochs[8])
    for factor, wins in ((0.999, False), (1.001, True)):
        found = crossover_rows(steps_s, epochs.get, workers, row.needed * factor)
        assert found[-1].hybrid_wins == wins


def test_a_batch_that_is_too_large_leaves_only_hybrid() -> None:
    rows = crossover_rows({1: 1.0, 2: 1.0, 4: 1.0}, {1: 5.0, 2: 5.0}.get, 2, 1.1)
    assert [r.hybrid_wins for r in rows] == [False, True]
    assert rows[-1].data_parallel is None
    assert crossover_of(rows) == 4


def test_epochs_lie_on_the_line_between_two_batches(tmp_path: Path) -> None:
    path = tmp_path / "epochs.csv"
    path.write_text("batch,epochs\n100,10\n\n400,40\n")
    curve = read_epochs(str(path))
    assert epochs_at(curve, 100) == 10
    assert epochs_at(curve, 200) == pytest.approx(20)
    assert epochs_at(curve, 401) is None
    assert epochs_at(curve, 99) is None


@pytest.mark.parametrize("text", ["", "batch,epochs\n", "1,2\nx,3\n", "1,0\n", "1\n2\n"])
def test_a_file_without_epochs_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "epochs.csv"
    path.write_text(text)
    with pytest.raises(OpboundError, match=r"epochs\.csv"):
        read_epochs(str(path))


def test_a_real_model(light_model: str) -> None:
    curve = {8: 4.0, 64: 5.0, 128: 12.0}
    options = Options(hardware="a100-sxm-80gb", mode="training", batch=8)
    found = crossover(light_model, options, curve, Request(2), 16)
    assert [r.devices for r in found.rows] == [2, 4, 8, 16]
    assert 1 < found.worker_speedup < 2
    assert all(0.5 < r.efficiency <= 1 for r in found.rows)
    assert found.crossover == 16
    page = crossover_page(found)
    assert json.loads(page.to("json"))["crossover"] == 16
    assert "from 16 devices on" in page.to("table")
    assert page.to("csv").count("\n") == 5


@pytest.fixture
def light_model() -> str:
    import onnx

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    path = folder / "light_squeezenet.onnx"
    if not path.exists():
        pytest.skip("this onnx does not ship its light models")
    return str(path)
