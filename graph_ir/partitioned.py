"""The result of partitioning: which graph every rank runs."""

from __future__ import annotations

from dataclasses import dataclass

from graph_ir.graph import Graph


@dataclass(frozen=True, eq=False)
class Chunk:
    """A run of the model that one pipeline stage holds."""

    graph: Graph
    """One rank's graph for one micro-batch: forward, backward, optimizer. Chunks that do the same share
    one graph object."""
    label: str
    """What the chunk holds, for people."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A pipeline stage: the chunks of its rank, in the order of the model."""

    index: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, eq=False)
class PartitionedGraph:
    """One rank's graphs, stage by stage."""

    stages: tuple[Stage, ...]
    devices: int
    """Number of devices in the mesh."""
    stage_stride: int
    """Distance in ranks between neighbouring stages, which tells the link between them."""
