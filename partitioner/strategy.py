"""What the user asks for: a mesh, and how to use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from graph_ir.errors import MeshError, OpboundError, did_you_mean
from graph_ir.graph import Node
from partitioner.mesh import Mesh
from partitioner.pipeline_plan import PipelinePlan

TENSOR_GRIDS = ("summa", "stationary")


@dataclass(frozen=True)
class Prices:
    """What a search weighs. The caller knows the hardware; the partitioner does not."""

    node_time: Callable[[Node], float]
    """Seconds of one application of a node, collectives included."""
    gradients: float = 1.0
    """Share of a gradient's reduction and of an update that counts: 1 / micro-batches."""
    capacity_bytes: float | None = None
    """Bytes of weights and optimizer states that a device may store; None: any."""


@dataclass(frozen=True)
class Strategy:
    """A parallelism strategy."""

    mesh: Mesh = field(default_factory=lambda: Mesh({}))
    sequence_parallel: bool = False
    """Split the sequence over the tensor-parallel group where nothing else is split."""
    zero: int = 0
    """0: replicate; 1: split optimizer states; 2: and gradients; 3: and parameters (FSDP)."""
    shard_group: int = 0
    """With ZeRO: ranks that what is stored is split over, while other groups of as many hold copies
    (hybrid sharding); 0: all ranks that see other data."""
    prefetch: bool = True
    """With ZeRO-3: weights are gathered while the block before works, not when they are needed."""
    context_parallel: str = ""
    """How attention runs where tokens are split: ulysses, allgather, ring or ulysses:N+ring; empty:
    ulysses where the heads divide, else allgather."""
    async_tp: bool = False
    """With sequence parallelism: gathers and scatters of tokens in pieces, beside the products."""
    tensor_grid: str = ""
    """How tensor parallelism uses rows (`tp_rows`): summa (samples are split, weights gathered) or
    stationary (weights stay, activations are reduced); empty: summa in training, else stationary."""
    expert_imbalance: float = 1.0
    """Tokens of the rank whose experts get most, over the mean of all ranks."""
    pipeline: PipelinePlan = field(default_factory=PipelinePlan)
    prices: Prices | None = None
    """For the axis `auto`, whose split is searched: what things cost; None: as the pipeline is balanced."""

    def __post_init__(self) -> None:
        if self.zero not in (0, 1, 2, 3):
            raise OpboundError(f"--zero is {self.zero}; choose 0, 1, 2 or 3")
        data = ("dp", "cp", "ep", "tp_depth")
        if self.zero and all(self.mesh.axis(name).size == 1 for name in data):
            raise MeshError(
                f"--zero {self.zero} splits over the data-parallel group, but dp is 1; "
                "add dp=N to --parallel"
            )
        if self.async_tp and not self.sequence_parallel:
            raise OpboundError(
                "--async-tp takes the gathers of sequence parallelism apart; add --sequence-parallel"
            )
        if self.shard_group and not self.zero:
            raise OpboundError(
                f"--shard-group {self.shard_group} says over how many ranks --zero splits; add --zero 3"
            )
        if self.context_parallel and self.mesh.axis("cp").size == 1:
            raise MeshError(
                f"--context-parallel {self.context_parallel} says how tokens are split over the "
                "context-parallel group, but cp is 1; add cp=N to --parallel"
            )
        rows = self.mesh.axis("tp_rows").size
        if self.tensor_grid not in ("", *TENSOR_GRIDS):
            raise OpboundError(
                f"--tensor-grid {self.tensor_grid!r}: {did_you_mean(self.tensor_grid, TENSOR_GRIDS)}"
            )
        if rows > 1 and self.mesh.axis("auto").size > 1:
            raise MeshError(
                f"auto={self.mesh.axis('auto').size} searches a split of its own, which rows of tensor "
                "parallelism do not follow; leave auto or the rows out"
            )
        if self.tensor_grid and rows == 1:
            raise MeshError(
                f"--tensor-grid {self.tensor_grid} says how tensor parallelism uses its rows, but there is "
                "one; write tp=ROWSxCOLUMNS in --parallel"
            )
        if self.sequence_parallel and rows > 1 and self.tensor_grid != "stationary":
            raise MeshError(
                f"--sequence-parallel splits what tensor parallelism in one dim leaves whole, but "
                f"tp={rows}x{self.mesh.axis('tp').size} splits everything; leave it out, or add "
                "--tensor-grid stationary"
            )
        if self.sequence_parallel and self.mesh.axis("tp").size == 1:
            raise MeshError(
                "--sequence-parallel splits over the tensor-parallel group, but tp is 1; "
                "add tp=N to --parallel"
            )

    def __str__(self) -> str:
        parts = [str(self.mesh)]
        if self.sequence_parallel:
            parts.append("sequence parallel")
        if self.zero:
            parts.append(f"ZeRO-{self.zero}")
        return ", ".join(parts)
