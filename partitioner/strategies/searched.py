"""The mesh axis `auto`: what is split over it is searched, axis by axis and node by node.

Nothing is assumed of batch, heads or channels; tensor, sequence, data and context parallelism, and mixtures
of them, are what the search finds.
"""

from __future__ import annotations

from graph_ir.decompose import decompose
from graph_ir.graph import Graph, Node
from partitioner.mesh import MeshAxis
from partitioner.propagate import split_graph
from partitioner.search import Found, Search
from partitioner.strategies import Pass
from partitioner.strategy import Prices, Strategy


def searched(
    graph: Graph, mesh_axis: MeshAxis, prices: Prices, *, explain: bool = False
) -> tuple[Search, Found]:
    """The best plan for a graph, as it is or with its softmax over a weight's axis taken apart."""
    found = []
    for candidate in dict.fromkeys((graph, _taken_apart(graph))):
        search = Search(candidate, mesh_axis, prices)
        found.append((search, search.best(explain=explain)))
    fitting = [f for f in found if not _too_large(f[1], prices)] or found
    return min(fitting, key=lambda f: f[1].cost_s)


def _too_large(found: Found, prices: Prices) -> bool:
    return prices.capacity_bytes is not None and found.stored_bytes > prices.capacity_bytes


def _taken_apart(graph: Graph) -> Graph:
    """The graph without operators that need an axis of a weight whole (a softmax over a vocabulary)."""
    axes = graph.axes
    in_weights = {a for v in graph.parameters for a in axes.all_of(v)}

    def wanted(node: Node) -> bool:
        own = {a for found in axes.of_node(node).values() for a in found}
        return any(axes.rule(node, a) is None for a in own & in_weights)

    return decompose(graph, wanted)


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits the graph over the mesh axis `auto`."""
    mesh_axis = strategy.mesh.axis("auto")
    if mesh_axis.size == 1 or strategy.prices is None:
        return graph
    search, found = searched(graph, mesh_axis, strategy.prices)
    return split_graph(search.graph, search.axes, found.plan)


PASS = Pass("searched", 5, apply, axis="auto")
