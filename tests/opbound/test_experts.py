"""`--expert-imbalance`: what is refused, and how the report says what was assumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import opbound
from graph_ir.errors import OpboundError


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("config") / "config.json"
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128}
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2}
    path.write_text(json.dumps({"model_type": "mixtral", **sizes, **heads, **experts}))
    return f"hf:{path}"


def test_the_busiest_rank_decides_the_time_and_not_the_model_flops(mixture: str) -> None:
    even, uneven = (
        opbound.analyze(mixture, batch=8, sequence=512, parallel="ep=4", expert_imbalance=f)
        for f in (1, 2.0)
    )
    assert "tokens are shared out evenly over the experts" in even.model.notes
    assert any("2 times the mean number of tokens" in note for note in uneven.model.notes)
    assert uneven.totals.step_time_s > even.totals.step_time_s
    # MFU counts the model's own FLOPs, which routing does not change.
    work = [r.totals.mfu * r.totals.step_time_s for r in (even, uneven)]
    assert work[0] == pytest.approx(work[1])

    def sent(report: opbound.Report) -> int:
        return sum(row.bytes_communicated for row in report.operators if row.op == "all_to_all")

    assert sent(uneven) == 2 * sent(even)


def test_without_expert_parallelism_the_note_says_why_nothing_changes(mixture: str) -> None:
    report = opbound.analyze(mixture, batch=1, sequence=64, expert_imbalance=2)
    assert any("changes nothing without ep" in note for note in report.model.notes)


@pytest.mark.parametrize(
    ("factor", "says"),
    [(0.5, "give 1 or more"), (float("nan"), "give 1 or more"), (9, "at most 8 times the mean")],
)
def test_imbalances_that_no_routing_has(mixture: str, factor: float, says: str) -> None:
    with pytest.raises(OpboundError, match=says):
        opbound.analyze(mixture, batch=1, sequence=64, expert_imbalance=factor)


def test_a_model_without_experts_has_no_imbalance(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128}
    path.write_text(json.dumps({"model_type": "llama", **sizes, **heads}))
    with pytest.raises(OpboundError, match="no experts"):
        opbound.analyze(f"hf:{path}", batch=1, sequence=16, expert_imbalance=2)
