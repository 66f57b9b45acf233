"""The forward order of a graph as cells: what a pipeline can cut between.

A cell is a forward node outside repeated blocks (with all parts that it was taken into), or one repetition
of a block. Every other node (backward, recompute, optimizer, communication) belongs to the cell of the
forward node that it was derived from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from graph_ir.graph import Block, Graph, Node, Value


@dataclass(frozen=True, eq=False)
class Group:
    """One forward node or one repeated block, with all that derives from it."""

    index: int
    first_cell: int
    count: int
    """Number of cells: the block's repetitions, or 1."""
    block: Block | None


class Cells:
    """The cells of a graph.

    Args:
        graph: training or inference graph, folded or not.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.groups: list[Group] = []
        self.group_of: dict[Node, Group] = {}
        by_name: dict[str, Group] = {}
        by_block: dict[Block, Group] = {}
        cell, part_of = 0, ""
        for node in graph.nodes:
            if node.during != "forward":
                continue
            block = graph.block_of.get(node)
            group = by_block.get(block) if block is not None else None
            if block is None and node.origin and node.origin == part_of:
                # Parts of one operator, whose backward pass reads what any of them made, stay together.
                group = self.groups[-1]
            part_of = node.origin
            if group is None:
                group = Group(len(self.groups), cell, block.count if block else 1, block)
                cell += group.count
                self.groups.append(group)
                if block is not None:
                    by_block[block] = group
            self.group_of[node] = group
            by_name[node.name] = group
            if node.origin:
                by_name.setdefault(node.origin, group)
        self.count = cell
        for node in graph.nodes:
            if node not in self.group_of:
                self.group_of[node] = by_name.get(node.origin, self.groups[-1])

    def per_cell(self, amount: Callable[[Node], float]) -> list[float]:
        """Sums what one application of each node amounts to, for every cell."""
        per_group = [0.0] * len(self.groups)
        for node, group in self.group_of.items():
            per_group[group.index] += amount(node)
        return [per_group[g.index] for g in self.groups for _ in range(g.count)]

    @cached_property
    def data_free(self) -> set[Value]:
        """Values that depend on no data and no weight: every stage computes them for itself."""
        found = {v for v in self.graph.inputs if v.kind in ("buffer", "constant")}
        for node in self.graph.nodes:
            if node.during == node.phase == "forward" and found.issuperset(node.inputs):
                found.update(node.outputs)
        return found

    def crossing_bytes(self) -> list[int]:
        """What a cut in front of each cell sends on in the forward pass; of no cut at the end, 0."""
        read: dict[Value, int] = {}
        for node in self.graph.nodes:
            if node.during == "forward":
                group = self.group_of[node]
                for value in node.inputs:
                    read[value] = group.first_cell + group.count - 1
        changes = [0] * (self.count + 2)

        def crosses(value: Value, made: int, last: int) -> None:
            if last > made and value not in self.data_free:
                changes[made + 1] += value.type.bytes
                changes[last + 1] -= value.type.bytes

        for group in self.groups:
            for carry in group.block.carries if group.block else ():
                read[carry.initial] = max(read.get(carry.initial, 0), group.first_cell)
                crosses(carry.result, group.first_cell, group.first_cell + group.count - 1)
        for node in self.graph.nodes:
            if node.during == "forward":
                group = self.group_of[node]
                for value in node.outputs:
                    crosses(value, group.first_cell + group.count - 1, read.get(value, 0))
        return list(accumulate(changes[: self.count + 1]))
