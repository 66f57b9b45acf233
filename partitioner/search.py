"""Finds the best way to split a graph over one mesh axis, and says why it is the best.

The cost is a serial one: every node and every message one after the other (`search_tables`). Its least is
found exactly by elimination (`elimination`) where the graph is narrow enough, as repeated blocks are, else
with a bound on what is missed. Where the model must fit a memory, stored bytes get a price, which is raised
until it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from graph_ir.graph import Graph
from graph_ir.logical_axes import Axis
from partitioner.elimination import Table, least
from partitioner.mesh import MeshAxis
from partitioner.placements import Plan
from partitioner.search_tables import PENDING, Tables, Unknowns
from partitioner.strategies.data import batch_axes
from partitioner.strategy import Prices

FREE_BYTE_S = 1e-18
"""Of two ways that take equally long, the one that stores less."""

FIRST_BYTE_S = 1e-14
"""The least price of a stored byte that matters: a byte at 100 TB/s."""

LAST_BYTE_S = 1e-6
"""A price at which a gigabyte is worth a quarter of an hour: what stores more then stores what it must."""

EXPLAINED_AXES = 12
"""Axes that are explained, those with most FLOPs first."""


@dataclass(frozen=True)
class AxisChoice:
    """What became of one logical axis, and what the other way would have cost."""

    axis: Axis
    example: str
    """A node that has it."""
    nodes: int
    """Forward nodes that run split along it."""
    candidates: int
    """Forward nodes that could."""
    flops: int
    """FLOPs of the nodes that could."""
    other_s: float
    """Serial cost of the best plan in which the axis is not split (if it is), or is at the node with most
    FLOPs (if it is not)."""

    @property
    def chosen(self) -> bool:
        """Whether any node runs split along the axis."""
        return self.nodes > 0


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    plan: Plan
    cost_s: float
    """Serial seconds of one micro-batch."""
    bound_s: float
    """No plan of these rules costs less."""
    stored_bytes: int
    """Weights and optimizer states of one device."""
    axes: tuple[AxisChoice, ...] = ()


class Search:
    """A search over one mesh axis.

    Args:
        graph: any graph, whole or already split over other mesh axes.
        mesh_axis: what to split over.
        prices: what things cost.
    """

    def __init__(self, graph: Graph, mesh_axis: MeshAxis, prices: Prices) -> None:
        self.graph = graph
        self.axes = graph.axes
        self.prices = prices
        self.unknowns = Unknowns(graph, self.axes, mesh_axis, batch_axes(graph, self.axes))
        self.sizes = [len(o) for o in self.unknowns.options]

    def best(self, *, explain: bool = False) -> Found:
        """The cheapest plan that stores no more on a device than the prices allow.

        If none stores as little, the one that stores least.
        """
        capacity_bytes = self.prices.capacity_bytes
        byte_s = FREE_BYTE_S
        while True:
            found = self._found(byte_s)
            fits = capacity_bytes is None or found.stored_bytes <= capacity_bytes
            if fits or byte_s > LAST_BYTE_S:
                break
            byte_s = max(byte_s * 10, FIRST_BYTE_S)
        return replace(found, axes=self._why(found, byte_s)) if explain else found

    def _found(self, byte_s: float, forbidden: Sequence[Table] = ()) -> Found:
        tables = self.tables
        given = [*tables.own, *tables.between, *tables.stored(byte_s), *forbidden]
        answer = least(self.sizes, given)
        plan = self.plan(answer.choice, byte_s)
        parts = self.unknowns.mesh_axis.size
        stored = 0
        for value in self.graph.inputs:
            if value.kind in ("parameter", "state", "buffer"):
                axis = (plan.lies or {}).get(value)
                share = -(-axis.size // parts) / axis.size if axis else 1.0
                stored += round(value.type.bytes * value.count * share)
        # Stored bytes have a price, but take no time.
        cost_s = tables.cost(answer.choice)
        bound_s = cost_s - (answer.cost - answer.bound)
        return Found(plan, cost_s, max(bound_s, 0.0), stored)

    def plan(self, choice: tuple[int, ...], byte_s: float = 0.0) -> Plan:
        """The plan of a choice of every unknown."""
        lies = self.tables.lies(choice, byte_s)
        chosen = {}
        for node, unknown in self.unknowns.of.items():
            i = self.unknowns.index[unknown]
            axis = self.unknowns.options[i][choice[i]]
            chosen[node] = None if axis is PENDING else axis
        used = frozenset(a for a in (*chosen.values(), *lies.values()) if a is not None)
        batch = used & self.unknowns.batch
        mesh_axis = self.unknowns.mesh_axis
        return Plan(mesh_axis, used, batch=batch, chosen=chosen, lies=lies)

    @cached_property
    def tables(self) -> Tables:
        """What every plan costs."""
        return Tables(self.unknowns, self.prices)

    def _why(self, found: Found, byte_s: float) -> tuple[AxisChoice, ...]:
        work: dict[Axis, int] = {}
        for i, unknown in enumerate(self.unknowns.all):
            for axis in self.unknowns.options[i]:
                if axis not in (None, PENDING) and unknown in self.unknowns.members:
                    flops = getattr(unknown, "flops", 0) * getattr(unknown, "count", 1)
                    work[axis] = work.get(axis, 0) + flops
        ordered = sorted(work, key=lambda a: (a not in found.plan.axes, -work[a], a.index))
        return tuple(self._explained(found, a, work[a], byte_s) for a in ordered[:EXPLAINED_AXES])

    def _explained(self, found: Found, axis: Axis, flops: int, byte_s: float) -> AxisChoice:
        able = [n for n in self.unknowns.members if axis in self._options(n)]
        split = [n for n in able if found.plan.chosen and found.plan.chosen[n] is axis]
        main = max(able, key=lambda n: n.flops * n.count)
        forbidden: list[Table] = []
        if split:
            for i, options in enumerate(self.unknowns.options):
                if axis in options:
                    forbidden.append(_only(i, [a is not axis for a in options]))
        else:
            i = self.unknowns.index[main]
            forbidden.append(_only(i, [a is axis for a in self.unknowns.options[i]]))
        other = self._found(byte_s, forbidden)
        return AxisChoice(axis, main.name, len(split), len(able), flops, other.cost_s)

    def _options(self, unknown: object) -> Sequence[Axis | None]:
        return self.unknowns.options[self.unknowns.index[unknown]]  # type: ignore[index]


def _only(unknown: int, allowed: Sequence[bool]) -> Table:
    return Table((unknown,), np.where(np.array(allowed), 0.0, np.inf))
