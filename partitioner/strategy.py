"""What the user asks for: a mesh, and how to use it."""

from __future__ import annotations

from dataclasses import dataclass, field

from graph_ir.errors import MeshError, OpboundError
from partitioner.mesh import Mesh


@dataclass(frozen=True)
class Strategy:
    """A parallelism strategy."""

    mesh: Mesh = field(default_factory=lambda: Mesh({}))
    sequence_parallel: bool = False
    """Split the sequence over the tensor-parallel group where nothing else is split."""
    zero: int = 0
    """0: replicate; 1: split optimizer states; 2: and gradients; 3: and parameters (FSDP)."""
    expert_imbalance: float = 1.0
    """Tokens of the rank whose experts get most, over the mean of all ranks."""
    layout: tuple[tuple[int, ...], ...] = ()
    """Which stages, in model order, each rank along the pipeline holds; empty for one each."""

    def __post_init__(self) -> None:
        if self.zero not in (0, 1, 2, 3):
            raise OpboundError(f"--zero is {self.zero}; choose 0, 1, 2 or 3")
        if self.zero and self.mesh.axis("dp").size == 1:
            raise MeshError(
                f"--zero {self.zero} splits over the data-parallel group, but dp is 1; "
                "add dp=N to --parallel"
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
