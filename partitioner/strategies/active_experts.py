"""Few tokens meet few experts: in a decode step, how many of them depends on the mesh.

An importer shares the rows that tokens are routed as out over as many experts as there are rows. Where each
replica has its own part of the rows, it meets fewer experts: those are read, by views of the weights. Views
also say that each of the `ep` ranks has several experts, so that the rows a rank sends to each of the others
are an axis of their own even where an expert gets fewer rows than there are ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from graph_ir.graph import Graph, Node, Value
from partitioner.renumber import renumbered
from partitioner.strategies import Pass
from partitioner.strategies.rings import Emitter
from partitioner.strategy import Strategy


@dataclass(frozen=True)
class _Routed:
    """A product of rows with the experts that they are sent to."""

    node: Node
    weight: Value
    """Of all experts."""
    first: Node | None
    """What reads the weight of the first ones."""

    @property
    def rows(self) -> int:
        return self.node.inputs[0].type.shape[0]

    @property
    def experts(self) -> int:
        return self.weight.type.shape[0]

    def active(self, replicas: int, ranks: int) -> int | None:
        """How many experts the rows of one replica meet, None if no number divides what it should."""
        most = min(self.experts, self.rows // replicas)
        return next((n for n in range(most, 0, -1) if self._fits(n, replicas, ranks)), None)

    def _fits(self, active: int, replicas: int, ranks: int) -> bool:
        even = self.rows % active == 0 and self.rows // active % replicas == 0
        return even and active % ranks == 0 and (ranks == 1 or self.experts % active == 0)

    def read(self, active: int, ranks: int) -> list[Node]:
        """The product with some of the experts, of each rank as many."""
        emitter, weight = Emitter(self.node), self.weight
        each, rest = self.experts // active, weight.type.shape[1:]

        def view(op: str, value: Value, shape: tuple[int, ...], attrs: Mapping[str, Any]) -> Value:
            label = f"experts{len(emitter.nodes)}"
            like = [replace(weight, type=weight.type.with_shape(shape), count=self.node.count)]
            return emitter.emit(op, [value], like, {**attrs, "view": True}, label)[0]

        def taken(value: Value, shape: tuple[int, ...]) -> Value:
            rank = len(shape)
            return view("slice", value, shape, {"starts": (0,) * rank, "steps": (1,) * rank})

        if ranks == 1:
            found = taken(weight, (active, *rest))
        else:
            found = view("reshape", weight, (ranks, active // ranks, each, *rest), {})
            if each > 1:
                found = taken(found, (ranks, active // ranks, 1, *rest))
            found = view("reshape", found, (active, *rest), {})
        product = replace(self.node, inputs=(self.node.inputs[0], found))
        return [*emitter.nodes, product]


def _routed(graph: Graph) -> list[_Routed]:
    """Products of all rows, with all experts or with the first ones, as an importer reads them.

    Not those whose rows do not divide: there, experts that get a row more stand apart from the others.
    """
    found: dict[Value, list[_Routed]] = {}
    for node in graph.nodes:
        if node.op != "grouped_matmul":
            continue
        weight = node.inputs[1]
        first = graph.producers.get(weight)
        if first is not None and first.op == "slice" and _shortens(first):
            weight = first.inputs[0]
        else:
            first = None
        found.setdefault(_stored(graph, weight), []).append(_Routed(node, weight, first))
    return [alone[0] for alone in found.values() if len(alone) == 1]


def _shortens(node: Node) -> bool:
    return node.inputs[0].type.shape[0] != node.outputs[0].type.shape[0]


def _stored(graph: Graph, value: Value) -> Value:
    """What a view of a weight is a view of."""
    while (maker := graph.producers.get(value)) is not None and maker.attrs.get("view"):
        value = maker.inputs[0]
    return value


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Has each product read the experts that the rows of a replica meet."""
    replicas, ranks = (strategy.mesh.axis(name).size for name in ("dp", "ep"))
    if replicas * ranks == 1 or any(node.phase != "forward" for node in graph.nodes):
        return graph
    replaced: dict[Node, list[Node]] = {}
    for routed in _routed(graph):
        active = routed.active(replicas, ranks)
        each = routed.rows // routed.experts // replicas
        if active is None or (active == routed.experts and each % ranks == 0):
            continue
        replaced[routed.node] = routed.read(active, ranks)
        if routed.first is not None and graph.users[routed.first.outputs[0]] == [routed.node]:
            replaced[routed.first] = []
    return renumbered(graph, replaced)


PASS = Pass("active experts", 1, apply)
