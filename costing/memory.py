"""Memory of one rank at its peak, from a walk over the graph's nodes.

A value lives from the node that produces it to the last node that reads it. In a folded block that
means: one copy while its own repetition runs, but one copy per repetition if the backward pass
reads it, because all forward repetitions run before the first backward one. What a reader would get
wrong: a view, an in-place update and a carried value have no memory of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from graph_ir.graph import Block, Graph, Node, Value

Array = NDArray[np.float64]

KINDS = ("parameters", "gradients", "optimizer", "activations", "kv_cache", "workspace")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on one device at its peak."""

    by_kind_bytes: dict[str, int]
    """For each of `KINDS`. Activations: what the forward pass made and something still needs;
    workspace: what else is alive at the peak (gradients of activations, gathered weights)."""
    saved_bytes: int
    """Activations that one micro-batch keeps from its forward to its backward pass."""
    activations_bytes: tuple[float, ...] = field(default=(), repr=False, compare=False)
    """What one micro-batch's forward pass made and still needs, at each node of the folded graph: in a
    forward block at the last repetition, in a backward block at the first."""
    workspace_bytes: tuple[float, ...] = field(default=(), repr=False, compare=False)
    """What else is alive at each node."""

    @property
    def peak_bytes(self) -> int:
        """Sum over the kinds."""
        return sum(self.by_kind_bytes.values())


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
    kinds["activations"] = passing.by_kind_bytes["activations"]
    kinds["activations"] += max(round(held_bytes) - passing.saved_bytes, 0)
    kinds["workspace"] = passing.by_kind_bytes["workspace"]
    return replace(passing, by_kind_bytes=kinds, saved_bytes=sum(use.saved_bytes for use in parts))


def _passing_bytes(use: MemoryUse) -> int:
    return use.by_kind_bytes["activations"] + use.by_kind_bytes["workspace"]


def memory_use(graph: Graph, inner: Iterable[Value] = frozenset()) -> MemoryUse:
    """Finds the peak of one rank while it works on one micro-batch.

    Args:
        graph: one rank's graph of one micro-batch, folded or not.
        inner: values that never reach main memory (inside a fused kernel).
    """
    walk = _Walk(graph, frozenset(inner))
    kinds = dict.fromkeys(KINDS, 0)
    resident = walk.resident(kinds)
    saved, profile, forward_made = walk.profile(resident)
    if not graph.nodes:
        return MemoryUse(kinds, 0)
    peak = int(np.argmax(profile))
    kinds["activations"] = round(float(forward_made[peak]))
    kinds["workspace"] = round(float(profile[peak] - forward_made[peak]))
    return MemoryUse(
        kinds, saved, tuple(forward_made.tolist()), tuple((profile - forward_made).tolist())
    )


def backward_start(graph: Graph) -> int:
    """Index of the first node of the backward pass; past the end if there is none."""
    for i, node in enumerate(graph.nodes):
        if node.during in ("backward", "recompute"):
            return i
    return len(graph.nodes)


