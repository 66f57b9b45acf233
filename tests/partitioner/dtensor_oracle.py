"""What PyTorch's DTensor communicates when it runs a module on a fake process group.

DTensor propagates placements operator by operator while the program runs; nothing of opbound takes part
but the placements of the parameters, so that both sides split the same weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}


class RecordCollectives(TorchDispatchMode):
    """Records (kind, bytes of the whole message) of every functional collective."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world = world
        self.seen: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(t is DTensor for t in types):
            return NotImplemented
        name = str(func).split(".")
        if name[0] == "_c10d_functional" and name[1] in KINDS:
            kind = KINDS[name[1]]
            size = args[0].numel() * args[0].element_size()
            self.seen[kind, size * self.world if kind == "all_gather" else size] += 1
        return func(*args, **(kwargs or {}))


def _bring_to(mesh: DeviceMesh, layout: Placement) -> Any:
    return lambda module, operands, result: result.redistribute(mesh, [layout])


def dtensor_collectives(
    module: torch.nn.Module,
    inputs: torch.Tensor,
    splits: Mapping[str, int | None],
    world: int,
    *,
    plan: Mapping[str, Placement] | None = None,
    split_dim: int | None = None,
) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int]]]:
    """Runs the module with its parameters split, and returns what forward and backward sent.

    Args:
        module: real parameters on the CPU.
        inputs: the module's one operand.
        splits: parameter name -> dim that is split, or None.
        world: number of ranks.
        plan: suffix of a submodule's name -> placement that its result is brought to, as the layouts
            of `torch.distributed.tensor.parallel` styles say it. Its gradient is brought back likewise.
        split_dim: dim of the operand and the result that is split.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        mesh = init_device_mesh("cpu", (world,))
        for name, parameter in list(module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            dim = splits[name]
            placement = [Replicate() if dim is None else Shard(dim)]
            split = torch.nn.Parameter(distribute_tensor(parameter.data, mesh, placement))
            setattr(module.get_submodule(owner), leaf, split)
        for name, buffer in list(module.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            setattr(
                module.get_submodule(owner), leaf, distribute_tensor(buffer, mesh, [Replicate()])
            )
        for suffix, layout in (plan or {}).items():
            for name, child in module.named_modules():
                if name.endswith(suffix):
                    child.register_forward_hook(_bring_to(mesh, layout))
        placement = [Replicate() if split_dim is None else Shard(split_dim)]
        operand = distribute_tensor(inputs, mesh, placement)
        with RecordCollectives(world) as forward:
            result = module(operand)
            result = result.redistribute(mesh, placement)
        with RecordCollectives(world) as backward:
            result.backward(distribute_tensor(torch.ones(result.shape), mesh, placement))
            for parameter in module.parameters():
                assert isinstance(parameter.grad, DTensor)
                parameter.grad.redistribute(mesh, parameter.data.placements).to_local()
        return forward.seen, backward.seen
    finally:
        dist.destroy_process_group()
