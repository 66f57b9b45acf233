"""ZeRO-3 and hybrid sharding send and store what PyTorch's FSDP2 does, on real architectures.

FSDP2 runs them on a fake process group, each repeated layer a unit and the rest the root's. What differs:

- FSDP2 pads every parameter to a multiple of the ranks along its first dim, so that a rank holds whole rows;
  here the elements are shared out, as ZeRO's authors and Megatron-LM do. Nothing differs where ranks divide.
- What belongs to no layer FSDP2 gathers in one message before the first of them, and keeps; here each
  stretch between layers gathers what it reads. The bytes are the same, but that a tied embedding is gathered
  for the embedding and again for the head.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from math import prod

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from fsdp_oracle import Messages, Stored, train_step  # noqa: E402
from hf_models import BATCH, LAYERS, MODELS, inputs, layers, module  # noqa: E402

from graph_ir.fold import fold  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.ops.collective import message_bytes  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

Seen = Counter[tuple[str, int]]
TIED = {"gpt2": "model.transformer.wte.weight", "gemma": "model.model.embed_tokens.weight",
        "bert": "model.bert.embeddings.word_embeddings.weight"}  # fmt: skip
"""The weights that embedding and head share."""
MESHES = ((2,), (4,), (8,), (2, 2), (2, 4))
"""Ranks that shard; or groups that replicate, and ranks that shard."""
QUICK = (("llama", (4,)), ("gpt2", (2, 2)), ("mixtral", (2,)), ("perceptron", (4,)))
CASES = [
    pytest.param(n, m, marks=() if (n, m) in QUICK else pytest.mark.slow, id=f"{n}-{m}")
    for n in MODELS
    for m in MESHES
    if n != "t5"
]


@cache
def step(name: str) -> Graph:
    """A model's training step, folded."""
    made = load(module(name), example_inputs=inputs(name), mode="training")
    return training_graph(fold(made.graph))


def one_rank(name: str, mesh: tuple[int, ...], zero: int = 3) -> Graph:
    group = mesh[1] if len(mesh) > 1 else 0
    strategy = Strategy(Mesh({"dp": prod(mesh)}), zero=zero, shard_group=group)
    return partition(step(name), strategy, lambda n: 1.0).stages[0].graph


def sent(graph: Graph, during: str) -> tuple[Seen, Counter[str]]:
    """(Messages of repeated layers, elements of all others by kind), in one pass."""
    of_layers: Seen = Counter()
    others: Counter[str] = Counter()
    for node in graph.nodes:
        if node.phase == "communication" and node.during == during:
            elements = message_bytes(node) // 4
            if node in graph.block_of:
                of_layers[node.op, elements] += node.count
            else:
                others[node.op] += elements
    return of_layers, others


class Message:
    """Elements of a set of parameters, and what they are with rows of the first dim padded."""

    def __init__(self, parameters: list[torch.Tensor], ranks: int) -> None:
        self.own = sum(p.numel() for p in parameters)
        self.own_share = sum(-(-p.numel() // ranks) for p in parameters)
        self.rows_share = sum(-(-p.shape[0] // ranks) * p[0].numel() for p in parameters)
        self.rows = self.rows_share * ranks


@cache
def fsdp(name: str, mesh: tuple[int, ...]) -> tuple[Seen, Seen, Stored]:
    made = module(name)
    return train_step(made, layers(made), inputs(name, BATCH // prod(mesh)), *mesh)


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_messages_equal_fsdp(name: str, mesh: tuple[int, ...]) -> None:
    ranks, model = mesh[-1], module(name)
    graph = one_rank(name, mesh)
    units = layers(model)
    assert len(units) == LAYERS
    inside = {id(p) for unit in units for p in unit.parameters()}
    layer = Message(list(units[0].parameters()), ranks)
    root = Message([p for p in model.parameters() if id(p) not in inside], ranks)
    by_rows = {layer.own: layer.rows, layer.own_share: layer.rows_share}
    of_rows = {root.rows: root.own, root.rows_share: root.own_share}
    for during, theirs in zip(("forward", "backward"), fsdp(name, mesh), strict=False):
        ours, others = sent(graph, during)
        once = {op: size for op, size in theirs if size in of_rows}
        assert all(theirs[message] == 1 for message in once.items())
        of_layers = Counter({(op, by_rows[n]): times for (op, n), times in ours.items()})
        assert of_layers == theirs - Counter(once.items())
        expected = {op: of_rows[size] for op, size in once.items()}
        if during == "forward" and name in TIED:
            expected["all_gather"] += dict(model.named_parameters())[TIED[name]].numel()
        assert others == expected


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_ranks_store_what_they_do_under_fsdp(name: str, mesh: tuple[int, ...]) -> None:
    ranks, stored, graph = mesh[-1], fsdp(name, mesh)[2], one_rank(name, mesh)
    ours: Counter[tuple[int, ...]] = Counter()
    for node in graph.nodes:
        if node.definition.kind == "optimizer":
            parameter, gradient, *moments = (v.type.elements for v in node.inputs)
            ours[parameter, gradient, sum(moments)] += node.inputs[0].count
    theirs = Counter(
        zip(
            *(s.values() for s in (stored.parameters, stored.gradients, stored.states)), strict=True
        )
    )
    shapes = [p.shape for p in module(name).parameters()]
    shares = Counter(-(-prod(shape) // ranks) for shape in shapes)
    rows = Counter(-(-shape[0] // ranks) * prod(shape[1:]) for shape in shapes)
    assert ours == Counter({(n, n, 2 * n): times for n, times in shares.items()})
    assert theirs == Counter({(n, n, 2 * n): times for n, times in rows.items()})
    if all(shape[0] % ranks == 0 for shape in shapes):
        assert ours == theirs


def test_zero_2_sends_what_fsdp_sends_that_keeps_weights() -> None:
    """`reshard_after_forward=False` gathers once per step, before the pass; ZeRO-2 after the update."""
    from fsdp_oracle import fake_ranks
    from torch.distributed.fsdp import fully_shard

    ranks, model, given = 4, module("llama"), inputs("llama", 2)
    with fake_ranks(ranks) as mesh:
        for unit in (*layers(model), model):
            fully_shard(unit, mesh=mesh, reshard_after_forward=False)
        with Messages() as theirs:
            model(*given).backward()
    graph = one_rank("llama", (ranks,), zero=2)
    ours: Counter[str] = Counter()
    for node in graph.nodes:
        if node.phase == "communication":
            ours[node.op] += message_bytes(node) // 4 * node.count
    expected: Counter[str] = Counter()
    for (op, size), times in theirs.seen.items():
        expected[op] += size * times
    assert ours == expected
