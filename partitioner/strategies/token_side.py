"""Where rows change hands: before or behind the small operators around the products of experts.

Between two products of an expert everything runs on the expert's device. What comes before the first or
behind the last one can run on either side of the exchange: weighting the results with the router's scores,
casts, a bias. It runs on the tokens' own device where fewer bytes then change hands. Scores in float32 make
results of float32, so it is cheaper to send them before; a bias of each expert is added first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from graph_ir.graph import Graph, Node, Value
from graph_ir.logical_axes import Axis, LogicalAxes


def on_own_tokens(
    graph: Graph, axes: LogicalAxes, experts: frozenset[Axis], tokens: frozenset[Axis]
) -> frozenset[Node]:
    """Nodes that had better run along the tokens although they could run along the experts.

    Args:
        graph: any graph.
        axes: its logical axes.
        experts: axes of experts.
        tokens: axes of the batch, and of the rows that go to an expert.
    """
    rows = _Rows(axes, experts, tokens)
    weights = _stored(graph)
    held = [n for n in graph.nodes if rows.hold(n.outputs) and not weights.issuperset(n.inputs)]
    lookups = {n for n in held if n.definition.kind in ("gather", "routing")}
    products = {n for n in held if n.definition.kind == "contraction"}
    products |= {
        n for n in graph.nodes if n.definition.kind == "contraction" and rows.hold(n.inputs)
    }
    around = [n for n in held if n not in lookups | products]
    behind = _reached(products, around, lambda n: [graph.producers.get(v) for v in n.inputs])
    users = graph.users
    before = _reached(
        products, around[::-1], lambda n: [u for v in n.outputs for u in users.get(v, ())]
    )
    with_experts = products | (behind & before)
    with_experts |= {n for n in lookups if axes.local_rule(n, tokens) is None}

    def exchanged(node: Node) -> tuple[int, int]:
        """Bytes that change hands if the node runs (along the tokens, along the experts)."""
        found = [0, 0]
        for value in rows.of(node.inputs):
            there = value in weights or graph.producers.get(value) in with_experts
            found[not there] += value.type.bytes
        for value in rows.of(node.outputs):
            found[with_experts.isdisjoint(users.get(value, ()))] += value.type.bytes
        return found[0], found[1]

    own: set[Node] = set()
    # What is known of a neighbour's side comes from the products.
    for node in (
        *(n for n in around if n not in before),
        *(n for n in around[::-1] if n in before),
    ):
        if node in with_experts:
            continue
        along_tokens, along_experts = exchanged(node)
        (own if along_tokens < along_experts else with_experts).add(node)
    return frozenset(own)


class _Rows:
    """Tells values that hold the rows of every expert."""

    def __init__(
        self, axes: LogicalAxes, experts: frozenset[Axis], tokens: frozenset[Axis]
    ) -> None:
        self.axes, self.experts, self.tokens = axes, experts, tokens

    def of(self, values: Iterable[Value]) -> list[Value]:
        return [v for v in values if self.hold([v])]

    def hold(self, values: Iterable[Value]) -> bool:
        every = (self.axes.all_of(v) for v in values)
        return any(
            not self.experts.isdisjoint(own) and not self.tokens.isdisjoint(own) for own in every
        )


def _stored(graph: Graph) -> set[Value]:
    """Parameters, and what is computed from them alone."""
    found = {v for v in graph.inputs if v.kind in ("parameter", "buffer")}
    for node in graph.nodes:
        if node.inputs and found.issuperset(node.inputs):
            found.update(node.outputs)
    return found


def _reached(
    start: set[Node], order: Sequence[Node], neighbours: Callable[[Node], Iterable[Node | None]]
) -> set[Node]:
    """Those of some nodes, in an order, that are reached from others through each other."""
    found = set(start)
    for node in order:
        if any(n in found for n in neighbours(node)):
            found.add(node)
    return found - start