class _Walk:
    def __init__(self, graph: Graph, inner: frozenset[Value]) -> None:
        self.graph = graph
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.block_at: list[Block | None] = [None] * len(graph.nodes)
        for block in graph.blocks:
            for i in range(block.start, block.stop):
                self.block_at[i] = block
        self.root: dict[Value, Value] = {}
        for value in graph.inputs:
            self.root[value] = value
        for block in graph.blocks:
            for carry in block.carries:
                # The argument of repetition i is the result of repetition i - 1.
                self.root[carry.argument] = carry.result
        for node in graph.nodes:
            shared = storage_of(node)
            for i, value in enumerate(node.outputs):
                self.root[value] = value
                if shared is not None and (i == 0 or node.definition.is_view(node)):
                    self.root[value] = self._find(shared)
        self.collected = {v for block in graph.blocks for v in block.collected}
        # Storage that a kernel's result shares (a bias added in place) is no inner storage.
        reached = {self._find(v) for n in graph.nodes for v in n.outputs if v not in inner}
        self.inner = {self._find(v) for v in inner} - reached

    def _find(self, value: Value) -> Value:
        while True:
            above = self.root.get(value, value)
            if above is value:
                return value
            value = above

    def resident(self, kinds: dict[str, int]) -> set[Value]:
        """Adds up what lives through the whole step, and returns those values' storage."""
        resident: set[Value] = set()

        def keep(value: Value, kind: str) -> None:
            root = self._find(value)
            if root not in resident:
                resident.add(root)
                kinds[kind] += root.type.bytes * root.count

        for value in self.graph.inputs:
            if value.role == "kv_cache":
                keep(value, "kv_cache")
            elif value.kind in ("parameter", "buffer", "constant"):
                keep(value, "parameters")
            elif value.kind == "state":
                keep(value, "optimizer")
        for node in self.graph.nodes:
            if node.phase == "optimizer" and node.definition.kind == "optimizer":
                # Gradients are allocated once and summed over micro-batches.
                keep(self._accumulated(node.inputs[1]), "gradients")
                resident.add(self._find(node.inputs[1]))
                for value in node.outputs:
                    resident.add(self._find(value))
            for value in node.outputs:
                if value.role == "kv_cache":
                    keep(value, "kv_cache")
        return resident

    def _accumulated(self, gradient: Value) -> Value:
        """The tensor that micro-batches add to: whole where it is only scattered for the update."""
        producer = self.graph.producers.get(gradient)
        if producer is None or not producer.attrs.get("after_accumulation"):
            return gradient
        return producer.inputs[producer.outputs.index(gradient)]

    def profile(self, resident: set[Value]) -> tuple[int, Array, Array]:
        """(bytes saved for the backward pass, bytes alive at each node, of them forward's)."""
        made: dict[Value, int] = {}
        uses: dict[Value, list[int]] = defaultdict(list)
        carried: dict[Value, list[int]] = defaultdict(list)
        first_reads: dict[Value, list[int]] = defaultdict(list)
        initial = {c.argument: self._find(c.initial) for b in self.graph.blocks for c in b.carries}
        for i, node in enumerate(self.graph.nodes):
            for value in node.outputs:
                made.setdefault(self._find(value), i)
            for value in dict.fromkeys(node.inputs):
                (carried if value.kind == "carried" else uses)[self._find(value)].append(i)
                if value in initial:
                    # The first repetition reads what was there before the block.
                    first_reads[initial[value]].append(i)
        for value in self.graph.outputs:
            uses[self._find(value)].append(len(self.graph.nodes) - 1)
        for block in self.graph.blocks:
            for carry in block.carries:
                first_reads[initial[carry.argument]].append(block.start)
        ends = max(len(self.graph.nodes), 1) + 1
        alive = np.zeros(ends)
        forward = np.zeros(ends)
        saved = 0
        first_backward = backward_start(self.graph)
        for value in {**dict.fromkeys(self.graph.inputs), **made}:
            root = self._find(value)
            if root is not value or root in resident or root in self.inner:
                continue
            if root.type.bytes == 0:
                continue
            start = made.get(root, 0)
            reads = uses.get(root, [])
            rereads = carried.get(root, [])
            copies = self._kept_copies(root, start, [*reads, *rereads])
            end = max([start, *reads, *rereads, *first_reads.get(root, [])])
            self._add(alive, root, start, end, copies)
            if root not in made or start < first_backward:
                self._add(forward, root, start, end, copies)
                if start < first_backward <= end:
                    saved += root.type.bytes * copies
        return saved, np.cumsum(alive)[:-1], np.cumsum(forward)[:-1]

    def _kept_copies(self, root: Value, start: int, reads: list[int]) -> int:
        """Copies that outlive their repetition: all of them if another block reads them."""
        block = self.block_at[start] if root.count > 1 else None
        if block is None:
            return root.count
        if root in self.collected:
            return block.count
        others = {self.block_at[i] for i in reads} - {block, None}
        return block.count if any(o is not None and o.count == block.count for o in others) else 1

    def _add(self, line: Array, root: Value, start: int, end: int, copies: int) -> None:
        """Adds a value's bytes to the profile of one pass over the folded nodes."""
        size = root.type.bytes
        home = self.block_at[start] if root.count > 1 else None
        if home is None or copies == 1:
            line[start] += size * copies
            line[end + 1] -= size * copies
            return
        # The pass shows the last repetition of a forward block: the others' copies are there.
        line[home.start] += size * (copies - 1)
        line[start] += size
        away = self.block_at[end]
        if away is None or away is home or away.count != home.count:
            line[end + 1] -= size * copies
            return
        # And the first repetition of a backward block: it frees its copy, the others stay.
        line[end + 1] -= size
        line[away.stop] -= size * (copies - 1)


def storage_of(node: Node) -> Value | None:
    """The operand whose memory the node's result shares, if any."""
    definition = node.definition
    if definition.is_view(node) and definition.view_of is not None:
        return node.inputs[definition.view_of]
    if definition.in_place is not None:
        return node.inputs[definition.in_place]
    if node.attrs.get("epilogue"):
        # A bias is added while the product is still in registers.
        return node.inputs[0]
    return None
