"""Sequence parallelism of real architectures sends what PyTorch's does, layer by layer, in both passes.

The plans of `test_dtensor_models`, with `SequenceParallel` norms, tokens gathered at the entry of attention
and feed-forward, and products that scatter them at the exit, as torchtitan lays them out. What differs is
listed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from dtensor_oracle import RecordCollectives  # noqa: E402
from fsdp_oracle import fake_ranks  # noqa: E402
from hf_models import BATCH, HEAD, LAYERS, TOKENS, WIDTH, inputs, layers, module  # noqa: E402
from test_dtensor_models import NAMES, UNGROUPED, plan_of, sent, step  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.device_mesh import DeviceMesh  # noqa: E402
from torch.distributed.tensor import DTensor, Replicate, Shard  # noqa: E402
from torch.distributed.tensor.parallel import (  # noqa: E402
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from graph_ir.graph import Graph  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

ACTIVATION = BATCH * TOKENS * WIDTH * 4
PARALLEL = {"phi": ("entry", "exit"), "cohere": ("entry", "exit"), "gpt_neox": ("exit",)}
"""Where attention and feed-forward stand beside each other. Phi's and Cohere's read one tensor, which is
gathered once, and its gradient scattered once; what both add to the residual is scattered once. The plan does
each twice."""


def tokens_dim(name: str, path: str) -> int:
    """Of [batch, tokens, width]; OPT's feed-forward works on [batch * tokens, width]."""
    return 0 if name == "opt" and path in ("final_layer_norm", "fc2") else 1


def _entry(mesh: DeviceMesh) -> Any:
    """A hook: a rank's tokens become all tokens."""

    def gathered(tensor: torch.Tensor) -> DTensor:
        mine = DTensor.from_local(tensor, mesh, [Shard(tensor.dim() - 2)])
        return mine.redistribute(mesh, [Replicate()])

    def hook(owner: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (gathered(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": gathered(kwargs["hidden_states"])}

    return hook


def _first_tokens(world: int) -> Any:
    """A hook: the first rank's tokens."""
    return lambda layer, args: (args[0].chunk(world, dim=1)[0], *args[1:])


def _all_tokens(mesh: DeviceMesh) -> Any:
    """A hook: what the last layer leaves, whole again."""

    def hook(layer: nn.Module, args: Any, result: Any) -> Any:
        tensor = result[0] if isinstance(result, tuple) else result
        whole = DTensor.from_local(tensor, mesh, [Shard(1)]).full_tensor()
        return (whole, *result[1:]) if isinstance(result, tuple) else whole

    return hook


def torch_messages(name: str, world: int) -> tuple[Counter[Any], Counter[Any], Counter[Any]]:
    """What the layers of a model send forward and backward, and for the gradients of what is whole."""
    model = module(name)
    with fake_ranks(world) as mesh:
        for layer in layers(model):
            styles: dict[str, ParallelStyle] = {}
            plan = plan_of(name, model)
            for path, way in plan.items():
                if way == "colwise":
                    styles[path] = ColwiseParallel(input_layouts=Replicate())
                elif way == "rowwise":
                    styles[path] = RowwiseParallel(output_layouts=Shard(tokens_dim(name, path)))
            for path, child in layer.named_modules():
                if "norm" in type(child).__name__.lower() and "attn." not in path:
                    dim = tokens_dim(name, path)
                    styles[path] = SequenceParallel(sequence_dim=dim, use_local_output=True)
            parallelize_module(layer, mesh, styles)
            columns = {p for p, way in plan.items() if way == "colwise"}
            # A module that owns column products gathers once for all of them; OPT's layer owns one itself.
            owners = {p.rpartition(".")[0] or p for p in columns}
            for owner in owners:
                entered = layer.get_submodule(owner)
                entered.register_forward_pre_hook(_entry(mesh), with_kwargs=True, prepend=True)
        layers(model)[0].register_forward_pre_hook(_first_tokens(world))
        layers(model)[-1].register_forward_hook(_all_tokens(mesh))
        with RecordCollectives(world) as forward:
            loss = model(*inputs(name))
        with RecordCollectives(world) as backward:
            loss.backward()
        with RecordCollectives(world) as gradients:
            for layer in layers(model):
                for parameter in layer.parameters():
                    if isinstance(parameter.grad, DTensor):
                        parameter.grad.redistribute(mesh, parameter.data.placements).to_local()
    return forward.seen, backward.seen, gradients.seen


def buckets(graph: Graph) -> Counter[Any]:
    """All-reduces of the layers' gradients, message by message before they are joined."""
    seen: Counter[Any] = Counter()
    for node in graph.nodes:
        if node.op == "all_reduce" and node in graph.block_of:
            for value in node.inputs:
                seen["all_reduce", value.type.bytes] += node.count
    return seen


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("llama", "bert") else pytest.mark.slow) for n in NAMES],
)
def test_layers_gather_and_scatter_as_the_plan_does(name: str, world: int) -> None:
    if world > 2 and name not in UNGROUPED:
        pytest.skip("the plans cannot split two heads of keys and values over four ranks")
    forward, backward, gradients = torch_messages(name, world)
    strategy = Strategy(Mesh({"tp": world}), sequence_parallel=True)
    graph = partition(step(name), strategy, lambda n: 1.0).stages[0].graph
    gather, scatter = ("all_gather", ACTIVATION), ("reduce_scatter", ACTIVATION)
    # The tokens that the last layer leaves are gathered once.
    assert forward == Counter({gather: 2 * LAYERS + 1, scatter: 2 * LAYERS})
    assert backward == Counter({gather: 2 * LAYERS, scatter: 2 * LAYERS})
    of_layers, _ = sent(graph, "forward")
    of_layers_back, _ = sent(graph, "backward")
    entries = 2 - ("entry" in PARALLEL.get(name, ()))
    exits = 2 - ("exit" in PARALLEL.get(name, ()))
    assert of_layers == Counter({gather: entries * LAYERS, scatter: exits * LAYERS})
    activations = Counter({k: n for k, n in of_layers_back.items() if k[0] != "all_reduce"})
    # What entered is gathered again for the weights' gradients, as in Megatron-LM: a rank keeps its tokens.
    assert activations == Counter({gather: (exits + entries) * LAYERS, scatter: entries * LAYERS})
    # A row-parallel bias is added to a rank's own tokens, as in Megatron-LM, so that its gradient is a term
    # as those of the norms are; DTensor adds it to the products before they are scattered.
    plan = plan_of(name, module(name))
    layer = layers(module(name))[0]
    rows = [layer.get_submodule(p) for p, way in plan.items() if way == "rowwise"]
    biases = sum(getattr(row, "bias", None) is not None for row in rows)
    expected = gradients + Counter({("all_reduce", WIDTH * 4): biases * LAYERS})
    # Norms of heads have a weight that all heads share: the plan asks for its reduction too.
    heads_norms = list(plan.values()).count("replicated_with_grad_allreduce")
    assert buckets(graph) == expected + Counter({("all_reduce", HEAD * 4): heads_norms * LAYERS})
