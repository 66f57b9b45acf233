"""Routes into the PyTorch importer, their sizes, and what they say of input that cannot be imported."""

import pickle
import sys
import zipfile

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import importers  # noqa: E402
from graph_ir.errors import DimensionError, ModelFileError, OpboundError, UnknownOperatorError  # noqa: E402

FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20)

    def forward(self, ids):
        return self.head(self.embedding(ids))

def pair():
    return Net(), (torch.zeros(2, 6, dtype=torch.long),)

def attribute():
    net = Net()
    net.example_inputs = {"ids": torch.zeros(2, 6, dtype=torch.long)}
    return net

def bare():
    return Net()

def broken():
    raise RuntimeError("no such luck")

def number():
    return 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    name = f"factories_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def flops(graph):
    return sum(n.flops for n in graph.nodes if n.definition.kind == "contraction")


@pytest.mark.parametrize("factory", ["pair", "attribute"])
def test_factory(factories, factory):
    loaded = importers.load(f"{factories}:{factory}", batch=3, sequence=5)
    assert (loaded.batch, loaded.sequence) == (3, 5)
    assert flops(loaded.graph) == 2 * 3 * 5 * 8 * 20
    assert loaded.graph.inputs[-1].dim_names == ("batch", "sequence")
    assert {n.name for n in loaded.graph.nodes} >= {"embedding", "head", "head.add_bias"}


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("bare", "needs example inputs"),
        ("broken", "RuntimeError: no such luck"),
        ("number", "returned a int"),
        ("absent", "has no 'absent'"),
    ],
)
def test_factory_errors(factories, factory, message):
    with pytest.raises(OpboundError, match=message) as caught:
        importers.load(f"{factories}:{factory}")
    assert "\n" not in str(caught.value)


def test_module_that_does_not_exist(factories):
    with pytest.raises(OpboundError, match="cannot import 'no_such_package'"):
        importers.load("no_such_package:factory")


def test_exported_program_with_dynamic_batch(tmp_path):
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Mlp(), (torch.randn(2, 8),), dynamic_shapes={"x": {0: batch}})
    path = tmp_path / "mlp.pt2"
    torch.export.save(program, path)
    loaded = importers.load(path, batch=7)
    assert flops(loaded.graph) == 2 * 7 * 8 * 32 * 2
    assert sum(v.type.elements for v in loaded.graph.parameters) == 8 * 32 * 2 + 32 + 8
    assert loaded.batch == 7
    assert flops(importers.load(str(path)).graph) == 2 * 2 * 8 * 32 * 2


def test_exported_program_with_fixed_batch(tmp_path):
    path = tmp_path / "mlp.pt2"
    torch.export.save(torch.export.export(Mlp(), (torch.randn(2, 8),)), path)
    with pytest.raises(DimensionError, match="exported with batch 2"):
        importers.load(path, batch=3)
    with pytest.raises(DimensionError, match="no dim 'width'"):
        importers.load(path, dims={"width": 3})


def test_broken_exported_program(tmp_path):
    path = tmp_path / "broken.pt2"
    path.write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(ModelFileError, match="is not an exported program"):
        importers.load(path)
    with pytest.raises(ModelFileError, match="cannot read"):
        importers.load(tmp_path / "absent.pt2")


def test_dtype_replaces_the_models_own():
    graph = importers.load(Mlp(), example_inputs=(torch.randn(2, 8),), dtype="fp8").graph
    assert {v.type.dtype.label for v in graph.parameters} == {"float8_e4m3"}


def test_batch_needs_a_common_first_dim():
    class Two(nn.Module):
        def forward(self, a, b):
            return a.sum() + b.sum()

    given = (torch.randn(2, 3), torch.randn(4, 3))
    with pytest.raises(DimensionError, match="share no first dim"):
        importers.load(Two(), example_inputs=given, batch=8)
    with pytest.raises(DimensionError, match="no sequence dim"):
        importers.load(Two(), example_inputs=given, sequence=8)


def test_module_that_cannot_be_traced():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(OpboundError, match="cannot be traced") as caught:
        importers.load(Branches(), example_inputs=(torch.randn(3),))
    assert "\n" not in str(caught.value)


