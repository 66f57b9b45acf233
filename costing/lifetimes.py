"""From when to when a graph's values live, and what they take at each of its nodes.

A value lives from the node that produces it to the last node that reads it. In a folded block that
means: one copy while its own repetition runs, but one copy per repetition if the backward pass
reads it, because all forward repetitions run before the first backward one. What a reader would get
wrong: a view, an in-place update and a carried value have no memory of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from graph_ir.graph import Block, Graph, Node, Value
from graph_ir.ops.collective import message_bytes

Array = NDArray[np.float64]

CHANGING = ("activations", "workspace", "communication")
"""Kinds of memory that come and go during a step."""


@dataclass(frozen=True)
class Life:
    """One storage."""

    root: Value
    """The value that owns it."""
    start: int
    """Index of the node that makes it."""
    end: int
    """Index of the last node that reads it."""
    copies: int
    """How many of it there are when the forward pass is done."""
    kind: str
    """One of `CHANGING`."""
    bytes: int
    """Of one copy."""


class Lifetimes:
    """The lives of all storages of one rank's graph.

    Args:
        graph: one rank's graph of one micro-batch, folded or not.
        inner: values that never reach main memory (inside a fused kernel).
    """

    def __init__(self, graph: Graph, inner: Iterable[Value] = ()) -> None:
        self.graph = graph
        self.first_backward = backward_start(graph)
        self.block_at: list[Block | None] = [None] * len(graph.nodes)
        for block in graph.blocks:
            for i in range(block.start, block.stop):
                self.block_at[i] = block
        self.above: dict[Value, Value] = {}
        for block in graph.blocks:
            for carry in block.carries:
                # The argument of repetition i is the result of repetition i - 1.
                self.above[carry.argument] = carry.result
        for node in graph.nodes:
            shared = storage_of(node)
            for i, value in enumerate(node.outputs):
                if shared is not None and (i == 0 or node.definition.is_view(node)):
                    self.above[value] = self.root(shared)
        self.collected = {v for block in graph.blocks for v in block.collected}
        inner = frozenset(inner)
        # Storage that a kernel's result shares (a bias added in place) is no inner storage.
        reached = {self.root(v) for n in graph.nodes for v in n.outputs if v not in inner}
        self.inner = {self.root(v) for v in inner} - reached
        self.gathered = {
            v: n.outputs[0]
            for n in graph.nodes
            if n.op == "all_gather" and _of_weights(n)
            for v in n.outputs
        }
        """The weights that are gathered, and the first one of each one's message."""

    def root(self, value: Value) -> Value:
        """The value whose storage this one shares."""
        while True:
            above = self.above.get(value, value)
            if above is value:
                return value
            value = above

    def lives(self, resident: set[Value]) -> list[Life]:
        """All storages but the resident ones, which live through the whole step."""
        made: dict[Value, int] = {}
        uses: dict[Value, list[int]] = defaultdict(list)
        carried: dict[Value, list[int]] = defaultdict(list)
        first_reads: dict[Value, list[int]] = defaultdict(list)
        initial = {c.argument: self.root(c.initial) for b in self.graph.blocks for c in b.carries}
        for i, node in enumerate(self.graph.nodes):
            for value in node.outputs:
                made.setdefault(self.root(value), i)
            for value in dict.fromkeys(node.inputs):
                (carried if value.kind == "carried" else uses)[self.root(value)].append(i)
                if value in initial:
                    # The first repetition reads what was there before the block.
                    first_reads[initial[value]].append(i)
        for value in self.graph.outputs:
            uses[self.root(value)].append(len(self.graph.nodes) - 1)
        for block in self.graph.blocks:
            for carry in block.carries:
                first_reads[initial[carry.argument]].append(block.start)
        for value, first in self.gathered.items():
            # What is gathered together is freed together.
            uses[first] += [*uses[value], *carried[value]]
        for value, first in self.gathered.items():
            uses[value] = uses[first]
        found = []
        for value in {**dict.fromkeys(self.graph.inputs), **made}:
            root = self.root(value)
            if root is not value or root in resident or root in self.inner or not root.type.bytes:
                continue
            start = made.get(root, 0)
            direct, handed = uses.get(root, []), carried.get(root, [])
            kind, size = self._kind(root, start, root in made), root.type.bytes
            copies = self._kept_copies(root, start, [*direct, *handed])
            home = self.block_at[start]
            if home is not None and home.count == 1:
                handed = []
            elif home is not None and copies > 1 == self._kept_copies(root, start, direct):
                # Only what later repetitions were handed is kept: all but the last repetition's result.
                found.append(Life(root, home.start, max(handed), copies - 1, kind, size))
                copies, handed = 1, []
            end = max([start, *direct, *handed, *first_reads.get(root, [])])
            found.append(Life(root, start, end, copies, kind, size))
        return found

    def _kind(self, root: Value, start: int, made: bool) -> str:
        if root in self.gathered:
            return "communication"
        return "workspace" if made and start >= self.first_backward else "activations"

    def _kept_copies(self, root: Value, start: int, reads: list[int]) -> int:
        """Copies that outlive their repetition: all of them if another block reads them."""
        block = self.block_at[start] if root.count > 1 else None
        if block is None:
            return root.count
        if root in self.collected:
            return block.count
        others = {self.block_at[i] for i in reads} - {block, None}
        return block.count if any(o is not None and o.count == block.count for o in others) else 1

    def lines(self, lives: Iterable[Life]) -> dict[str, Array]:
        """For each kind, the bytes that are alive at each node.

        In a forward block as at its last repetition, in a backward block as at its first.
        """
        ends = max(len(self.graph.nodes), 1) + 1
        steps: dict[str, Array] = defaultdict(lambda: np.zeros(ends))
        for life in lives:
            self._add(steps[life.kind], life)
        return {kind: np.cumsum(step)[:-1] for kind, step in steps.items()}

    def _add(self, line: Array, life: Life) -> None:
        size, copies = life.bytes, life.copies
        home = self.block_at[life.start] if life.root.count > 1 else None
        if home is None or copies == 1:
            line[life.start] += size * copies
            line[life.end + 1] -= size * copies
            return
        # The pass shows the last repetition of a forward block: the others' copies are there.
        line[home.start] += size * (copies - 1)
        line[life.start] += size
        away = self.block_at[life.end]
        if away is None or away is home or away.count != home.count:
            line[life.end + 1] -= size * copies
            return
        # And the first repetition of a backward block: it frees its copy, the others stay.
        line[life.end + 1] -= size
        line[away.stop] -= size * (copies - 1)

    def messages(self, lives: Sequence[Life]) -> list[Life]:
        """The buffers through which weights are gathered and gradients scattered.

        The tensors of a message stand in one flat buffer of their own, which the next message's takes
        the place of: so two layers' weights are there at a time, the one that computes and the one that
        is being gathered (FSDP2: torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py).
        """
        found = []
        for op in ("all_gather", "reduce_scatter"):
            at = [i for i, n in enumerate(self.graph.nodes) if n.op == op and _of_weights(n)]
            for i, following in pairwise([*at, len(self.graph.nodes)]):
                node = self.graph.nodes[i]
                size, root = message_bytes(node), node.outputs[0]
                if op == "all_gather":
                    found.append(Life(root, i, following - 1, 1, "communication", size))
                    continue
                # Gradients are copied when the layer's weights are given back: the buffer takes their
                # place.
                last = min(following, len(self.graph.nodes) - 1)
                found.append(Life(root, min(i + 1, last), last, 1, "communication", size))
                block = self.block_at[i]
                if block is not None and following >= block.stop:
                    # From the second repetition on it is there from the start, when the one before
                    # has freed what it had saved.
                    more = max(size - self._freed_bytes(block, lives), 0)
                    found.append(Life(root, block.start, i, 1, "communication", more))
        return found

    def _freed_bytes(self, block: Block, lives: Sequence[Life]) -> int:
        """What one repetition of a backward block frees of what the forward pass saved."""
        freed = 0
        for life in lives:
            home, away = self.block_at[life.start], self.block_at[life.end]
            kept = life.copies > 1 and life.root.count > 1 and home is not block
            if kept and home is not None and away is block and home.count == block.count:
                freed += life.bytes
        return freed


def _of_weights(node: Node) -> bool:
    """Whether a message goes through a buffer: of stored parts of weights, or of their gradients.

    Where gradients are kept in one buffer over all micro-batches and updated weights in another (ZeRO-1,
    as Megatron-LM does it), messages are sent from there.
    """
    if node.op not in ("all_gather", "reduce_scatter") or node.attrs.get("after_accumulation"):
        return False
    parts = node.inputs if node.op == "all_gather" else node.outputs
    flat = all(v.shards and v.shards[-1].dim is None for v in parts)
    return flat and node.during != "optimizer"


def backward_start(graph: Graph) -> int:
    """Index of the first node of the backward pass; past the end if there is none."""
    for i, node in enumerate(graph.nodes):
        if node.during in ("backward", "recompute"):
            return i
    return len(graph.nodes)


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
