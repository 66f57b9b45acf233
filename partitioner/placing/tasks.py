"""Operators that must stay together, what flows between them, and where the graph narrows to one of them.

A piece is what is placed as a whole: a kernel, with all that training derives from it (its backward pass,
its recomputation, its weights' update), since its weights lie on one device. In training every piece works
twice: forward, and backward on the way home, where each value's gradient flows against the value.

The graph falls apart at a piece that everything passes through (the concatenation behind an inception
module): what lies between two of them is scheduled on its own, since all devices wait there. That makes
the search short, and loses nothing: devices are alike, so their names can be swapped at every such piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from graph_ir.graph import Graph, Node, Value


@dataclass(frozen=True, eq=False)
class Piece:
    """Nodes that run on one device."""

    nodes: tuple[Node, ...]
    """Forward nodes, in order."""
    forward_s: float
    backward_s: float = 0.0
    """Backward pass, recomputation and update of them; 0 in inference."""

    @property
    def work_s(self) -> float:
        """Both passes."""
        return self.forward_s + self.backward_s


@dataclass(frozen=True)
class Flow:
    """What one piece hands to another."""

    values: tuple[Value, ...]
    forward_s: float
    """Seconds until the reader on another device has it."""
    backward_s: float = 0.0
    """The same for the gradients on their way back."""


@dataclass(frozen=True)
class Dataflow:
    """Pieces in topological order; the flows refer to them by index."""

    pieces: tuple[Piece, ...]
    flows: Mapping[tuple[int, int], Flow] = field(default_factory=dict)

    @property
    def work_s(self) -> float:
        """Seconds that one device takes."""
        return sum(p.work_s for p in self.pieces)

    @property
    def critical_path_s(self) -> float:
        """Seconds that any number of devices takes at least: the longest path, with free transfers."""
        longest = 0.0
        for times, back in (
            ([p.forward_s for p in self.pieces], False),
            ([p.backward_s for p in self.pieces], True),
        ):
            ends = [0.0] * len(times)
            edges = sorted(((b, a) if back else (a, b)) for a, b in self.flows)
            before: dict[int, list[int]] = {}
            for a, b in edges:
                before.setdefault(b, []).append(a)
            order = range(len(times) - 1, -1, -1) if back else range(len(times))
            for i in order:
                ends[i] = times[i] + max((ends[j] for j in before.get(i, ())), default=0.0)
            longest += max(ends, default=0.0)
        return longest


def dataflow(
    graph: Graph,
    kernels: Sequence[Sequence[Node]],
    node_time: Callable[[Node], float],
    transfer_time: Callable[[int], float],
) -> Dataflow:
    """The pieces of a graph and what flows between them.

    Args:
        graph: not folded; in training with its backward pass.
        kernels: nodes that run together; every node of the graph in exactly one.
        node_time: seconds of one node.
        transfer_time: seconds that a number of bytes takes from device to device.
    """
    free = _data_free(graph)
    forward = [n for n in graph.nodes if n.phase == "forward" and not free.issuperset(n.outputs)]
    joined = _Sets(forward)
    for kernel in kernels:
        members = [n for n in kernel if n in joined.above]
        for node in members[1:]:
            joined.join(members[0], node)
    for value in _weights(graph, forward):
        # A weight lies on one device, and what is computed from weights alone beside it.
        maker = [graph.producers[value]] if value in graph.producers else []
        readers = [n for n in graph.users.get(value, ()) if n in joined.above]
        for a, b in itertools.pairwise([*maker, *readers]):
            joined.join(a, b)
    _join_cycles(graph, joined)
    order = _ordered(graph, joined)
    index = {root: i for i, root in enumerate(order)}
    members_of: list[list[Node]] = [[] for _ in order]
    for node in forward:
        members_of[index[joined.find(node)]].append(node)
    later = _derived_seconds(graph, forward, node_time)
    pieces = tuple(
        Piece(
            tuple(nodes),
            sum(node_time(n) for n in nodes),
            sum(later.get(n, 0.0) for n in nodes),
        )
        for nodes in members_of
    )
    trains = any(n.phase == "backward" for n in graph.nodes)
    crossing: dict[tuple[int, int], dict[Value, None]] = {}
    for a, b, value in _edges(graph, joined):
        crossing.setdefault((index[a], index[b]), {})[value] = None
    flows = {}
    for key, found in crossing.items():
        there = sum(transfer_time(v.type.bytes) for v in found)
        back = sum(transfer_time(v.type.bytes) for v in found if v.type.dtype.is_float)
        flows[key] = Flow(tuple(found), there, back if trains else 0.0)
    return Dataflow(pieces, flows)


def contract_chains(whole: Dataflow) -> Dataflow:
    """Joins every piece with the next one where neither has another neighbour on that side."""
    after: dict[int, list[int]] = {}
    before: dict[int, list[int]] = {}
    for a, b in whole.flows:
        after.setdefault(a, []).append(b)
        before.setdefault(b, []).append(a)
    home = list(range(len(whole.pieces)))
    for b in range(len(home)):
        sources = before.get(b, [])
        if len(sources) == 1 and len(after[sources[0]]) == 1:
            home[b] = home[sources[0]]
    heads = sorted(set(home))
    # A chain stands where its last piece stood, so that the order stays topological.
    last = {h: max(i for i, root in enumerate(home) if root == h) for h in heads}
    heads.sort(key=lambda h: last[h])
    index = {h: i for i, h in enumerate(heads)}
    parts: list[list[Piece]] = [[] for _ in heads]
    for i, piece in enumerate(whole.pieces):
        parts[index[home[i]]].append(piece)
    pieces = tuple(
        Piece(
            tuple(n for p in chain for n in p.nodes),
            sum(p.forward_s for p in chain),
            sum(p.backward_s for p in chain),
        )
        for chain in parts
    )
    flows: dict[tuple[int, int], Flow] = {}
    for (a, b), flow in whole.flows.items():
        key = (index[home[a]], index[home[b]])
        if key[0] == key[1]:
            continue
        known = flows.get(key, Flow((), 0.0))
        flows[key] = Flow(
            (*known.values, *flow.values),
            known.forward_s + flow.forward_s,
            known.backward_s + flow.backward_s,
        )
    return Dataflow(pieces, flows)


def narrows(whole: Dataflow) -> list[int]:
    """Pieces that every other one comes before or after, by index."""
    count = len(whole.pieces)
    reach = 0
    has_source = [False] * count
    has_reader = [False] * count
    farthest = list(range(count))
    for a, b in whole.flows:
        has_source[b] = has_reader[a] = True
        farthest[a] = max(farthest[a], b)
    # Nothing may end before such a piece nor begin after it.
    dead = [i for i in range(count) if not has_reader[i]]
    first_dead = dead[0] if dead else count
    last_source = max((i for i in range(count) if not has_source[i]), default=-1)
    found = []
    for i in range(count):
        if reach <= i and i <= first_dead and i >= last_source:
            found.append(i)
        reach = max(reach, farthest[i])
    return found


class _Sets:
    """Union-find over nodes; the root is the first in graph order."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.above = {n: n for n in nodes}
        self.rank = {n: i for i, n in enumerate(nodes)}

    def find(self, node: Node) -> Node:
        while self.above[node] is not node:
            self.above[node] = self.above[self.above[node]]
            node = self.above[node]
        return node

    def join(self, a: Node, b: Node) -> None:
        a, b = self.find(a), self.find(b)
        if self.rank[b] < self.rank[a]:
            a, b = b, a
        self.above[b] = a