def test_size_that_depends_on_activations():
    class Selected(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            y = self.inner(x)
            return y[y > 0].sum()

    with pytest.raises(DimensionError, match="depends on data"):
        importers.load(Selected(), example_inputs=(torch.randn(3),))


def test_size_that_depends_on_the_inputs_is_the_largest_and_the_report_says_so():
    class Selected(nn.Module):
        def forward(self, x):
            return x[x > 0].sum()

    model = importers.load(Selected(), example_inputs=(torch.randn(3, 5),))
    assert model.importer.startswith("run-time trace")
    assert any("taken as true everywhere" in note for note in model.notes)
    (summed,) = (n for n in model.graph.nodes if n.op == "reduce_sum")
    assert summed.inputs[0].type.shape == (15,)


class Transformed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        return self.head(torch.logcumsumexp(x, -1))


def test_unknown_operator_names_itself_its_place_and_the_file():
    with pytest.raises(UnknownOperatorError) as caught:
        importers.load(Transformed(), example_inputs=(torch.randn(2, 8),))
    message = str(caught.value)
    assert "aten.logcumsumexp" in message
    assert "importers/torch_canonical.py" in message
    assert "\n" not in message


def test_unknown_operator_on_request():
    loaded = importers.load(Transformed(), example_inputs=(torch.randn(2, 8),), allow_unknown=True)
    (unknown,) = [n for n in loaded.graph.nodes if n.op == "unknown"]
    assert (unknown.flops, unknown.bytes_read, unknown.bytes_written) == (0, 64, 64)
    assert "aten.logcumsumexp.default" in loaded.notes[-1]


def test_custom_operator_by_the_record_of_its_name():
    @torch.library.custom_op("opbound_test::linear", mutates_args=())
    def fused(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x @ weight.T

    @fused.register_fake
    def _(x, weight):
        return x.new_empty(*x.shape[:-1], weight.shape[0])

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 8))

        def forward(self, x):
            return fused(x, self.weight)

    graph = importers.load(Custom(), example_inputs=(torch.randn(2, 8),)).graph
    assert [n.op for n in graph.nodes] == ["linear"]
    assert flops(graph) == 2 * 2 * 8 * 5


class Payload:
    """Unpickling this runs code: here it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


def rewritten(source, target, change):
    """A copy of a zip file with some files' contents changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "mlp.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Mlp(), (torch.randn(2, 8),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, path)
    return path


def test_archive_with_a_hostile_pickle_is_refused_unread(archive, tmp_path):
    mark = tmp_path / "mark"

    def change(name, content):
        return pickle.dumps(Payload(mark)) if name.endswith("sample_inputs/model.pt") else content

    with pytest.raises(ModelFileError, match="could run code"):
        importers.load(rewritten(archive, tmp_path / "hostile.pt2", change))
    assert not mark.exists()


def test_archive_whose_weights_are_said_to_be_pickled(archive, tmp_path):
    mark = tmp_path / "mark"

    def change(name, content):
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return pickle.dumps(Payload(mark)) if name.endswith("weights/weight_0") else content

    with pytest.raises(ModelFileError, match="could run code"):
        importers.load(rewritten(archive, tmp_path / "hostile.pt2", change))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b'"expr_str": "Sym', b'"expr_str": "__import__(1)+Sym', "no arithmetic"),
        (b"torch.ops.aten.relu.default", b"torch.hub.load", "no torch operator"),
        (b"torch.ops.aten.relu.default", b"torch.ops.aten.from_file.default", "no torch operator"),
    ],
)
def test_archive_with_hostile_text(archive, tmp_path, old, new, match):
    def change(name, content):
        return content.replace(old, new) if name.endswith("models/model.json") else content

    with pytest.raises(ModelFileError, match=match):
        importers.load(rewritten(archive, tmp_path / "hostile.pt2", change))


def test_generation_needs_a_known_cache(archive):
    with pytest.raises(OpboundError, match="use hf:NAME"):
        importers.load(archive, mode="decode", past_tokens=4)
    with pytest.raises(OpboundError, match="use hf:NAME"):
        importers.load(Mlp(), example_inputs=(torch.randn(2, 8),), mode="prefill")


def test_weights_need_a_float_dtype():
    with pytest.raises(OpboundError, match="not a floating-point type"):
        importers.load(Mlp(), example_inputs=(torch.randn(2, 8),), dtype="int8")
