"""One model by two routes: exported to ONNX, and imported as a module."""

import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from importers import load  # noqa: E402


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.up(self.grouped(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 50, bias=False)

    def forward(self, x):
        return self.head(self.layers(self.embedding(x)))


def randomised(module):
    """Layers that are copies of each other would share their weights in the file."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.eval()


MODELS = {
    "convolutions": (Convolutions, lambda: torch.randn(2, 3, 17, 19)),
    "encoder": (Encoder, lambda: torch.randint(0, 50, (2, 7))),
}


def export(module, example, path, *, dynamo, dynamic=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch", min=2)},) if dynamic else None
            torch.onnx.export(
                module,
                (example,),
                str(path),
                dynamo=True,
                verbose=False,
                external_data=False,
                dynamic_shapes=shapes,
            )
        else:
            names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}} if dynamic else {}
            torch.onnx.export(module, (example,), str(path), dynamo=False, **names)
    return path


def products(graph):
    """FLOPs of contractions, and of those that both routes keep whole, their bytes."""
    flops = sum(n.flops for n in graph.nodes if n.definition.kind in ("contraction", "attention"))
    weighted = [
        n
        for n in graph.nodes
        if n.definition.kind == "contraction" and any(v.kind == "parameter" for v in n.inputs)
    ]
    return flops, sorted(n.bytes_read + n.bytes_written for n in weighted)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_flops_parameters_and_bytes_agree(tmp_path, name, dynamo):
    make, example = MODELS[name]
    module, x = randomised(make()), example()
    path = export(module, x, tmp_path / "model.onnx", dynamo=dynamo)
    from_onnx, from_torch = load(path).graph, load(module, example_inputs=(x,)).graph
    assert products(from_onnx) == products(from_torch)
    counts = [sum(p.type.elements for p in g.parameters) for g in (from_onnx, from_torch)]
    assert counts == [sum(p.numel() for p in module.parameters())] * 2


@pytest.mark.parametrize("dynamo", [True, False])
def test_dims_bound_late_equal_dims_exported(tmp_path, dynamo):
    make, example = MODELS["encoder"]
    module, x = randomised(make()), example()
    fixed = load(export(module, x, tmp_path / "fixed.onnx", dynamo=dynamo)).graph
    free = export(module, x, tmp_path / "free.onnx", dynamo=dynamo, dynamic=True)
    bound = load(free, batch=2).graph
    assert products(bound) == products(fixed)
    assert [v.type for v in bound.outputs] == [v.type for v in fixed.outputs]
    assert products(load(free, batch=6).graph)[0] == 3 * products(fixed)[0]


def test_module_paths_survive(tmp_path):
    make, example = MODELS["convolutions"]
    module, x = randomised(make()), example()
    for dynamo in (True, False):
        graph = load(export(module, x, tmp_path / f"{dynamo}.onnx", dynamo=dynamo)).graph
        found = {n.module for n in graph.nodes if n.definition.kind == "contraction"}
        assert found == {"stem", "grouped", "up", "head"}


@pytest.mark.parametrize("baked", [1, 2])
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_baked_into_the_file_is_replaced(tmp_path, name, dynamo, baked):
    """Exporters write the example's batch into the targets of reshapes, merged with heads or tokens."""
    make, example = MODELS[name]
    module, x = randomised(make()), example()[:baked]
    path = export(module, x, tmp_path / "model.onnx", dynamo=dynamo)
    own, six = load(path).graph, load(path, batch=6).graph
    assert products(six)[0] * baked == products(own)[0] * 6
    assert six.outputs[0].type.shape == (6, *own.outputs[0].type.shape[1:])
