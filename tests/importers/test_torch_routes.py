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


def test_what_is_wrong_on_every_route_is_said_once():
    with pytest.raises(OpboundError) as caught:
        importers.load(nn.Linear(3, 3), example_inputs=(torch.randn(2, 5),))
    assert "run time" not in str(caught.value)
    with pytest.raises(OpboundError) as caught:
        importers.load(nn.Linear(3, 3), example_inputs=(torch.randn(2, 3),), dtype="int8")
    assert str(caught.value).count("int8") == 1


FACTORIES = {
    "raising": ("raise ValueError('two\\nlines')", "failed: ValueError"),
    "leaving": ("raise SystemExit(3)", "failed: SystemExit"),
    "wrong": ("return {'a': 1}", "returned a dict"),
    "nothing": ("return None", "returned a NoneType"),
    "alone": ("from torch import nn; return nn.Linear(3, 3)", "needs example inputs"),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_that_give_no_model(name, tmp_path, monkeypatch):
    body, says = FACTORIES[name]
    (tmp_path / f"factory_{name}.py").write_text(f"def build():\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OpboundError, match=says):
        importers.load(f"factory_{name}:build")


USERS_MODULE = """
import torch
from graph_ir.op_def import OpDef, register

# s: tokens, k: width, h: hidden width; both products, whatever the kernel does in between.
register(
    OpDef(
        "gated_hidden",
        "contraction",
        "... s k, h k -> ... s h",
    )
)


@torch.library.custom_op("mylib::gated_hidden", mutates_args=())
def gated_hidden(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ weight.T)


@gated_hidden.register_fake
def _(x, weight):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(96, 32))

    def forward(self, x):
        return gated_hidden(x, self.weight) * 2


def build():
    return Layer(), (torch.randn(4, 10, 32),)
"""


def test_a_custom_operator_is_priced_by_the_record_that_the_users_module_registers(
    tmp_path, monkeypatch
):
    (tmp_path / "users_module.py").write_text(USERS_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    graph = importers.load("users_module:build").graph
    own, scaled = graph.nodes
    assert (own.op, own.flops) == ("gated_hidden", 2 * 4 * 10 * 32 * 96)
    assert own.equation.gemm is not None
    assert scaled.op == "mul"


def test_a_custom_operator_that_writes_to_its_argument_is_followed():
    @torch.library.custom_op("opbound_test::into", mutates_args=("out",))
    def into(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(x)

    @into.register_fake
    def _(x, out):
        return None

    class Writes(nn.Module):
        def forward(self, x):
            out = torch.empty_like(x)
            into(x, out)
            return out * 2

    x = torch.randn(5, 6)
    graph = importers.load(Writes(), example_inputs=(x,), allow_unknown=True).graph
    own, after = graph.nodes
    assert (own.op, after.op) == ("unknown", "mul")
    assert after.inputs[0] is own.outputs[0]
    assert own.bytes_read == 2 * x.nbytes
