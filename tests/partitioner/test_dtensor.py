"""Tensor- and data-parallel collectives equal those of PyTorch's DTensor."""

from __future__ import annotations

import re
from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from blocks import Bottleneck, BottleneckOfTaps, GptBlock, LlamaBlock  # noqa: E402
from dtensor_oracle import dtensor_collectives  # noqa: E402
from torch.distributed.tensor import Replicate, Shard  # noqa: E402

from graph_ir.fold import fold  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.ops.collective import message_bytes  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

Seen = Counter[tuple[str, int]]
ENTRIES = ("ln_1", "ln_2", "norm_1", "norm_2")
EXITS = ("out", "proj", "down")


def collectives(graph: Graph, during: str) -> Seen:
    """What opbound's graph of one rank communicates in a pass; a bucket counts per gradient."""
    seen: Seen = Counter()
    for node in graph.nodes:
        if node.phase != "communication" or node.attrs["during"] != during:
            continue
        if len(node.inputs) > 1:
            for value in node.inputs:
                seen[node.op, value.type.bytes] += node.count
        else:
            seen[node.op, message_bytes(node)] += node.count
    return seen


def stack(block: type, depth: int) -> torch.nn.Module:
    return torch.nn.Sequential(*[block() for _ in range(depth)])


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("block", [GptBlock, LlamaBlock])
def test_tensor_parallel_collectives_equal_dtensor(block: type, world: int) -> None:
    model, x = stack(block, 2), torch.randn(2, 8, 32)
    graph = training_graph(load(model, example_inputs=(x,), mode="training").graph)
    local = partition(graph, Strategy(Mesh({"tp": world})), lambda n: 1.0).stages[0].graph
    # Megatron's layouts: whole at the entry of attention and feed-forward, whole at their end.
    plan = dict.fromkeys(ENTRIES + EXITS, Replicate())
    splits = parameter_splits(graph, local)
    forward, backward = dtensor_collectives(model, x, splits, world, plan=plan)
    assert collectives(local, "forward") == forward
    assert collectives(local, "backward") == backward
    # Megatron's count: two all-reduces per layer and pass (Shoeybi et al. 2019, figure 4).
    assert sum(forward.values()) == sum(backward.values()) == 4


@pytest.mark.parametrize("block", [GptBlock, LlamaBlock])
def test_sequence_parallel_collectives_equal_dtensor(block: type) -> None:
    world, depth = 2, 3
    model, x = stack(block, depth), torch.randn(2, 8, 32)
    graph = training_graph(fold(load(model, example_inputs=(x,), mode="training").graph))
    tokens = Strategy(Mesh({"tp": world}), sequence_parallel=True)
    local = partition(graph, tokens, lambda n: 1.0).stages[0].graph
    plan = {**dict.fromkeys(ENTRIES, Replicate()), **dict.fromkeys(EXITS, Shard(1))}
    unfolded = training_graph(load(model, example_inputs=(x,), mode="training").graph)
    local_unfolded = partition(unfolded, Strategy(Mesh({"tp": world})), lambda n: 1.0).stages[0]
    splits = parameter_splits(unfolded, local_unfolded.graph)
    forward, backward = dtensor_collectives(model, x, splits, world, plan=plan, split_dim=1)
    assert collectives(local, "forward") == forward
    # DTensor keeps what it gathered; opbound keeps the rank's part and gathers it again for the weights'
    # gradients, as Megatron-LM does (Korthikanti et al. 2022, section 4.2.2): once per entry and layer.
    again = Counter({("all_gather", x.nbytes): 2 * depth})
    # Megatron-LM adds a row-parallel bias after the reduce-scatter, to the rank's own tokens, so that its
    # gradient is a partial sum; DTensor adds it to the partial products.
    biases = sum(name.endswith(("out.bias", "proj.bias")) for name in splits)
    again["all_reduce", x.shape[-1] * x.element_size()] = biases
    assert collectives(local, "backward") - again == backward


@pytest.mark.parametrize("block", [GptBlock, LlamaBlock, Bottleneck])
def test_data_parallel_collectives_equal_dtensor(block: type) -> None:
    world = 2
    model = stack(block, 2)
    x = torch.randn(4, 16, 8, 8) if block is Bottleneck else torch.randn(4, 8, 32)
    graph = training_graph(load(model, example_inputs=(x,), mode="training").graph)
    local = partition(graph, Strategy(Mesh({"dp": world})), lambda n: 1.0).stages[0].graph
    whole = dict.fromkeys(dict(model.named_parameters()))
    forward, backward = dtensor_collectives(model, x, whole, world, split_dim=0)
    assert collectives(local, "forward") == forward == Counter()
    assert collectives(local, "backward") == backward
    gradients = sum(size * times for (_, size), times in backward.items())
    assert gradients == sum(v.type.bytes for v in graph.parameters)


def test_resnet_collectives_equal_dtensor() -> None:
    world = 2
    model, x = stack(Bottleneck, 2), torch.randn(4, 16, 8, 8)
    graph = training_graph(load(model, example_inputs=(x,), mode="training").graph)
    local = partition(graph, Strategy(Mesh({"tp": world})), lambda n: 1.0).stages[0].graph
    splits = parameter_splits(graph, local)
    # Found without a name: the 3x3 convolution makes split channels, the 1x1 after it sums over them.
    assert set(splits.values()) == {None, 0, 1}
    taps = stack(BottleneckOfTaps, 2)
    of_taps = {
        n: splits[re.sub(r"\.\d+\.weight", ".weight", n)] for n, _ in taps.named_parameters()
    }
    forward, backward = dtensor_collectives(
        taps,
        x.permute(0, 2, 3, 1).contiguous(),
        of_taps,
        world,
        plan=dict.fromkeys(("entry", "expand"), Replicate()),
    )
    assert collectives(local, "forward") == forward
    assert collectives(local, "backward") == backward


def parameter_splits(graph: Graph, local: Graph) -> dict[str, int | None]:
    """Which dim of each parameter opbound splits."""
    found: dict[str, int | None] = {}
    own = {v.name: v for v in local.parameters}
    for value in graph.parameters:
        shapes = zip(value.type.shape, own[value.name].type.shape, strict=True)
        found[value.name] = next((i for i, (a, b) in enumerate(shapes) if a != b), None)
    return found
