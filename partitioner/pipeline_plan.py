"""How a pipeline is to be cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PipelinePlan:
    """What is asked of the cut, and what the schedule makes of it."""

    layout: tuple[tuple[int, ...], ...] = ()
    """Which stages, in model order, each rank along the pipeline holds; empty for one each."""
    layers: tuple[int, ...] = ()
    """Repeated layers of each stage; empty to balance."""
    slack: float = 1.0
    """1 balances time, 0 memory; between them the time of those cuts whose worst stage needs no more
    memory than that part of the way."""
    in_flight: tuple[float, ...] = ()
    """Micro-batches whose activations each stage keeps at a time; empty for one."""
    bounds: tuple[int, ...] = ()
    """The cut itself, where an earlier one is to be taken over: `PartitionedGraph.bounds`."""
