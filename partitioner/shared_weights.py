"""Weights that several pipeline stages read: each stage holds a copy and updates it.

The gradient of such a weight is a sum of what each of its readers contributes. Where they lie on several
ranks, every stage sums up its own terms, an all-reduce adds the stages' sums, and each stage updates its
copy: the tied embedding of Megatron-LM (Narayanan et al. 2021, arXiv 2104.04473).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from graph_ir.graph import Block, Graph, Node, Value

Kept = Callable[[Value], bool]


@dataclass(frozen=True, eq=False)
class SharedWeight:
    """A weight whose gradient has several terms."""

    parameter: Value
    total: Value
    """The sum of all terms."""
    terms: tuple[Value, ...]
    """What is summed: gradients from one reader each, or from all copies of a repeated block."""
    sums: frozenset[Node]
    """The nodes that sum up, outside of blocks."""
    entries: frozenset[Value]
    """What repeated blocks begin their sums with; the terms of it are among `terms`."""
    tail: tuple[Node, ...]
    """What is done with the sum: collectives over other mesh axes, and the update."""


def weights_with_sums(graph: Graph) -> list[SharedWeight]:
    """The weights whose gradients are sums over several readers."""
    found = []
    carries = {c.result: (b, c.initial) for b in graph.blocks for c in b.carries}
    for update in graph.nodes:
        if update.phase != "optimizer" or update.count > 1 or len(update.inputs) < 2:
            continue
        total = update.inputs[1]
        tail = [update]
        while (node := graph.producers.get(total)) and node.phase == "communication":
            if len(node.inputs) != 1:
                break
            tail.insert(0, node)
            (total,) = node.inputs
        shared = _summed(graph, carries, update.inputs[0], total, tail)
        if len(shared.terms) > 1 or shared.entries:
            found.append(shared)
    return found


def _summed(
    graph: Graph,
    carries: dict[Value, tuple[Block, Value]],
    parameter: Value,
    total: Value,
    tail: Sequence[Node],
) -> SharedWeight:
    terms: list[Value] = []
    sums: set[Node] = set()
    entries: set[Value] = set()
    waiting = [total]
    while waiting:
        value = waiting.pop()
        node = graph.producers.get(value)
        if node is None:
            terms.append(value)
        elif value in carries:
            terms.append(value)
            initial = carries[value][1]
            entries.add(initial)
            waiting.append(initial)
        elif node.op == "add" and node.during == "backward" and node not in graph.block_of:
            sums.add(node)
            waiting += node.inputs
        elif node.op == "fill" and node not in graph.block_of:
            sums.add(node)
        else:
            terms.append(value)
    return SharedWeight(
        parameter, total, tuple(terms), frozenset(sums), frozenset(entries), tuple(tail)
    )


def spread(
    shared: Sequence[SharedWeight], holders: Callable[[Value], Collection[int]]
) -> dict[SharedWeight, tuple[int, ...]]:
    """The weights whose terms lie on several stages, with those stages.

    Args:
        shared: what `weights_with_sums` found.
        holders: the stages that compute a value.
    """
    found = {}
    for weight in shared:
        stages = sorted({stage for term in weight.terms for stage in holders(term)})
        if len(stages) > 1:
            found[weight] = tuple(stages)
    return found
