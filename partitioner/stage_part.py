"""What of a graph a pipeline stage holds, and what it wants from other stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from graph_ir.graph import Block, Carry, Node, Value
from partitioner.cells import Cells, Group
from partitioner.shared_weights import SharedWeight

Wanted = tuple[Value, str]
"""A value that a stage needs from another one, and the pass in which it needs it."""


@dataclass(frozen=True)
class Held:
    """How many repetitions of a group a stage holds, and whether the first and the last are among them."""

    count: int
    first: bool
    last: bool
    offset: int = field(compare=False)
    """Index of the first one that it holds."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """A weight that several ranks hold, and the group that sums up its gradient."""

    weight: SharedWeight
    group: dict[str, Any]


class StagePart:
    """A stage's part of a graph, equal for all stages that hold as many repetitions of the same groups.

    Args:
        cells: of the whole graph.
        held: which repetitions of which groups the stage holds.
        exchanges: of every weight that several ranks hold, by whether this stage takes part.
        elsewhere: weights that the same rank holds for another of its stages.
    """

    def __init__(
        self,
        cells: Cells,
        held: Mapping[Group, Held],
        exchanges: Iterable[tuple[Exchange, bool]],
        elsewhere: frozenset[Value],
    ) -> None:
        self.cells = cells
        self.graph = cells.graph
        self.held = held
        self.elsewhere = elsewhere
        every = list(exchanges)
        self.exchanges = [e for e, takes_part in every if takes_part]
        apart = {n for e, _ in every for n in (*e.weight.sums, *e.weight.tail)}
        self.summed = {t for e, _ in every for t in e.weight.terms}
        self.entries = {c.initial for b in self.graph.blocks for c in b.carries}
        self.kept = [n for n in self.graph.nodes if self._holds(n) and n not in apart]
        self.made = {v for n in self.kept for v in n.outputs}

    def _holds(self, node: Node) -> bool:
        """Whether a node, or repetitions of it, belong to the stage."""
        group = self.cells.group_of[node]
        held = self.held.get(group)
        if held is None:
            return False
        if group.count == 1 or node.count > 1 or node in self.graph.block_of:
            return True
        # Beside a repeated layer's backward pass: what it begins with, or what is made of its result.
        return held.last if self.entries.intersection(node.outputs) else held.first

    def _holds_end(self, node: Node) -> bool:
        """Whether the stage holds the repetition whose result is what the block leaves behind."""
        block = self.graph.block_of.get(node)
        if block is None:
            return True
        held = self.held[self.cells.group_of[node]]
        return held.last if node.during == "forward" else held.first

    def holds_start(self, block: Block) -> bool:
        """Whether the stage holds the repetition that a block begins with."""
        node = self.graph.nodes[block.start]
        held = self.held[self.cells.group_of[node]]
        return held.first if node.during == "forward" else held.last

    def has_initial(self, block: Block, carry: Carry) -> bool:
        """Whether what a block begins with is there, for a stage that holds its first repetition."""
        return self._available(carry.initial, None, 1, self.graph.nodes[block.start].during)

    def has(self, value: Value, reader: Node) -> bool:
        """Whether a value that a node reads is made by the stage itself, or comes from outside the graph."""
        block = self.graph.block_of.get(reader)
        return self._available(value, block, reader.count, reader.during)

    def _available(self, value: Value, block: Block | None, count: int, during: str) -> bool:
        producer = self.graph.producers.get(value)
        if producer is None:
            return True
        if value not in self.made:
            return False
        if self.graph.block_of.get(producer) is block:
            return True
        # What a forward repetition saved is read by its own backward repetition.
        saved = producer.during == "forward" != during and producer.count == count
        return saved or self._holds_end(producer)

    @cached_property
    def wanted(self) -> list[Wanted]:
        """Values that come from another stage, and in which pass."""
        found: dict[Wanted, None] = {}
        for block in self.graph.blocks:
            node = self.graph.nodes[block.start]
            if self.cells.group_of[node] not in self.held:
                continue
            during = "forward" if node.during == "forward" else "backward"
            for carry in block.carries:
                if carry.result in self.summed:
                    continue
                if not self.holds_start(block):
                    found.setdefault((carry.result, during))
                elif not self.has_initial(block, carry):
                    found.setdefault((carry.initial, during))
        for node in self.kept:
            if node.phase == "optimizer":
                continue
            during = "forward" if node.during == "forward" else "backward"
            for value in node.inputs:
                if value.kind != "carried" and not self.has(value, node):
                    # A backward node reads what its own stage received in the forward pass.
                    producer = self.graph.producers[value]
                    pass_ = "forward" if producer.during == "forward" else during
                    found.setdefault((value, pass_))
        return [key for key in found if key[0] not in self.cells.data_free]
