"""What torch.export gives up on is run once on meta tensors, and the report says which way was taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import importers
from graph_ir.errors import OpboundError


class LooksAtTokens(nn.Module):
    """Leaves torch for numpy, loops as often as a token says, shares a weight, updates its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 64)
        self.norm = nn.BatchNorm1d(64)
        self.first = nn.Linear(64, 10, bias=False)
        self.second = nn.Linear(64, 10, bias=False)
        self.second.weight = self.first.weight

    def forward(self, ids):
        wide = int((ids.numpy() > 0).sum())
        x = self.norm(self.table(ids).transpose(1, 2)).transpose(1, 2)
        for _ in range(int(ids.max())):
            x = x.relu()
        return self.first(x) + self.second(x) * wide


def test_a_live_module_falls_back_to_a_run_time_trace():
    module = LooksAtTokens()
    ids = torch.full((2, 5), 3)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    for mode in ("inference", "training"):
        model = importers.load(module, example_inputs=(ids,), mode=mode)
        assert model.importer.startswith("run-time trace")
        assert any("torch.export could not take it" in note for note in model.notes)
        ops = [n.op for n in model.graph.nodes]
        assert (ops.count("relu"), ops.count("linear"), ops.count("batch_norm")) == (3, 2, 1)
        names = [v.name for v in model.graph.parameters]
        assert "second.weight" not in names, "a tied weight counts once"
        assert (model.batch, model.sequence) == (2, 5)
    # It ran, but on stand-ins: statistics, weights, mode and ties are what they were.
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert module.training
    assert module.second.weight is module.first.weight


def test_resized_inputs_keep_contents_that_the_model_looks_at():
    model = importers.load(
        LooksAtTokens(), example_inputs=(torch.full((2, 5), 3),), batch=4, sequence=7
    )
    assert (model.batch, model.sequence) == (4, 7)
    assert sum(n.op == "relu" for n in model.graph.nodes) == 3


def test_a_module_that_export_takes_says_so():
    model = importers.load(nn.Linear(4, 4), example_inputs=(torch.randn(2, 4),))
    assert model.importer.startswith("torch.export")
    assert not model.notes


def test_what_no_route_can_take_is_one_line():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return x if self.inner(x).sum() > 0 else -x

    with pytest.raises(OpboundError, match=r"torch\.export.*run time") as caught:
        importers.load(Branches(), example_inputs=(torch.randn(3),))
    assert "\n" not in str(caught.value)
