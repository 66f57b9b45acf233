"""Tensor parallelism of real architectures sends what PyTorch's does under the plans that they bring.

Each architecture's own plan in transformers says which products are column- and which row-parallel;
`parallelize_module` carries it out over DTensor, whole tensors at the entry of attention and feed-forward.
opbound finds its split without it. Embedding, head and loss are not in those plans: opbound splits them by
the vocabulary, and what that sends stands at the end of the test, once per step.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from dtensor_oracle import RecordCollectives  # noqa: E402
from fsdp_oracle import fake_ranks  # noqa: E402
from hf_models import BATCH, HEAD, LAYERS, TOKENS, WIDTH, inputs, layers, module  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.device_mesh import DeviceMesh  # noqa: E402
from torch.distributed.tensor import DTensor, Replicate, Shard  # noqa: E402
from torch.distributed.tensor.parallel import (  # noqa: E402
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from graph_ir.fold import fold  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.ops.collective import message_bytes  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

# Of architectures that bring no plan: Megatron-LM's column and row products.
OWN_PLANS = {
    "opt": {
        **{f"self_attn.{n}": "colwise" for n in ("q_proj", "k_proj", "v_proj")},
        "self_attn.out_proj": "rowwise",
        "fc1": "colwise",
        "fc2": "rowwise",
    },
    "bert": {
        **{f"attention.self.{n}": "colwise" for n in ("query", "key", "value")},
        "attention.output.dense": "rowwise",
        "intermediate.dense": "colwise",
        "output.dense": "rowwise",
    },
}
FEWER = {"phi": (1, 1), "cohere": (1, 1), "gpt_neox": (1, 0)}
"""All-reduces per layer, forward and backward, that opbound saves over the plan. Attention and feed-forward
stand beside each other: what they add to the residual is one sum of partial terms, where the plan brings each
to a whole tensor. Those of Phi and Cohere read the same tensor too, so its gradient is one sum; the plan
enters twice."""
UNGROUPED = ("gpt_neox", "opt", "bert")
NAMES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "helium", "granite", "starcoder2", "nemotron"),
    *("phi", "cohere", *UNGROUPED),
)


def plan_of(name: str, model: nn.Module) -> dict[str, str]:
    """Column- and row-parallel products of a layer."""
    if name in OWN_PLANS:
        return OWN_PLANS[name]
    found = model.model.config.base_model_tp_plan  # type: ignore[union-attr]
    return {key.removeprefix("layers.*."): way for key, way in found.items()}


def _as_dtensor(mesh: DeviceMesh) -> Any:
    """A hook: what a module reads becomes one DTensor, so that its gradients are summed, then reduced."""

    def hook(owner: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (DTensor.from_local(args[0], mesh, [Replicate()]), *args[1:]), kwargs
        first = DTensor.from_local(kwargs["hidden_states"], mesh, [Replicate()])
        return args, {**kwargs, "hidden_states": first}

    return hook


def torch_messages(name: str, world: int) -> tuple[Counter[Any], Counter[Any]]:
    """What the layers of a model send, forward and backward."""
    model = module(name)
    with fake_ranks(world) as mesh:
        for layer in layers(model):
            styles: dict[str, ParallelStyle] = {}
            plan = plan_of(name, model)
            owners = {p.rpartition(".")[0] for p, way in plan.items() if way == "colwise"}
            for owner in owners - {""}:
                module_ = layer.get_submodule(owner)
                module_.register_forward_pre_hook(_as_dtensor(mesh), with_kwargs=True)
            for path, way in plan.items():
                if way == "colwise":
                    styles[path] = ColwiseParallel(input_layouts=Replicate())
                elif way == "rowwise":
                    styles[path] = RowwiseParallel(input_layouts=Shard(-1))
            parallelize_module(layer, mesh, styles)
        with RecordCollectives(world) as forward:
            loss = model(*inputs(name))
        with RecordCollectives(world) as backward:
            loss.backward()
    return forward.seen, backward.seen


@cache
def step(name: str) -> Graph:
    made = load(module(name), example_inputs=inputs(name), mode="training")
    return training_graph(fold(made.graph))


def sent(graph: Graph, during: str) -> tuple[Counter[Any], Counter[Any]]:
    """(What repeated layers send, what the rest does) in a pass."""
    of_layers: Counter[Any] = Counter()
    rest: Counter[Any] = Counter()
    for node in graph.nodes:
        if node.phase == "communication" and node.during == during:
            seen = of_layers if node in graph.block_of else rest
            seen[node.op, message_bytes(node)] += node.count
    return of_layers, rest


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("llama", "opt") else pytest.mark.slow) for n in NAMES],
)
def test_layers_send_what_the_plan_does(name: str, world: int) -> None:
    if world > 2 and name not in UNGROUPED:
        pytest.skip("the plans cannot split two heads of keys and values over four ranks")
    forward, backward = torch_messages(name, world)
    graph = partition(step(name), Strategy(Mesh({"tp": world})), lambda n: 1.0).stages[0].graph
    whole = BATCH * TOKENS * WIDTH * 4
    reduced = "all_reduce", whole
    assert backward == Counter({reduced: 2 * LAYERS})
    (of_layers, rest), (of_layers_back, rest_back) = (
        sent(graph, p) for p in ("forward", "backward")
    )
    assert forward == Counter({reduced: 2 * LAYERS})
    fewer, fewer_back = FEWER.get(name, (0, 0))
    assert of_layers == forward - Counter({reduced: fewer * LAYERS})
    expected = backward - Counter({reduced: fewer_back * LAYERS})
    heads_norms = list(plan_of(name, module(name)).values()).count("replicated_with_grad_allreduce")
    if heads_norms:
        # Norms of heads have a weight that all heads share: the plan asks for its reduction too.
        expected["all_reduce", heads_norms * HEAD * 4] += LAYERS
    assert of_layers_back == expected
    if name != "bert":
        # The embedding's rows; the softmax over the vocabulary: maximum, sum, and the sum of its backward
        # pass; the gradient of what the head reads.
        row = "all_reduce", BATCH * TOKENS * 4
        assert rest == Counter({reduced: 1, row: 2})
        assert rest_back == Counter({reduced: 1, row: 1})
