"""One meaning, however it is spelled and exported: the same operators, FLOPs, bytes and time."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from costing.hardware_file import load_hardware  # noqa: E402
from costing.kernels import price_graph  # noqa: E402
from graph_ir.canonicalize import canonicalize  # noqa: E402
from graph_ir.fusion import fusion_groups  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))

from meanings import MEANINGS  # noqa: E402

# The exporters of TorchScript know these operators from later opsets on, or not at all.
UNEXPORTED = {"rms_norm", "scaled_dot_product_attention", "einsum", "special_ndtr", "enable_gqa"}
# Why two routes may differ.
DIFFERENT = {
    (
        "attention-baddbmm",
        "onnx",
    ): "a stored table of zeros may stand for weights left out of a file",
    ("mask_add-baddbmm", "onnx"): "the exporter multiplies the mask by 1",
    ("alibi-baddbmm", "onnx"): "the exporter multiplies the mask by 1",
}
DIFFERENT_IN_TRAINING = {
    "group_norm": "the one that PyTorch has takes its statistics again",
    "instance_norm": "the one that PyTorch has takes its statistics again",
    "swiglu_fused-slice": "gradients of two slices are added, those of two halves put side by side",
    "attention-bmm": "the factor of the scores is one with the queries' own",
}
PRODUCTS = {"linear": "matmul", "einsum": "matmul"}


class Figures(NamedTuple):
    operators: Counter[str]
    flops: int
    bytes: int
    time_s: float


@cache
def h100() -> Any:
    return load_hardware("h100-sxm-80gb")


def figures(graph: Graph, *, training: bool = False) -> Figures:
    """What fused execution runs."""
    found = canonicalize(graph, training=training)
    found = training_graph(found) if training else found
    nodes = [n for n in found.nodes if not n.definition.is_view(n)]
    costs = price_graph(found, h100(), fusion_groups(found))
    return Figures(
        Counter(PRODUCTS.get(n.op, n.op) for n in nodes),
        sum(n.flops for n in nodes),
        sum(c.bytes_read + c.bytes_written for c in costs.values()),
        sum(c.time_s for c in costs.values()),
    )


class Trained(torch.nn.Module):
    """A module behind a trained factor of each of its first arguments."""

    def __init__(self, module: Any, arguments: tuple[Any, ...], count: int) -> None:
        super().__init__()
        self.module = module
        self.factors = torch.nn.ParameterList(
            torch.nn.Parameter(torch.rand_like(x)) for x in arguments[:count]
        )

    def forward(self, *arguments: Any) -> Any:
        count = len(self.factors)
        scaled = [x * w for x, w in zip(arguments, self.factors, strict=False)]
        return self.module(*scaled, *arguments[count:])


def imported(module: Any, arguments: tuple[Any, ...], route: str, folder: Path) -> Graph:
    """A module by way of one frontend: `aten`, `dynamo`, or an opset of the TorchScript exporter."""
    if route == "aten":
        return load(module, example_inputs=arguments).graph
    path = folder / "module.onnx"
    opset = 18 if route == "dynamo" else int(route)
    try:
        torch.onnx.export(module, arguments, path, opset_version=opset, dynamo=route == "dynamo")
    except Exception as error:
        if any(name in str(error) for name in UNEXPORTED):
            pytest.skip(f"torch cannot export this: {str(error).splitlines()[0]}")
        raise
    return load(path).graph


SPELLINGS = [(name, label) for name, (spellings, _) in MEANINGS.items() for label in spellings]


@cache
def reference(name: str) -> Figures:
    """The first spelling, from PyTorch."""
    spellings, arguments = MEANINGS[name]
    module = next(iter(spellings.values())).eval()
    return figures(load(module, example_inputs=arguments).graph)


@cache
def trained(name: str, label: str) -> Figures:
    spellings, arguments = MEANINGS[name]
    # Tables of angles are not trained, nor are masks; queries, keys and values are.
    count = 3 if len(arguments) > 2 and not name.startswith("rope") else 1
    module = Trained(spellings[label], arguments, count).train()
    graph = load(module, example_inputs=arguments, mode="training").graph
    return figures(graph, training=True)


def check(name: str, label: str, route: str, folder: Path) -> None:
    kind = "aten" if route == "aten" else "onnx"
    for key in ((name, kind), (f"{name}-{label}", kind)):
        if key in DIFFERENT:
            pytest.skip(DIFFERENT[key])
    spellings, arguments = MEANINGS[name]
    found = figures(imported(spellings[label].eval(), arguments, route, folder))
    equal(found, reference(name))


def equal(found: Figures, wanted: Figures) -> None:
    assert found.operators == wanted.operators
    assert found.flops == wanted.flops
    assert found.bytes == wanted.bytes
    assert found.time_s == pytest.approx(wanted.time_s, rel=1e-6)


QUICK = ("layer_norm", "rms_norm", "attention_last", "mask_bool", "gqa", "rope_half", "swin")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "label"), SPELLINGS)
def test_spelling(name: str, label: str, tmp_path: Path) -> None:
    check(name, label, "aten", tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "label"), [x for x in SPELLINGS if x[0] in QUICK])
def test_exported(name: str, label: str, tmp_path: Path) -> None:
    check(name, label, "13", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("route", ["dynamo", "11", "12", "13", "14", "15", "16", "17"])
@pytest.mark.parametrize(("name", "label"), SPELLINGS)
def test_exported_by_every_route(name: str, label: str, route: str, tmp_path: Path) -> None:
    check(name, label, route, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "label"), SPELLINGS)
def test_spelling_in_training(name: str, label: str) -> None:
    for key in (name, f"{name}-{label}"):
        if key in DIFFERENT_IN_TRAINING or (key, "aten") in DIFFERENT:
            pytest.skip(DIFFERENT_IN_TRAINING.get(key) or DIFFERENT[key, "aten"])
    equal(trained(name, label), trained(name, next(iter(MEANINGS[name][0]))))


# Single nodes of ONNX: meaning, opset, other inputs than the meaning's own (weights), node.
NODES = {
    "LayerNormalization": (
        "layer_norm",
        17,
        "float[2,16,32] x",
        {"w": (32,), "b": (32,)},
        "LayerNormalization (x, w, b)",
    ),
    "RMSNormalization": (
        "rms_norm",
        23,
        "float[2,16,32] x",
        {"w": (32,)},
        "RMSNormalization (x, w)",
    ),
    "SimplifiedLayerNormalization": (
        "rms_norm",
        17,
        "float[2,16,32] x",
        {"w": (32,)},
        "SimplifiedLayerNormalization (x, w)",
    ),
    "Attention": (
        "attention",
        23,
        "float[2,4,16,8] q, float[2,4,16,8] k, float[2,4,16,8] v",
        {},
        "Attention (q, k, v)",
    ),
    "Attention-24": (
        "attention",
        24,
        "float[2,4,16,8] q, float[2,4,16,8] k, float[2,4,16,8] v",
        {},
        "Attention (q, k, v)",
    ),
    "Attention-causal": (
        "causal",
        23,
        "float[2,4,16,8] q, float[2,4,16,8] k, float[2,4,16,8] v",
        {},
        "Attention <is_causal = 1> (q, k, v)",
    ),
    "Attention-grouped": (
        "gqa",
        23,
        "float[2,4,16,8] q, float[2,2,16,8] k, float[2,2,16,8] v",
        {},
        "Attention (q, k, v)",
    ),
    "MultiHeadAttention": (
        "attention_last",
        17,
        "float[2,16,32] q, float[2,16,32] k, float[2,16,32] v",
        {},
        "com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v)",
    ),
    "BiasGelu": (
        "bias_gelu",
        17,
        "float[2,16,32] x",
        {"b": (32,)},
        "com.microsoft.BiasGelu (x, b)",
    ),
    "SkipLayerNormalization": (
        "skip_norm",
        17,
        "float[2,16,32] x, float[2,16,32] z",
        {"w": (32,), "b": (32,)},
        "com.microsoft.SkipLayerNormalization (x, z, w, b)",
    ),
}


@pytest.mark.parametrize("label", NODES)
def test_single_node(label: str, tmp_path: Path) -> None:
    import onnx
    import onnx.parser

    name, opset, inputs, weights, node = NODES[label]
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]> '
        f"m ({inputs}) => (float[a] y) {{ y = {node} }}"
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for weight, shape in weights.items():
        array = torch.randn(shape).numpy()
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, weight))
    path = tmp_path / "node.onnx"
    path.write_bytes(model.SerializeToString())
    equal(figures(load(path).graph), reference(name))
