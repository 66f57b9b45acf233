"""Partial terms are reduced once: sums, shared weights, experts; what needs no data is not sent at all."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from blocks import GptBlock  # noqa: E402
from fsdp_oracle import train_step  # noqa: E402
from ranks import PartitionedRun, numbers, one_device  # noqa: E402
from small_models import BATCH, TOKENS, WIDTH, architecture, encoder_decoder, mixture  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from graph_ir.fold import fold  # noqa: E402
from graph_ir.graph import Graph, Node  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

LAYERS, CLASSES = 3, 8
SP = {"sequence_parallel": True}


def rank_graph(graph: Graph, mesh: dict[str, int], **options: Any) -> Graph:
    parts = partition(graph, Strategy(Mesh(mesh), **options), lambda n: float(n.flops))
    return parts.stages[0].graph


def sent(graph: Graph, during: str) -> Counter[tuple[str, tuple[int, ...]]]:
    """(kind, shape of the largest tensor) of every message in a pass; a bucket counts per tensor."""
    seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for node in graph.nodes:
        if node.phase == "communication" and node.during == during:
            for pair in zip(node.inputs, node.outputs, strict=True):
                seen[node.op, max(pair, key=lambda v: v.type.elements).type.shape] += node.count
    return seen


def proven(graph: Graph, mesh: dict[str, int], **options: Any) -> None:
    """All ranks compute what one device does."""
    given = numbers(graph)
    parts = partition(graph, Strategy(Mesh(mesh), **options), lambda n: float(n.flops))
    assert PartitionedRun(graph, parts, given).check(one_device(graph, given)) > len(graph.nodes)


class NormLast(nn.Module):
    """BERT's order: the norm comes after the sum, so query, key and value read what the residual reads."""

    def __init__(self) -> None:
        super().__init__()
        self.block = GptBlock()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[b, s, width] -> [b, s, width]."""
        heads = (self.block.query, self.block.key, self.block.value)
        q, k, v = (p(x).view(*x.shape[:2], 4, -1).transpose(1, 2) for p in heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = self.norms[0](x + self.block.out(mixed))
        return self.norms[1](x + self.block.proj(F.gelu(self.block.fc(x))))


class Beside(nn.Module):
    """Three feed-forward paths beside each other, added to the residual one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.ModuleList(nn.Linear(WIDTH, 64) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(64, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[b, s, width] -> [b, s, width]."""
        y = self.norm(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.relu(up(y)))
        return x


class Classifier(nn.Module):
    """A stem, layers (one of them, several times, if they are shared) and a head with its loss."""

    def __init__(self, block: type[nn.Module], *, shared: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(block() for _ in range(1 if shared else LAYERS))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """x[b, s, width], target[b, s] -> loss."""
        x = self.stem(x)
        for i in range(LAYERS):
            x = self.layers[i % len(self.layers)](x)
        return F.cross_entropy(self.head(x).view(-1, CLASSES), target.view(-1))


def given(batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, TOKENS, WIDTH), torch.zeros(batch, TOKENS, dtype=torch.long)


def step(block: type[nn.Module], *, shared: bool = False) -> Graph:
    model = Classifier(block, shared=shared)
    return training_graph(fold(load(model, example_inputs=given(), mode="training").graph))


@pytest.mark.parametrize("options", [{}, SP], ids=["tp", "sp"])
@pytest.mark.parametrize(("block", "forward", "backward"), [(NormLast, 2, 2), (Beside, 1, 1)])
def test_a_sum_is_reduced_once(
    block: type[nn.Module], forward: int, backward: int, options: dict[str, Any]
) -> None:
    graph = step(block)
    local = rank_graph(graph, {"tp": 2}, **options)
    kind = "reduce_scatter" if options else "all_reduce"
    activation = kind, (BATCH, TOKENS, WIDTH)
    # And once for the stem, whose input is cut without sending anything, and for the head, by its classes.
    assert sent(local, "forward")[activation] == forward * LAYERS + 1
    assert sent(local, "backward")[activation] == backward * LAYERS + 1
    proven(graph, {"tp": 2}, **options)


def test_a_weight_that_all_layers_read_is_reduced_once() -> None:
    """As FSDP2 does it too: gathered in every layer, scattered once."""
    graph = step(GptBlock, shared=True)
    weights = Counter({("all_reduce", v.type.shape): 0 for v in graph.parameters})
    weights.update(("all_reduce", v.type.shape) for v in graph.parameters)
    assert sent(rank_graph(graph, {"dp": 2}), "backward") == weights
    local = rank_graph(graph, {"dp": 2}, zero=3)
    size = sum(v.type.elements for v in graph.parameters if v.name.startswith("layers"))

    def times(op: str, during: str) -> float:
        """How often the shared layer's weights are sent."""
        nodes = [n for n in local.nodes if n.op == op and n.during == during]
        ends = [(n, n.outputs if op == "all_gather" else n.inputs) for n in nodes]
        moved = [(n, v) for n, values in ends for v in values if v.name.startswith("layers")]
        return sum(v.type.elements * n.count for n, v in moved) / size

    model = Classifier(GptBlock, shared=True)
    forward, backward, _ = train_step(model, [model.layers[0]], given(BATCH // 2), 2)
    assert times("all_gather", "forward") == forward["all_gather", size] == LAYERS
    assert times("all_gather", "backward") == backward["all_gather", size] == LAYERS
    assert times("reduce_scatter", "backward") == backward["reduce_scatter", size] == 1


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ({"dp": 2}, {"zero": 3}),
        ({"tp": 2}, SP),
        ({"dp": 2, "tp": 2, "pp": 2}, {"zero": 1, **SP}),
        pytest.param({"cp": 2, "tp": 2}, {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_shared_layers_compute_the_same(mesh: dict[str, int], options: dict[str, Any]) -> None:
    proven(step(GptBlock, shared=True), mesh, **options)


def test_what_all_layers_of_a_decoder_read_is_reduced_once() -> None:
    pytest.importorskip("transformers")
    graph = training_graph(encoder_decoder())
    # The position bias has a gradient in every layer; what is reduced is its table's.
    shapes = Counter(("all_reduce", v.type.shape) for v in graph.parameters)
    assert sent(rank_graph(graph, {"dp": 2}), "backward") == shapes
    # Keys and values of all layers of the decoder give the encoder's result one gradient.
    whole = rank_graph(graph, {"tp": 2})
    activation = "all_reduce", (BATCH, TOKENS, WIDTH)
    products = 2 * (2 + 3)  # pairs of products in two layers of each kind
    assert sent(whole, "forward")[activation] == products + 2  # and both embeddings
    assert (
        sent(whole, "backward")[activation] == products + 2
    )  # the head's, and the encoder's result


def rotary() -> Graph:
    return architecture(
        "llama",
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def depends_on_data(graph: Graph) -> set[Any]:
    """Values that come from float weights or from samples."""
    kinds = ("parameter", "state", "input", "carried")
    found = {v for v in graph.inputs if v.kind in kinds}
    found.update(c for c in graph.carries)
    for node in graph.nodes:
        if found.intersection(node.inputs):
            found.update(node.outputs)
    return found


@pytest.mark.parametrize("mesh", [{"tp": 2}, {"cp": 2}, {"tp": 2, "dp": 2}], ids=str)
def test_what_needs_no_data_is_not_sent(mesh: dict[str, int]) -> None:
    pytest.importorskip("transformers")
    options = SP if "tp" in mesh else {}
    graph = training_graph(rotary())
    local = rank_graph(graph, mesh, **options)
    known = depends_on_data(local)
    messages = [n for n in local.nodes if n.phase == "communication"]
    assert messages
    assert all(known.issuperset(n.inputs) for n in messages)
    proven(graph, mesh, **options)


def products(node: Node) -> bool:
    return node.op == "grouped_matmul"


@pytest.mark.parametrize("options", [{}, SP], ids=["tp", "sp"])
def test_experts_terms_are_combined_before_they_are_reduced(options: dict[str, Any]) -> None:
    """Every token's k experts give k partial rows, which are one when they are reduced."""
    pytest.importorskip("transformers")
    graph = training_graph(mixture())
    local = rank_graph(graph, {"tp": 2}, **options)
    chosen = 2
    rows = {n.outputs[0].type.shape[0] for n in graph.nodes if products(n) and not n.origin}
    assert rows == {BATCH * TOKENS * chosen}
    for during in ("forward", "backward"):
        for (kind, shape), _ in sent(local, during).items():
            assert shape[0] != BATCH * TOKENS * chosen or shape[1:] in ((), (1,)), (kind, shape)
    proven(graph, {"tp": 2}, **options)


def decoder(kind: str, **sizes: Any) -> Graph:
    return architecture(
        kind,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **sizes,
    )


def split_weights(graph: Graph) -> set[str]:
    """The last names of the weights that a rank of tensor parallelism holds a part of."""
    local = rank_graph(training_graph(graph), {"tp": 2})
    return {v.name.removesuffix(".weight").split(".")[-1] for v in local.parameters if v.shards}


def test_heads_are_split_under_a_norm_of_all_of_them() -> None:
    """OLMo 2 norms queries and keys over all heads: what is exchanged is one number per token."""
    pytest.importorskip("transformers")
    graph = decoder("olmo2")
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "down_proj"} <= split_weights(graph)
    messages = sent(rank_graph(training_graph(graph), {"tp": 2}), "forward")
    assert messages["all_reduce", (BATCH, TOKENS, 1)] == 2 * LAYERS
    assert messages["all_reduce", (BATCH, TOKENS, WIDTH)] == 2 * LAYERS + 1


def test_experts_are_split_whose_gates_are_interleaved() -> None:
    """GPT-OSS takes every second column for the gate."""
    pytest.importorskip("transformers")
    layers = ["full_attention"] * LAYERS
    graph = decoder("gpt_oss", num_local_experts=4, num_experts_per_tok=2, layer_types=layers)
    assert {"gate_up_proj", "gate_up_proj_bias", "down_proj"} <= split_weights(graph)
