"""The result of partitioning: which graph every rank runs."""

from __future__ import annotations

from dataclasses import dataclass

from graph_ir.graph import Graph


@dataclass(frozen=True, eq=False)
class Stage:
    """A pipeline stage: what each of its ranks runs."""

    graph: Graph
    """One rank's graph for one micro-batch: forward, backward, optimizer. Stages that do the same
    share one graph object."""
    label: str
    """What the stage holds, for people."""


@dataclass(frozen=True, eq=False)
class PartitionedGraph:
    """One rank's graph of every pipeline stage."""

    stages: tuple[Stage, ...]
    devices: int
    """Number of devices in the mesh."""
    stage_stride: int
    """Distance in ranks between neighbouring stages, which tells the link between them."""
    bounds: tuple[int, ...] = ()
    """Where a pipeline was cut: the first forward step of each stage (a repeated layer is one), and the
    number of steps."""
