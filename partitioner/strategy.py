"""What the user asks for: a mesh, and how to use it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from graph_ir.errors import MeshError, OpboundError
from partitioner.mesh import Mesh

SCHEDULES = ("gpipe", "1f1b", "interleaved")


@dataclass(frozen=True)
class Strategy:
    """A parallelism strategy."""

    mesh: Mesh = field(default_factory=lambda: Mesh({}))
    sequence_parallel: bool = False
    """Split the sequence over the tensor-parallel group where nothing else is split."""
    zero: int = 0
    """0: replicate; 1: split optimizer states; 2: and gradients; 3: and parameters (FSDP)."""
    schedule: str = "1f1b"
    """Pipeline schedule: 'gpipe', '1f1b', 'interleaved:V'."""

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
        self.chunks_per_stage  # noqa: B018  (checks the schedule)

    @property
    def chunks_per_stage(self) -> int:
        """Model chunks that each pipeline stage holds: V of an interleaved schedule, else 1."""
        name, _, chunks = self.schedule.partition(":")
        if name not in SCHEDULES or bool(chunks) != (name == "interleaved"):
            raise OpboundError(
                f"unknown --schedule {self.schedule!r}; choose gpipe, 1f1b or interleaved:V"
            )
        if not chunks:
            return 1
        if not re.fullmatch(r"[1-9]\d*", chunks):
            raise OpboundError(f"--schedule {self.schedule!r}: V must be a positive number")
        return int(chunks)

    def __str__(self) -> str:
        parts = [str(self.mesh)]
        if self.sequence_parallel:
            parts.append("sequence parallel")
        if self.zero:
            parts.append(f"ZeRO-{self.zero}")
        if self.mesh.axis("pp").size > 1:
            parts.append(self.schedule)
        return ", ".join(parts)
