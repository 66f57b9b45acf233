"""A pricer for a device on which one limit is lifted: what a step would gain without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from costing.node_cost import NodePricer
from costing.op_cost import HOST, OpCost
from graph_ir.graph import Node, Value
from reports import lift


class LiftedPricer(NodePricer):
    """Prices like `base`, with the term of one bound taken out of every node."""

    def __init__(self, base: NodePricer, bound: str) -> None:
        hardware = base.hardware
        if bound == HOST:
            # What a device waits for the host is no term of one kernel: it follows from their order.
            hardware = hardware.with_launches(replayed=True)
        super().__init__(hardware)
        self._base = base
        self._bound = bound

    def cost(self, node: Node) -> OpCost:
        """Cost of a node without the bound's term."""
        return self._lifted(self._base.cost(node))

    def group_cost(self, nodes: Sequence[Node], inner: frozenset[Value]) -> list[OpCost]:
        """Costs of the nodes of one kernel without the bound's term."""
        return [self._lifted(cost) for cost in self._base.group_cost(nodes, inner)]

    def _lifted(self, cost: OpCost) -> OpCost:
        bound, time_s = lift(cost.terms, cost.time_s, cost.bound, self._bound)
        return replace(cost, bound=bound, time_s=time_s)
