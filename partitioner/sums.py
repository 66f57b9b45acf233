"""Sums in another order: partial terms first, so that what they add up to is reduced once.

Additions are associative. Where a residual gets one gradient after another, or attention and feed-forward
run beside each other, each partial term that is added to a whole value would be reduced by itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from graph_ir.graph import Graph, Node, Value
from partitioner.renumber import renumbered


@dataclass(frozen=True)
class _Term:
    """A value that a sum adds up, and the addition that takes it in."""

    value: Value
    added_by: Node


def partial_first(graph: Graph, partial: Collection[Value]) -> Graph:
    """The graph with its sums in such an order that the fewest reductions result.

    Args:
        graph: any graph.
        partial: values that are partial terms where they are made.

    Returns:
        The same graph if no sum has terms that are reduced one by one.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    fixed = {*graph.outputs, *(v for c in graph.carries.values() for v in (c.initial, c.result))}
    inner = {n for n in graph.nodes if _goes_into_a_sum(graph, n, fixed)}
    replaced: dict[Node, list[Node]] = {}
    for root in graph.nodes:
        if not _adds(root) or root in inner:
            continue
        total = _Sum(root)
        if total.collect(graph, root, inner, partial) > 1:
            replaced |= total.reordered(partial, position)
    return renumbered(graph, replaced) if replaced else graph


def _adds(node: Node) -> bool:
    return (
        node.op == "add" and len(node.inputs) == 2 and node.definition.linear_of(node) is not None
    )


def _goes_into_a_sum(graph: Graph, node: Node, fixed: Collection[Value]) -> bool:
    """Whether a node is an addition whose result is only added to something else, of the same size."""
    if not _adds(node) or node.outputs[0] in fixed:
        return False
    readers = graph.users.get(node.outputs[0], [])
    return (
        len(readers) == 1
        and _adds(readers[0])
        and readers[0].inputs[0] is not readers[0].inputs[1]
        and readers[0].outputs[0].type == node.outputs[0].type
        and readers[0].during == node.during
        and graph.block_of.get(readers[0]) is graph.block_of.get(node)
    )


@dataclass
class _Sum:
    """A tree of additions, by the one that has its result."""

    root: Node
    terms: list[_Term] = field(default_factory=list)
    additions: list[Node] = field(default_factory=list)

    def collect(
        self, graph: Graph, node: Node, inner: Collection[Node], partial: Collection[Value]
    ) -> int:
        """Finds the terms; returns how many reductions their present order needs."""
        reductions = 0
        for value in node.inputs:
            producer = graph.producers.get(value)
            if producer is not None and producer in inner:
                reductions += self.collect(graph, producer, inner, partial)
            else:
                self.terms.append(_Term(value, node))
        self.additions.append(node)
        of_partial = [v in partial for v in node.inputs]
        return reductions if all(of_partial) else reductions + sum(of_partial)

    def reordered(
        self, partial: Collection[Value], position: dict[Node, int]
    ) -> dict[Node, list[Node]]:
        """For every addition, the ones that take its place."""
        root, result = self.root, self.root.outputs[0]
        first = [t for t in self.terms if t.value in partial and t.value.type == result.type]
        if len(first) < 2:
            return {}
        first.sort(key=lambda t: position[t.added_by])
        rest = [t for t in self.terms if t not in first]
        made: dict[Node, list[Node]] = {n: [] for n in self.additions}
        names = dict.fromkeys(n for n in self.additions if n is not root)
        total = first[0].value
        for i, term in enumerate([*first[1:], *rest]):
            # A term is added where it was before, one that stays whole after all of them.
            place = term.added_by if i < len(first) - 1 else root
            if i == len(self.terms) - 2:
                made[place].append(replace(_plain(root), inputs=(total, term.value)))
                break
            near = term.added_by if term.added_by in names else next(iter(names))
            del names[near]
            value = replace(result, name=f"{near.outputs[0].name}.reordered")
            made[place].append(replace(_plain(near), inputs=(total, term.value), outputs=(value,)))
            total = value
        return made


def _plain(node: Node) -> Node:
    """The addition without what was true of its operands."""
    attrs = {k: v for k, v in node.attrs.items() if k not in ("epilogue", "equation")}
    return replace(node, attrs=attrs)