def _edges(graph: Graph, joined: _Sets) -> list[tuple[Node, Node, Value]]:
    found = []
    for reader in joined.above:
        for value in reader.inputs:
            producer = graph.producers.get(value)
            if producer in joined.above:
                a, b = joined.find(producer), joined.find(reader)
                if a is not b:
                    found.append((a, b, value))
    return found


def _join_cycles(graph: Graph, joined: _Sets) -> None:
    """Pieces that wait for each other become one."""
    import networkx

    view: networkx.DiGraph[Node] = networkx.DiGraph()
    view.add_edges_from((a, b) for a, b, _ in _edges(graph, joined))
    for component in networkx.strongly_connected_components(view):
        first, *rest = component
        for node in rest:
            joined.join(first, node)


def _ordered(graph: Graph, joined: _Sets) -> list[Node]:
    import networkx

    view: networkx.DiGraph[Node] = networkx.DiGraph()
    view.add_nodes_from(n for n in joined.above if joined.find(n) is n)
    view.add_edges_from((a, b) for a, b, _ in _edges(graph, joined))
    return list(networkx.lexicographical_topological_sort(view, key=lambda n: joined.rank[n]))


def _derived_seconds(
    graph: Graph, forward: Sequence[Node], node_time: Callable[[Node], float]
) -> dict[Node, float]:
    """Time of the backward pass, recomputation and update, by the forward node they come from."""
    by_name = {n.name: n for n in forward}
    found: dict[Node, float] = {}
    for node in graph.nodes:
        if node.phase != "forward" and forward:
            # What has no origin (the seed of the gradients) belongs to the model's end.
            home = by_name.get(node.origin, forward[-1])
            found[home] = found.get(home, 0.0) + node_time(node)
    return found


def _weights(graph: Graph, forward: Sequence[Node]) -> list[Value]:
    """Parameters, and what is computed from them alone."""
    found = {v: None for v in graph.inputs if v.kind != "input"}
    for node in forward:
        if all(v in found for v in node.inputs):
            found.update(dict.fromkeys(node.outputs))
    return [v for v in found if v.kind == "parameter" or v in graph.producers]


def _data_free(graph: Graph) -> set[Value]:
    """Values that depend on no data and no weight: every device computes them for itself."""
    found = {v for v in graph.inputs if v.kind in ("buffer", "constant")}
    for node in graph.nodes:
        if node.phase == "forward" and found.issuperset(node.inputs):
            found.update(node.outputs)
    return found
