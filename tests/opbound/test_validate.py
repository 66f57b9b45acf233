"""Published measurements through the whole program: the errors must not grow."""

import json
from collections.abc import Iterator

import pytest

from opbound import validation
from opbound.cli import main
from reports.validation import ValidationTable

LIMITS = {
    # Mean and largest absolute error reached, with a little room.
    "training steps": (0.032, 0.068),
    "one layer of a 22B model": (0.024, 0.041),
    "weak scaling of training": (0.026, 0.052),
    "pipeline and tensor parallelism": (0.046, 0.064),
    "ZeRO-3 without model parallelism": (0.52, 0.71),
    "sharded data parallelism, one adapter per node": (0.105, 0.17),
    "Llama-2 generation": (0.06, 0.13),
    "training memory": (0.016, 0.065),
}


@pytest.fixture
def one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def layer_only(progress: object, only: object = ()) -> Iterator[ValidationTable]:
        row = validation.ValidationRow("a step", 2.0, 1.6)
        yield ValidationTable.of("steps", "a paper", [row])

    monkeypatch.setattr(validation, "published_tables", layer_only)
    monkeypatch.setenv("OPBOUND_SHARED", "/nowhere")


@pytest.mark.usefixtures("one_table")
@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
def test_the_command_prints_every_form(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--format", form]) == 0
    out = capsys.readouterr().out
    assert "a paper" in out
    if form == "json":
        assert json.loads(out)["tables"][0]["mean_abs_error"] == pytest.approx(0.25)


def test_every_shipped_figure_is_a_number() -> None:
    for name, column in (
        ("korthikanti_steps", "step_s"),
        ("korthikanti_layer", "forward_ms"),
        ("narayanan_scaling", "step_s"),
        ("narayanan_zero3", "step_s"),
        ("sdp4bit_baselines", "tflops_per_gpu"),
        ("llama2_latency", "latency_s"),
        ("korthikanti_memory", "state_GiB"),
    ):
        rows = validation._read(name)
        assert rows
        assert all(float(row[column]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(LIMITS))
def test_errors_do_not_grow(name: str) -> None:
    pytest.importorskip("transformers")
    (table,) = validation.published_tables(only=(name,))
    mean, largest = LIMITS[name]
    assert table.mean_abs_error <= mean
    assert table.max_abs_error <= largest
