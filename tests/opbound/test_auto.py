"""`--parallel auto` against analyses of the same strategies that are made one by one."""

from __future__ import annotations

import json
import time
from itertools import product
from math import inf
from pathlib import Path

import pytest

import opbound as package
from graph_ir.errors import OpboundError
from opbound.auto import AutoSearch
from opbound.candidates import Limits, candidates, factorizations
from opbound.options import Options

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(TINY))
    return f"hf:{path}"


SIZES = {"mode": "training", "batch": 8, "sequence": 256}


@pytest.fixture(scope="module")
def found(tiny: str):
    return AutoSearch(tiny, Options(**SIZES), 4).run()


def test_the_best_is_what_a_fresh_analysis_says(tiny: str, found) -> None:
    """The graph that was cut out of the whole batch's is the one that is imported at its size."""
    best = found.search.rows[0]
    assert best.fits
    assert found.totals.step_time_s == pytest.approx(best.step_time_s)
    fresh = package.analyze(tiny, **{**SIZES, **chosen(found)})
    assert fresh.totals.step_time_s == pytest.approx(best.step_time_s)
    assert fresh.memory.peak_bytes == pytest.approx(best.peak_bytes)
    assert fresh.strategy.devices == 4


def chosen(report) -> dict[str, object]:
    strategy = report.strategy
    return {
        "parallel": dict(strategy.parallel),
        "sequence_parallel": strategy.sequence_parallel,
        "zero": strategy.zero,
        "microbatch": strategy.microbatch,
        "recompute": strategy.recompute,
    }


def test_no_strategy_written_by_hand_is_faster(tiny: str, found) -> None:
    from opbound.bench import Bench

    bench = Bench(tiny, Options(**SIZES), None, lambda _: None)
    compared = 0
    for (tp, dp, pp), sequence, zero in product(factorizations(4, 3), (False, True), (0, 1, 3)):
        sizes = {"tp": tp, "dp": dp, "pp": pp}
        try:
            options = Options(
                **SIZES,
                parallel={a: n for a, n in sizes.items() if n > 1},
                sequence_parallel=sequence,
                zero=zero,
            )
            measured = bench.measure(options)
        except OpboundError:
            continue
        compared += 1
        assert found.search.rows[0].step_time_s <= measured.step_time_s * (1 + 1e-9), sizes
    assert compared >= 12


def test_no_bound_exceeds_the_price_and_none_of_the_list_is_faster(tiny: str) -> None:
    """On two devices every strategy is priced: the search finds the fastest without most of it."""
    search = AutoSearch(tiny, Options(**SIZES), 2)
    report = search.run()
    limits = Limits.of(search.bounds.first_graph(), 8)
    fastest = inf
    compared = 0
    for candidate in candidates(search.options, limits, 2, {}):
        try:
            measured = search.bench.measure(candidate.options)
        except OpboundError:
            continue
        compared += 1
        bounds = search.bounds
        assert bounds.compute_s(candidate) <= measured.step_time_s, candidate.text()
        assert bounds.split_s(candidate) <= measured.step_time_s * (1 + 1e-9), candidate.text()
        assert bounds.least_bytes(candidate) <= measured.peak_bytes, candidate.text()
        fastest = min(fastest, measured.step_time_s)
    assert compared > 60
    assert report.search.rows[0].step_time_s <= fastest * (1 + 1e-9)
    assert report.search.priced < compared / 2


def test_the_machines_speed_changes_nothing(tiny: str, found, monkeypatch) -> None:
    """A clock that runs a thousand times as fast sees the same strategies."""
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: 1000 * clock())
    again = AutoSearch(tiny, Options(**SIZES), 4).run()
    assert again.search.rows == found.search.rows
    assert again.search.left_out == found.search.left_out


def test_rows_are_in_order_and_everything_is_accounted_for(found) -> None:
    search = found.search
    times = [row.step_time_s for row in search.rows if row.fits]
    assert times == sorted(times)
    assert len(search.rows) <= 10
    assert search.candidates == search.priced + sum(o.count for o in search.left_out)
    assert any("auto=" in row.strategy for row in search.rows) or search.priced >= 10


def test_what_does_not_fit_is_left_out(tiny: str, tmp_path: Path) -> None:
    """On a device with a twentieth of the memory that dp=4 needs, states must be shared out."""
    from costing.hardware_file import load_hardware

    text = Path(load_hardware("h100-sxm-80gb").path).read_text(encoding="utf-8")
    small = tmp_path / "small.yaml"
    assert "80 GB" in text
    text = text.replace("capacity: {value: 80 GB", "capacity: {value: 0.2 GB")
    small.write_text(text.replace("runtime: cuda-sm90\n", ""))
    report = AutoSearch(tiny, Options(**SIZES, hardware=str(small)), 4).run()
    assert report.memory.capacity_bytes == 200_000_000
    assert report.memory.fits == report.search.rows[0].fits
    stored = [o for o in report.search.left_out if "stored" in o.reason]
    assert stored
    assert report.search.rows[0].strategy != "dp=4 --microbatch 2"


def test_an_onnx_file_and_a_number_that_divides_nothing(light: Path) -> None:
    model = light / "light_squeezenet.onnx"
    if not model.exists():
        pytest.skip("this onnx does not ship its light models")
    report = package.analyze(str(model), batch=8, parallel="auto:8")
    # Samples are independent: inference shares them out, whatever writes dp or the searched axis.
    assert report.totals.bytes_communicated == 0
    assert report.search.rows[0].step_time_s == report.totals.step_time_s
    odd = package.analyze(str(model), batch=8, parallel="auto:7")
    assert any("divide" in o.reason for o in odd.search.left_out)


@pytest.mark.parametrize("text", ["auto:", "auto:0", "auto:x", "auto:-1", "auto=", "autos"])
def test_other_words_are_told(text: str, relu_model: Path) -> None:
    with pytest.raises(OpboundError, match="auto"):
        package.analyze(str(relu_model), parallel=text)
