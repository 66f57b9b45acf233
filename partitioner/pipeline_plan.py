"""How a pipeline is to be cut."""

from __future__ import annotations

from dataclasses import dataclass

BALANCES = ("time", "memory", "fit")


@dataclass(frozen=True)
class PipelinePlan:
    """What is asked of the cut, and what the schedule makes of it."""

    layout: tuple[tuple[int, ...], ...] = ()
    """Which stages, in model order, each rank along the pipeline holds; empty for one each."""
    layers: tuple[int, ...] = ()
    """Repeated layers of each stage; empty to balance."""
    balance: str = "time"
    """What the worst stage has least of: time, memory, or (fit) time as far as memory allows."""
    in_flight: tuple[float, ...] = ()
    """Micro-batches whose activations each stage keeps at a time; empty for one."""
    capacity_bytes: float | None = None
    """Memory of a device, for `fit`."""
    bounds: tuple[int, ...] = ()
    """The cut itself, where an earlier one is to be taken over: `PartitionedGraph.bounds`."""
