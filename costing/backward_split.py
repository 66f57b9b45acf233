"""The backward pass in two: gradients that another stage waits for, and gradients of weights.

Zero-bubble schedules run them apart (Qi et al. 2023, arXiv 2401.10241, section 2). Which node is which
is read off the graph: a gradient of a weight is what only the update reads, and belongs to the operator
that read the weight.
"""

from __future__ import annotations

from collections.abc import Iterable

from costing.lifetimes import storage_of
from graph_ir.graph import Graph, Node, Value


def weight_gradient_nodes(graph: Graph, once: frozenset[Node]) -> frozenset[Node]:
    """Nodes of the backward pass that may wait until after what another stage waits for.

    Args:
        graph: of one micro-batch on one rank, folded or not.
        once: nodes that run once per step (`timeline.once_per_step`), not per micro-batch.
    """
    reads_weights = _reads_weights(graph)
    carried = {c.result: c.argument for b in graph.blocks for c in b.carries}
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if node in once or node.during != "backward" or node.op in ("send", "recv"):
            continue
        readers = [
            reader
            for value in node.outputs
            for known in (value, carried.get(value))
            if known is not None
            for reader in graph.users.get(known, ())
        ]
        # A sum over repetitions reads its own result.
        others = [r for r in readers if r is not node]
        made_for_weight = node.origin in reads_weights or node.phase == "communication"
        if others and made_for_weight and all(r in found or r in once for r in others):
            found.add(node)
    return frozenset(found)


def _reads_weights(graph: Graph) -> set[str]:
    """Names of the forward nodes that read a weight, or what follows from weights alone."""
    alone: set[Value] = {v for v in graph.inputs if v.kind == "parameter"}
    fixed: set[Value] = {v for v in graph.inputs if v.kind in ("buffer", "constant")}
    names: set[str] = set()
    for node in graph.nodes:
        if node.during != "forward":
            continue
        if alone.intersection(node.inputs):
            names.add(node.origin or node.name)
            if all(v in alone or v in fixed for v in node.inputs):
                alone.update(node.outputs)
    return names


def deferred_bytes(graph: Graph, weights: frozenset[Node], inner: Iterable[Value] = ()) -> int:
    """Bytes that one micro-batch keeps for the gradients of weights, once the others are done.

    Args:
        graph: of one micro-batch on one rank.
        weights: what `weight_gradient_nodes` found.
        inner: values that never reach main memory.
    """
    root: dict[Value, Value] = {c.argument: c.result for b in graph.blocks for c in b.carries}
    for node in graph.nodes:
        shared = storage_of(node)
        if shared is not None:
            root[node.outputs[0]] = shared

    def storage(value: Value) -> Value:
        while value in root and root[value] is not value:
            value = root[value]
        return value

    made = {v for n in weights for v in n.outputs}
    kept = {storage(v) for n in weights for v in n.inputs if v not in made}
    kept = {v for v in kept if v.kind in ("intermediate", "input")}.difference(made, inner)
    return sum(v.type.bytes * v.count for v in kept)
