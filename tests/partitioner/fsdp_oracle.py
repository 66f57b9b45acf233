"""What PyTorch's FSDP2 stores and sends when it trains a module on a fake process group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

# c10d's operators: kind, and which argument is the whole message.
_KINDS = {
    "_allgather_base_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "allreduce_": ("all_reduce", 0),
}


class Messages(TorchDispatchMode):
    """Records (kind, elements of the whole message) of every collective."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        space, name, *_ = str(func).split(".")
        if space == "c10d" and name not in _KINDS:
            raise NotImplementedError(f"{func} is not counted")
        if space == "c10d":
            kind, which = _KINDS[name]
            message = args[which]
            tensors = [message] if isinstance(message, torch.Tensor) else message
            self.seen[kind, sum(t.numel() for t in tensors)] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Stored:
    """Elements on one rank, of every parameter by its name."""

    parameters: Mapping[str, int]
    gradients: Mapping[str, int]
    states: Mapping[str, int]


@contextmanager
def fake_ranks(*sizes: int) -> Iterator[DeviceMesh]:
    """A device mesh of ranks that are not there; this process is the first."""
    world = 1
    for size in sizes:
        world *= size
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        names = ("replicate", "shard")[-len(sizes) :]
        yield init_device_mesh("cpu", sizes, mesh_dim_names=names)
    finally:
        dist.destroy_process_group()


def train_step(
    module: nn.Module,
    units: Sequence[nn.Module],
    inputs: Sequence[torch.Tensor],
    *sizes: int,
) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int]], Stored]:
    """One step of AdamW under FSDP2.

    Args:
        module: real parameters on the CPU; is changed.
        units: modules that are gathered each by itself; what is left is the root's.
        inputs: what one rank works on.
        sizes: ranks that shard; or groups that replicate, and ranks that shard.

    Returns:
        What forward and backward sent, and what the first rank holds.
    """
    with fake_ranks(*sizes) as mesh:
        for unit in units:
            fully_shard(unit, mesh=mesh)
        fully_shard(module, mesh=mesh)
        optimizer = torch.optim.AdamW(module.parameters())
        with Messages() as forward:
            loss = module(*inputs)
        with Messages() as backward:
            loss.backward()
        optimizer.step()
        named = dict(module.named_parameters())
        moments = {
            n: sum(local(t) for t in optimizer.state[p].values() if t.dim())
            for n, p in named.items()
        }
        gradients = {n: local(p.grad) for n, p in named.items() if p.grad is not None}
        return (
            forward.seen,
            backward.seen,
            Stored({n: local(p) for n, p in named.items()}, gradients, moments),
        )


def local(tensor: torch.Tensor) -> int:
    """Elements of a tensor on this rank."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()
