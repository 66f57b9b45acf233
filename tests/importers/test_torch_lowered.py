"""Decomposed programs, control flow, autocast and operators that only their nature describes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import importers
from graph_ir.errors import OpboundError
from graph_ir.graph import Graph


class Calls(nn.Module):
    """A function of tensors, as a module."""

    def __init__(self, function, *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, *tensors):
        return self.function(*self.parts, *tensors)


def graph_of(function, *tensors, parts=(), **options) -> Graph:
    return importers.load(Calls(function, *parts), example_inputs=tensors, **options).graph


def product_flops(graph: Graph) -> int:
    kinds = ("contraction", "attention")
    return sum(n.flops for n in graph.nodes if n.definition.kind in kinds)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.layer, self.group, self.rms = nn.LayerNorm(64), nn.GroupNorm(4, 64), nn.RMSNorm(64)
        self.batch = nn.BatchNorm1d(64)
        self.query, self.out = nn.Linear(64, 192), nn.Linear(64, 64)
        self.conv = nn.Conv1d(64, 64, 3, padding=1)

    def forward(self, ids):
        x = self.layer(self.table(ids))
        q, k, v = self.query(x).view(2, 10, 3, 4, 16).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.rms(x + self.out(seen.transpose(1, 2).reshape(2, 10, 64)))
        x = self.batch(self.group(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        return nn.functional.cross_entropy(x.flatten(0, 1), ids.flatten())


@pytest.mark.parametrize("training", [False, True])
def test_a_program_decomposed_to_core_operators_does_the_same_products(training: bool) -> None:
    module = Everything().train(training)
    whole = torch.export.export(module, (torch.randint(0, 50, (2, 10)),), strict=False)
    mode = "training" if training else "inference"
    graphs = [
        importers.load(p, mode=mode).graph
        for p in (whole, whole.run_decompositions({}), whole.run_decompositions())
    ]
    assert len({product_flops(g) for g in graphs}) == 1
    for op in ("layer_norm", "group_norm", "batch_norm"):
        assert [sum(n.op == op for n in g.nodes) for g in graphs] == [1, 1, 1]


def test_autocast_casts_the_operands_and_each_weight_once() -> None:
    layer = nn.Linear(8, 8)

    def run(linear, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear(linear(x)) + x

    graph = graph_of(run, torch.randn(2, 8), parts=(layer,))
    products = [n for n in graph.nodes if n.op == "linear"]
    assert {v.type.dtype.label for n in products for v in n.inputs} == {"bfloat16"}
    cast = [n.inputs[0].name for n in graph.nodes if n.op == "cast"]
    assert sorted(cast) == ["parts.0.bias", "parts.0.weight", "tensors_0"]
    # Plain promotion of bf16 and fp32 is the adding kernel's own business.
    added = graph.nodes[-1]
    assert {v.type.dtype.label for v in added.inputs} == {"bfloat16", "float32"}


def test_of_two_branches_the_dearer_one_counts_and_both_are_told() -> None:
    def run(small, large, x):
        return torch.cond(x.sum() > 0, small, large, (x,))

    module = Calls(run, nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 4)))
    model = importers.load(module, example_inputs=(torch.randn(2, 4),))
    assert product_flops(model.graph) == 2 * 2 * 4 * 64 * 2
    (note,) = [n for n in model.notes if "branch counts" in n]
    # Products and bias additions of the second branch, then of the first.
    assert f"{2048 + 128 + 8:.3g} FLOPs" in note
    assert f"has {64 + 8:.3g} and" in note


def test_loops_are_written_out() -> None:
    from torch._higher_order_ops import scan, while_loop

    def rows(x):
        return scan(lambda c, y: (c @ y, c + y), torch.eye(4), x)

    assert product_flops(graph_of(rows, torch.randn(6, 4, 4))) == 6 * 2 * 4**3

    def counted(x):
        start = (torch.tensor(0), x)
        return while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, y @ y), start)

    assert product_flops(graph_of(counted, torch.randn(4, 4))) == 5 * 2 * 4**3

    def decided(x):
        return while_loop(lambda y: y.sum() > 0, lambda y: (y @ y,), (x,))

    with pytest.raises(OpboundError, match="depends on data"):
        graph_of(decided, torch.randn(4, 4))


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (torch.atan2, [torch.randn(3, 1), torch.randn(5)]),
        (torch.lgamma, [torch.rand(7)]),
        (torch.log2, [torch.rand(7)]),
        (torch.special.bessel_j0, [torch.rand(7)]),
    ],
)
def test_elementwise_operators_without_a_record_move_their_tensors(function, inputs) -> None:
    (node,) = graph_of(function, *inputs).nodes
    assert node.op == "pointwise"
    assert node.bytes_read == sum(t.nbytes for t in inputs)
    assert node.bytes_written == function(*inputs).nbytes


@pytest.mark.parametrize(
    "view",
    [
        lambda x: torch.diagonal(x) + 0,
        lambda x: x.unfold(1, 4, 2) + 0,
        lambda x: x.diagonal(1) * 2,
    ],
)
def test_a_view_of_any_kind_shows_the_right_elements(view) -> None:
    import numpy as np

    from graph_ir.evaluate import run_node

    x = torch.randn(6, 10, dtype=torch.float64)
    graph = graph_of(view, x)
    known = {v: v.data for v in graph.inputs if v.kind == "constant"}
    known |= {v: x.numpy() for v in graph.inputs if v.kind == "input"}
    for node in graph.nodes:
        results = run_node(node, [known[v] for v in node.inputs])
        known |= dict(zip(node.outputs, results, strict=True))
    np.testing.assert_allclose(known[graph.outputs[0]], view(x).numpy())


def test_products_of_all_kinds_count_what_torch_counts() -> None:
    cases = [
        (torch.addmv, [torch.randn(4), torch.randn(4, 5), torch.randn(5)], 2 * 4 * 5),
        (torch.addbmm, [torch.randn(4, 6), torch.randn(3, 4, 5), torch.randn(3, 5, 6)], 720),
        (torch.cdist, [torch.randn(30, 8), torch.randn(40, 8)], 2 * 30 * 40 * 10),
        (nn.Bilinear(8, 9, 10), [torch.randn(3, 8), torch.randn(3, 9)], 4320 + 540),
    ]
    for function, tensors, wanted in cases:
        module = function if isinstance(function, nn.Module) else Calls(function)
        assert product_flops(importers.load(module, example_inputs=tuple(tensors)).graph) == wanted


def test_fp8_products_run_in_fp8() -> None:
    a, b = (torch.randn(32, 64).to(torch.float8_e4m3fn) for _ in range(2))

    def run(a, b, scale):
        return torch._scaled_mm(a, b.t(), scale, scale, out_dtype=torch.bfloat16)

    graph = graph_of(run, a, b, torch.tensor(1.0))
    (product,) = (n for n in graph.nodes if n.definition.kind == "contraction")
    assert {v.type.dtype.label for v in product.inputs} == {"float8_e4m3"}
    with FlopCounterMode(display=False) as counter:
        run(*(t.to("meta") for t in (a, b, torch.tensor(1.0))))
    assert product.flops == counter.get_total_flops()


def test_bags_of_embeddings() -> None:
    picks = torch.randint(0, 100, (4, 7))
    graph = importers.load(nn.EmbeddingBag(100, 16), example_inputs=(picks,)).graph
    assert [n.op for n in graph.nodes if not n.definition.is_view(n)] == ["gather", "reduce_mean"]


def test_what_nothing_describes_is_an_error_and_on_request_a_row_with_its_bytes() -> None:
    x = torch.randn(5, 5)
    with pytest.raises(OpboundError, match=r"_linalg_eigvals|_linalg_svd.*--allow-unknown"):
        graph_of(torch.linalg.svdvals, x)
    graph = graph_of(torch.linalg.svdvals, x, allow_unknown=True)
    (node,) = (n for n in graph.nodes if n.op == "unknown")
    assert node.bytes_read == x.nbytes
    assert node.bytes_written >= 5 * 4
