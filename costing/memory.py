"""Memory of one rank at its peak, from the lifetimes of its values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from costing.allocator import POOLS, block, reserved_bytes
from costing.lifetimes import CHANGING, Life, Lifetimes
from graph_ir.graph import Graph, Value

KINDS = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "kv_cache",
    "workspace",
    "communication",
)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on one device at its peak."""

    by_kind_bytes: dict[str, int]
    """For each of `KINDS`. Activations: what the forward pass made and something still needs;
    communication: weights gathered for use, and the buffers of their messages; workspace: what else is
    alive at the peak (gradients of activations and, before they are reduced, of weights)."""
    saved_bytes: int
    """Activations that one micro-batch keeps from its forward to its backward pass."""
    lines_bytes: Mapping[str, tuple[float, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Of each kind that changes, what there is of one micro-batch at each node of the folded graph: in a
    forward block at the last repetition, in a backward block at the first."""
    rounding_bytes: int = 0
    """What an allocator that cuts blocks from segments takes beyond the tensors' own bytes."""
    overhead_bytes: Mapping[str, int] = field(default_factory=dict)
    """What no tensor takes, for each of `costing.runtime.OVERHEADS`; empty where nothing is known of it."""

    @property
    def peak_bytes(self) -> int:
        """Of the tensors: sum over the kinds."""
        return sum(self.by_kind_bytes.values())

    @property
    def total_bytes(self) -> int:
        """What has to fit the device: tensors and overhead."""
        return self.peak_bytes + sum(self.overhead_bytes.values())


def stage_memory(parts: Sequence[MemoryUse], held_bytes: float) -> MemoryUse:
    """The peak of a rank where several micro-batches wait for their backward pass.

    Args:
        parts: what one micro-batch needs in each part of the model that the rank holds.
        held_bytes: what micro-batches between their passes keep when that is most, the one that is on
            its way included.
    """
    kinds = {kind: sum(use.by_kind_bytes[kind] for use in parts) for kind in KINDS}
    # One micro-batch is on its way, in the part where that takes most; the others only wait.
    passing = max(parts, key=_passing_bytes)
    for kind in CHANGING:
        kinds[kind] = passing.by_kind_bytes[kind]
    kinds["activations"] += max(round(held_bytes) - passing.saved_bytes, 0)
    return replace(passing, by_kind_bytes=kinds, saved_bytes=sum(use.saved_bytes for use in parts))


def _passing_bytes(use: MemoryUse) -> int:
    return sum(use.by_kind_bytes[kind] for kind in CHANGING)


def memory_use(graph: Graph, inner: Iterable[Value] = frozenset()) -> MemoryUse:
    """Finds the peak of one rank while it works on one micro-batch.

    Args:
        graph: one rank's graph of one micro-batch, folded or not.
        inner: values that never reach main memory (inside a fused kernel).
    """
    times = Lifetimes(graph, inner)
    kinds = dict.fromkeys(KINDS, 0)
    kept, resident = _resident(times)
    for value, kind in kept.items():
        kinds[kind] += value.type.bytes * value.count
    lives = times.lives(resident)
    if not graph.nodes:
        return MemoryUse(kinds, 0)
    saved = sum(
        life.bytes * life.copies
        for life in lives
        if life.kind == "activations" and life.start < times.first_backward <= life.end
    )
    lives += times.messages(lives)
    lines = dict.fromkeys(CHANGING, np.zeros(len(graph.nodes))) | times.lines(lives)
    peak = int(np.argmax(sum(lines.values())))
    kinds |= {kind: round(float(line[peak])) for kind, line in lines.items()}
    points = {kind: tuple(line.tolist()) for kind, line in lines.items()}
    reserved = _reserved_bytes(times, kept, lives)
    return MemoryUse(kinds, saved, points, max(reserved - sum(kinds.values()), 0))


def _reserved_bytes(times: Lifetimes, kept: Iterable[Value], lives: Iterable[Life]) -> int:
    """What an allocator that cuts blocks from segments takes from the device."""
    peaks = dict.fromkeys(POOLS, 0)
    for value in kept:
        pool, size = block(value.type.bytes)
        peaks[pool] += size * value.count
    pools = []
    for life in lives:
        pool, size = block(life.bytes)
        pools.append(replace(life, kind=pool, bytes=size))
    for pool, line in times.lines(pools).items():
        peaks[pool] += round(float(line.max()))
    return reserved_bytes(peaks)


def _resident(times: Lifetimes) -> tuple[dict[Value, str], set[Value]]:
    """Storage that lives through the whole step, by kind; and that with all that takes its place."""
    kept: dict[Value, str] = {}
    replaced: set[Value] = set()
    for value in times.graph.inputs:
        if value.role == "kv_cache":
            kept.setdefault(times.root(value), "kv_cache")
        elif value.kind in ("parameter", "buffer", "constant"):
            kept.setdefault(times.root(value), "parameters")
        elif value.kind == "state":
            kept.setdefault(times.root(value), "optimizer")
    for node in times.graph.nodes:
        if node.phase == "optimizer" and node.definition.kind == "optimizer":
            # Gradients are allocated once and summed over micro-batches.
            kept.setdefault(times.root(_accumulated(times.graph, node.inputs[1])), "gradients")
            replaced.add(times.root(node.inputs[1]))
            replaced.update(times.root(value) for value in node.outputs)
        for value in node.outputs:
            if value.role == "kv_cache":
                kept.setdefault(times.root(value), "kv_cache")
    return kept, replaced | kept.keys()


def _accumulated(graph: Graph, gradient: Value) -> Value:
    """The tensor that micro-batches add to: whole where it is only scattered for the update."""
    producer = graph.producers.get(gradient)
    if producer is None or not producer.attrs.get("after_accumulation"):
        return gradient
    return producer.inputs[producer.outputs.index(gradient)]
