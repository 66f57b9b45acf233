"""Few tokens meet few experts: in a decode step, how many of them depends on the mesh.

An importer shares the rows that tokens are routed as out over as many experts as there are rows. Where each
replica has its own part of the rows, it meets fewer experts: those are read, by views of the weights. Views
also say that each of the `ep` ranks has several experts, so that the rows a rank sends to each of the others
are an axis of their own even where an expert gets fewer rows than there are ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node, Value
from partitioner.mesh import Mesh
from partitioner.renumber import renumbered
from partitioner.strategies import Pass
from partitioner.strategies.rings import Emitter
from partitioner.strategy import Strategy

ENOUGH = 0.75
"""Share of the experts that rows would meet which must be left where numbers do not divide; with fewer, the
weights that are read would be counted far too low."""


@dataclass(frozen=True)
class _Routed:
    """A product of rows with the experts that they are sent to."""

    node: Node
    """The product, or the first of several."""
    rows: Value
    weight: Value
    """Of all experts."""
    result: Value
    at: Node
    """What makes the result."""
    replaced: tuple[Node, ...]
    """What no-one reads besides: views, and the several products."""
    apart: bool
    """Whether experts that get a row more stand apart from the others."""

    def active(self, replicas: int, ranks: int) -> int | None:
        """How many experts the rows of one replica meet, None if no such number divides what it should."""
        rows, experts = self.rows.type.shape[0], self.weight.type.shape[0]
        most = min(experts, rows // replicas)
        for found in range(most, ceil(ENOUGH * most) - 1, -1):
            even = found and rows % found == 0 and rows // found % replicas == 0
            if even and found % ranks == 0 and (ranks == 1 or experts % found == 0):
                return found
        return None

    def read(self, active: int, ranks: int) -> list[Node]:
        """The product with some of the experts, of each rank as many."""
        emitter, weight = Emitter(self.node), self.weight
        experts, *rest = weight.type.shape

        def view(op: str, value: Value, shape: tuple[int, ...], attrs: Mapping[str, Any]) -> Value:
            label = f"experts{len(emitter.nodes)}"
            like = [replace(weight, type=weight.type.with_shape(shape), count=self.node.count)]
            return emitter.emit(op, [value], like, {**attrs, "view": True}, label)[0]

        def taken(value: Value, shape: tuple[int, ...]) -> Value:
            rank = len(shape)
            return view("slice", value, shape, {"starts": (0,) * rank, "steps": (1,) * rank})

        found = weight
        if ranks > 1:
            found = view("reshape", found, (ranks, active // ranks, experts // active, *rest), {})
            if active < experts:
                found = taken(found, (ranks, active // ranks, 1, *rest))
            found = view("reshape", found, (active, *rest), {})
        elif active < experts:
            found = taken(found, (active, *rest))
        product = replace(self.node, inputs=(self.rows, found), outputs=(self.result,))
        return [*emitter.nodes, product]


def _routed(graph: Graph) -> list[_Routed]:
    """Products of all rows with all experts, or with the first ones, as an importer reads them."""
    products: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "grouped_matmul" and node.phase == "forward":
            products.setdefault(_stored(graph, node.inputs[1]), []).append(node)
    found = []
    for nodes in products.values():
        node = nodes[0]
        rows, weight, (result,), at = *node.inputs, node.outputs, node
        apart = len(nodes) > 1
        if apart:
            # The results are joined; what is not cut from the same rows is found by its own weight.
            at = graph.users[result][0]
            rows, result = _uncut(graph, rows), at.outputs[0]
        views = [graph.producers[v] for n in nodes for v in n.inputs if v is not _uncut(graph, v)]
        used = {n for n in views for u in graph.users[n.outputs[0]] if u not in nodes}
        views = [n for n in views if n not in used and (apart or n.inputs[0] is not rows)]
        replaced = (*views, *(nodes if apart else ()))
        found.append(_Routed(node, rows, _uncut(graph, weight), result, at, replaced, apart))
    return found


def _uncut(graph: Graph, value: Value) -> Value:
    """What a value is the first or last rows of; itself if it is all of them."""
    maker = graph.producers.get(value)
    cut = maker is not None and maker.op == "slice" and maker.attrs.get("view")
    if maker is None or not cut or maker.inputs[0].type.shape[0] == value.type.shape[0]:
        return value
    return maker.inputs[0]


def _stored(graph: Graph, value: Value) -> Value:
    """What a view of a weight is a view of."""
    while (maker := graph.producers.get(value)) is not None and maker.attrs.get("view"):
        value = maker.inputs[0]
    return value


def _refuse(graph: Graph, routed: _Routed, mesh: Mesh) -> MeshError:
    rows, experts = routed.rows.type.shape[0], routed.weight.type.shape[0]
    given = " and ".join(f"{n}={mesh.axis(n).size}" for n in ("dp", "ep") if mesh.axis(n).size > 1)
    return MeshError(
        f"{given}: the {rows} rows that tokens of {graph.name or 'this graph'} are routed as are no multiple "
        f"of the {experts} experts; use a --batch or a --sequence that makes them one"
    )


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Has each product read the experts that the rows of a replica meet.

    Raises:
        MeshError: if rows that do not divide over the experts cannot be split over the devices either.
    """
    replicas, ranks = (strategy.mesh.axis(name).size for name in ("dp", "ep"))
    if replicas * ranks == 1:
        return graph
    inference = all(node.phase == "forward" for node in graph.nodes)
    replaced: dict[Node, list[Node]] = {}
    for routed in _routed(graph):
        rows, experts = routed.rows.type.shape[0], routed.weight.type.shape[0]
        even = rows % (experts * replicas * ranks) == 0
        # Replicas that meet all experts have their rows rounded up.
        every = ranks == 1 and rows // replicas >= experts
        if even or not (inference or routed.apart) or (every and not routed.apart):
            continue
        active = routed.active(replicas, ranks) if inference else None
        if routed.apart and (active is None or routed.at.op != "concat"):
            raise _refuse(graph, routed, strategy.mesh)
        if active is None:
            continue
        replaced |= {node: [] for node in routed.replaced}
        replaced[routed.at] = routed.read(active, ranks)
    return renumbered(graph, replaced)


PASS = Pass("active experts", 1, apply)
