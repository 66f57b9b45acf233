"""The forward order of a graph as cells: what a pipeline can cut between.

A cell is a forward node outside repeated blocks, or one repetition of a block. Every other node (backward,
recompute, optimizer, communication) belongs to the cell of the forward node that it was derived from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

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
        node_time: seconds of one application of a node.
    """

    def __init__(self, graph: Graph, node_time: Callable[[Node], float]) -> None:
        self.graph = graph
        self.groups: list[Group] = []
        self.group_of: dict[Node, Group] = {}
        by_name: dict[str, Group] = {}
        by_block: dict[Block, Group] = {}
        cell = 0
        for node in graph.nodes:
            if node.during != "forward":
                continue
            block = graph.block_of.get(node)
            group = by_block.get(block) if block is not None else None
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
        self.seconds = self._seconds(node_time)

    def _seconds(self, node_time: Callable[[Node], float]) -> list[float]:
        """Time of each cell, the optimizer's left out: it does not run per micro-batch."""
        per_group = [0.0] * len(self.groups)
        for node, group in self.group_of.items():
            if node.phase != "optimizer":
                per_group[group.index] += node_time(node)
        return [per_group[g.index] for g in self.groups for _ in range(g.count)]

    def data_free(self) -> set[Value]:
        """Values that depend on no data and no weight: every stage computes them for itself."""
        found = {v for v in self.graph.inputs if v.kind in ("buffer", "constant")}
        for node in self.graph.nodes:
            if node.during == node.phase == "forward" and found.issuperset(node.inputs):
                found.update(node.outputs)
        return found

    def borders(self) -> list[int]:
        """Where a pipeline may be cut: cell indices that start a stage.

        Around and between repetitions of a block, and where a single value crosses.
        """
        last_read: dict[Value, int] = {}
        free = self.data_free()
        for node in self.graph.nodes:
            if node.during == "forward":
                for value in node.inputs:
                    last_read[value] = self.group_of[node].first_cell
        crossing = [0] * (self.count + 1)
        for node in self.graph.nodes:
            if node.during != "forward":
                continue
            group = self.group_of[node]
            for value in node.outputs:
                if value in free or value not in last_read:
                    continue
                for cell in range(group.first_cell + group.count, last_read[value] + 1):
                    crossing[cell] += 1
        found: set[int] = set()
        for group in self.groups:
            if group.block is not None:
                found.update(range(group.first_cell, group.first_cell + group.count + 1))
            elif crossing[group.first_cell] == 1:
                found.add(group.first_cell)
        return sorted(c for c in found if 0 < c < self.count)


def balanced_cuts(seconds: list[float], borders: list[int], stages: int) -> list[int] | None:
    """Cuts cells into consecutive stages so that the slowest stage is as fast as can be.

    Args:
        seconds: time of each cell.
        borders: cell indices at which a cut is allowed.
        stages: number of stages.

    Returns:
        The first cell of each stage but the first, or None if there are too few borders.
    """
    if len(borders) < stages - 1:
        return None
    edges = [0, *borders, len(seconds)]
    atoms = [sum(seconds[a:b]) for a, b in itertools.pairwise(edges)]

    def fill(limit: float) -> list[int]:
        """Fills stage by stage up to the limit, leaving an atom for each stage to come."""
        cuts: list[int] = []
        used = 0.0
        for i, atom in enumerate(atoms):
            left = stages - len(cuts)
            must_cut = len(atoms) - i < left
            if i > 0 and (used + atom > limit or must_cut) and len(cuts) < stages - 1:
                cuts.append(edges[i])
                used = 0.0
            used += atom
        return cuts

    def slowest(cuts: list[int]) -> float:
        bounds = [0, *cuts, len(seconds)]
        return max(sum(seconds[a:b]) for a, b in itertools.pairwise(bounds))

    low, high = max(max(atoms), sum(atoms) / stages), sum(atoms)
    best = fill(high)
    for _ in range(60):
        middle = (low + high) / 2
        cuts = fill(middle)
        if len(cuts) == stages - 1 and slowest(cuts) <= middle * (1 + 1e-12):
            best, high = cuts, middle
        else:
            low = middle
    return best if len(best) == stages - 1 else None
