"""What a framework and its libraries take of a device's memory, beside the tensors of a model.

Its figures are in `runtimes.yaml`, or in the section `runtime` of a device's own file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from costing.fabric import spans
from graph_ir.graph import Graph, Node

if TYPE_CHECKING:
    from costing.hardware import Hardware

OVERHEADS = ("context", "libraries", "communicators", "allocator")
"""Kinds of memory that no tensor of the model takes."""

_PAIRWISE = ("send", "recv", "collective_permute", "all_to_all")


@dataclass(frozen=True)
class Runtime:
    """A framework's own memory on one device."""

    name: str
    context_bytes: float
    """Driver's context and kernels."""
    product_workspace_bytes: float = 0.0
    """The library's, for each thread that issues matrix products: the backward pass has its own."""
    connection_bytes: float = 0.0
    """Buffers of one channel to one neighbour of a ring or a tree."""
    pair_connection_bytes: float = 0.0
    """The same, both ways, to a peer that messages are sent to directly."""
    channels: Mapping[str, int] = field(default_factory=dict)
    """By kind of link: parallel rings of a communicator."""
    pair_channels: int = 0
    """Parallel connections to a peer on the innermost link."""
    caches: bool = False
    """Whether tensors come from PyTorch's caching allocator."""
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For each key path, where its number comes from."""


def overhead_bytes(
    hardware: Hardware, graphs: Iterable[Graph], rounding_bytes: int
) -> dict[str, int]:
    """For each of `OVERHEADS`, bytes on a rank that runs some graphs; empty where nothing is known.

    Args:
        hardware: the device and its links.
        graphs: what the rank runs.
        rounding_bytes: what a caching allocator adds to the tensors (`MemoryUse.rounding_bytes`).
    """
    runtime = hardware.runtime
    if runtime is None:
        return {}
    nodes = [node for graph in graphs for node in graph.nodes]
    threads = len({node.during == "forward" for node in nodes if node.phase != "communication"})
    return {
        "context": round(runtime.context_bytes),
        "libraries": round(runtime.product_workspace_bytes * threads),
        "communicators": round(_communicators_bytes(hardware, runtime, nodes)),
        "allocator": rounding_bytes if runtime.caches else 0,
    }


def _communicators_bytes(hardware: Hardware, runtime: Runtime, nodes: Iterable[Node]) -> float:
    """Buffers of all groups that a rank communicates in; each group has its own.

    A ring has one neighbour to receive from, a tree two at most. Peers that are reached over a network
    share one buffer (github.com/NVIDIA/nccl/issues/1450).
    """
    groups: dict[tuple[int, int], set[bool]] = {}
    for node in nodes:
        if node.phase == "communication" and node.attrs["group_size"] > 1:
            group = (node.attrs["group_size"], node.attrs["group_stride"])
            groups.setdefault(group, set()).add(node.op in _PAIRWISE)
    total = 0.0
    for (size, stride), ways in groups.items():
        levels = spans(hardware, size, stride)
        channels = runtime.channels.get(levels[0].link.kind, 1)
        if False in ways:
            total += channels * min(size, 3) * runtime.connection_bytes
        if True in ways:
            near = levels[0].link is hardware.links[0]
            peers = levels[0].peers - 1 if near else 0
            total += peers * runtime.pair_channels * runtime.pair_connection_bytes
            total += runtime.connection_bytes * (peers < size - 1)
    return total
