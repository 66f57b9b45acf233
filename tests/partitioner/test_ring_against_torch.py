"""What a ring sends, against PyTorch's own ring attention on a fake process group.

`torch.distributed.tensor.experimental` splits attention itself: its loop over the blocks runs here as it is,
with its kernels on the meta device, since they exist on GPUs alone. Which messages it sends and how large
they are is its own code's doing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")
attention = pytest.importorskip(
    "torch.distributed.tensor.experimental._context_parallel._attention",
    reason="this PyTorch keeps its context parallelism elsewhere",
)

import torch.distributed as dist  # noqa: E402
from dtensor_oracle import RecordCollectives  # noqa: E402
from small_models import BATCH, TOKENS, model  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from graph_ir.training import training_graph  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

HEADS, KEY_HEADS, HEAD_DIM, LAYERS = 8, 4, 4, 3
Sent = Counter[tuple[str, int]]


@contextmanager
def fake_ranks(count: int, method: str) -> Iterator[Any]:
    options = attention._cp_options
    before = options.rotate_method, options.enable_load_balance
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        attention.set_rotate_method(method)
        options.enable_load_balance = True
        yield dist.group.WORLD
    finally:
        options.rotate_method, options.enable_load_balance = before
        dist.destroy_process_group()


def of_torch(cp: int, method: str) -> tuple[Sent, Sent]:
    """What PyTorch's ring sends forward and backward for one layer: (kind, bytes of the message)."""
    aten = torch.ops.aten

    def tokens(heads: int) -> Any:
        return torch.zeros(BATCH, heads, TOKENS // cp, HEAD_DIM, device="meta")

    with fake_ranks(cp, method) as group:
        q, k, v = tokens(HEADS), tokens(KEY_HEADS), tokens(KEY_HEADS)
        kernel = aten._scaled_dot_product_flash_attention.default
        with RecordCollectives(cp) as forward:
            out, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = (
                attention._templated_ring_attention(group, 2, kernel, q, k, v, is_causal=True)
            )
        rest = {"cum_seq_q": cum_q, "cum_seq_k": cum_k, "max_q": max_q, "max_k": max_k}
        rest |= {"philox_seed": seed, "philox_offset": offset, "dropout_p": 0.0}
        kernel = aten._scaled_dot_product_flash_attention_backward.default
        with RecordCollectives(cp) as backward:
            attention._templated_ring_attention_backward(
                group, 2, kernel, out, "grad_out", q, k, v, out, lse, is_causal=True, **rest
            )
    return forward.seen, backward.seen


def of_opbound(cp: int, way: str) -> tuple[Sent, Sent]:
    """The same of one layer of the partitioned graph."""
    graph = training_graph(model("separate"))
    strategy = Strategy(Mesh({"cp": cp}), context_parallel=way)
    (stage,) = partition(graph, strategy, lambda n: 1.0).stages
    found: tuple[Sent, Sent] = (Counter(), Counter())
    for node in stage.graph.nodes:
        # Gradients of weights are all-reduced besides, which is no matter of attention.
        if node.definition.kind != "collective" or node.op == "all_reduce" or node.count != LAYERS:
            continue
        whole = node.outputs if node.op == "all_gather" else node.inputs
        size = sum(v.type.bytes for v in whole)
        found[node.during == "backward"][node.op, size] += 1
    return found


def local_bytes(cp: int) -> int:
    """A rank's keys and values."""
    return 2 * BATCH * KEY_HEADS * TOKENS // cp * HEAD_DIM * 4


@pytest.mark.parametrize("cp", [2, 4, 8])
def test_a_ring_sends_what_pytorchs_ring_sends(cp: int) -> None:
    # PyTorch rotates a buffer of keys and values with an all-to-all in which each rank sends to one other.
    ours = [
        Counter({("all_to_all", size): n for (_, size), n in sent.items()})
        for sent in of_opbound(cp, "ring")
    ]
    theirs = of_torch(cp, "alltoall")
    assert ours[0] == theirs[0] == {("all_to_all", local_bytes(cp)): cp - 1}
    assert ours[1] == theirs[1] == {("all_to_all", local_bytes(cp)): 2 * cp - 1}


@pytest.mark.parametrize("cp", [2, 4, 8])
def test_gathered_keys_are_as_many_bytes(cp: int) -> None:
    """PyTorch gathers keys and values as one, here they are two; its gradients go round a ring all the same.

    Here gradients are reduce-scattered, which sends (cp - 1) / cp of them where the ring sends all cp times a
    cp-th, the last hop home included.
    """
    ours, theirs = of_opbound(cp, "allgather"), of_torch(cp, "allgather")
    whole = local_bytes(cp) * cp
    assert theirs[0] == {("all_gather", whole): 1}
    assert ours[0] == {("all_gather", whole // 2): 2}
    assert theirs[1] == {("all_gather", whole): 1, ("all_to_all", whole // cp): cp}
    assert ours[1] == {("all_gather", whole // 2): 2, ("reduce_scatter", whole // 2): 2}
