"""What every way to split a graph over one mesh axis costs, as small tables.

The unknowns are the forward nodes: along which of its axes each runs split, or whole. What training derives
from a node (its backward pass, its weights' update) follows it, as its equations have the same axes. What a
repeated block hands on is an unknown too. A node's table is its own time; a value's table is the time of the
collectives between where its producer leaves it and where its readers want it, each message once. This is
the program of Alpa (Zheng et al. 2022, arXiv 2201.12023, section 4) with costs from the caller and rules from
the nodes' equations.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, prod

import numpy as np

from graph_ir.graph import Carry, Graph, Node, Value
from graph_ir.logical_axes import Axis, AxisRule, LogicalAxes
from partitioner.elimination import Table
from partitioner.mesh import MeshAxis
from partitioner.placements import WHOLE, Placement, Plan, split_size
from partitioner.propagate import local_attrs
from partitioner.strategy import Prices

UNEVEN_FROM = 64
"""Parts per device from which an uneven rest is below 2 % of the work."""

PENDING = Axis(0, True, -1)
"""In place of an axis: a sum of partial terms stays one, so that their sum is reduced once."""

MAX_CASES = 4096
"""Combinations of requests that one value's table looks at; beyond, each reader pays for itself."""


@dataclass(frozen=True)
class Request:
    """How a reader wants a value, and which readers share one message."""

    wanted: Placement
    during: str
    block: int
    """Start of the reader's block; -1 outside."""
    count: int


Unknown = Node | Carry


class Unknowns:
    """The unknowns of a graph and what they may choose.

    Args:
        graph: any graph, whole or already split over other mesh axes.
        axes: its logical axes.
        mesh_axis: what to split over.
        batch: axes that hold the batch.
    """

    def __init__(
        self, graph: Graph, axes: LogicalAxes, mesh_axis: MeshAxis, batch: frozenset[Axis]
    ) -> None:
        self.graph = graph
        self.axes = axes
        self.mesh_axis = mesh_axis
        self.batch = batch
        self.of: dict[Node, Node] = {}
        """Each node's unknown: the forward node that it was derived from."""
        by_name: dict[str, Node] = {}
        for node in graph.nodes:
            if node.phase == "forward":
                self.of[node] = node
                by_name[node.name] = node
        for node in graph.nodes:
            if node not in self.of:
                # A sum of gradients from several readers follows none of them.
                own = _adds(node) and len(node.inputs) > 1
                self.of[node] = node if own else by_name.get(node.origin, node)
        self.members: dict[Node, list[Node]] = defaultdict(list)
        for node, unknown in self.of.items():
            self.members[unknown].append(node)
        self.carries = [c for b in graph.blocks for c in b.carries]
        self.all: list[Unknown] = [*self.members, *self.carries]
        self.index: dict[Unknown, int] = {u: i for i, u in enumerate(self.all)}
        self.options: list[list[Axis | None]] = [self._options(u) for u in self.all]

    def _options(self, unknown: Unknown) -> list[Axis | None]:
        if isinstance(unknown, Carry):
            own: Iterable[Axis] = self.axes.all_of(unknown.argument)
            return [None, *(a for a in dict.fromkeys(own) if self._divides(a) and not a.blocked)]
        own = (a for found in self.axes.of_node(unknown).values() for a in found)
        able = [a for a in dict.fromkeys(own) if self._divides(a) and self.rule(unknown, a)]
        return [None, *able, *([PENDING] if _adds(unknown) else [])]

    def _divides(self, axis: Axis) -> bool:
        parts = self.mesh_axis.size
        return axis.size % parts == 0 or axis.size >= UNEVEN_FROM * parts

    def rule(self, node: Node, axis: Axis | None) -> AxisRule | None:
        """How a node runs if its unknown chooses `axis`; None: whole."""
        if axis is None or axis is PENDING:
            return None
        return self.axes.rule(node, axis, batch=axis in self.batch)


def _adds(node: Node) -> bool:
    return node.definition.kind != "contraction" and node.definition.linear_of(node) == "jointly"


_TERM = Placement(partial="sum")


class Tables:
    """The tables of a graph at some prices."""

    def __init__(self, unknowns: Unknowns, prices: Prices) -> None:
        self.unknowns = unknowns
        self.prices = prices
        self.graph = unknowns.graph
        self.axes = unknowns.axes
        self.plan = Plan(unknowns.mesh_axis)
        self._moves: dict[tuple[Value, Placement, Placement], float] = {}
        self.trains = any(n.phase == "backward" for n in self.graph.nodes)

    @cached_property
    def own(self) -> list[Table]:
        """The time of every unknown's nodes."""
        found = []
        for unknown, members in self.unknowns.members.items():
            i = self.unknowns.index[unknown]
            seconds = [
                sum(self._weight(n) * n.count * self._node_s(n, axis) for n in members)
                for axis in self.unknowns.options[i]
            ]
            found.append(Table((i,), np.array(seconds)))
        return found

    @cached_property
    def between(self) -> list[Table]:
        """The time of the collectives that stand at every value that the graph makes."""
        made = [v for v in self._values if v in self._makers]
        return [t for v in made for t in self._value(v, self._readers.get(v, {}), 0.0)]

    def stored(self, byte_s: float) -> list[Table]:
        """The time of the collectives at what comes from outside, with a price of each stored byte."""
        given = [v for v in self._values if v not in self._makers]
        return [t for v in given for t in self._value(v, self._readers.get(v, {}), byte_s)]

    def cost(self, choice: Iterable[int], byte_s: float = 0.0) -> float:
        """The sum of all tables for a choice of every unknown."""
        picked = list(choice)
        tables = (*self.own, *self.between, *self.stored(byte_s))
        return sum(float(t.cost[tuple(picked[u] for u in t.over)]) for t in tables)

    def lies(self, choice: tuple[int, ...], byte_s: float = 0.0) -> dict[Value, Axis | None]:
        """Where every value is kept under a choice: along an axis, or whole."""
        found: dict[Value, Axis | None] = {}
        for value in self._values:
            readers = self._readers.get(value, {})
            asked = frozenset(r for i, per in readers.items() for r in per[choice[i]])
            found[value] = self._kept(value, self._form(value, choice), asked, byte_s)[1].axis
        for carry in self.unknowns.carries:
            i = self.unknowns.index[carry]
            found[carry.argument] = self.unknowns.options[i][choice[i]]
        return found

    @cached_property
    def _values(self) -> list[Value]:
        return list(dict.fromkeys([*self.graph.inputs, *self._readers, *self.graph.producers]))

    # --- times ------------------------------------------------------------------------------------------

    def _weight(self, node: Node) -> float:
        return self.prices.gradients if node.phase == "optimizer" else 1.0

    def _node_s(self, node: Node, axis: Axis | None) -> float:
        rule = self.unknowns.rule(node, axis)
        if rule is None:
            return self.prices.node_time(node)
        local = replace(
            node,
            inputs=tuple(map(self._part, node.inputs, rule.inputs)),
            outputs=tuple(map(self._part, node.outputs, rule.outputs)),
            attrs=local_attrs(node, rule, self.plan),
        )
        return self.prices.node_time(local)

    def _part(self, value: Value, axis: Axis | None) -> Value:
        if axis is None:
            return value
        parts = self.unknowns.mesh_axis.size
        shape = tuple(
            split_size(n, axis, parts) if axis in dim else n
            for n, dim in zip(value.type.shape, self.axes.of_value(value), strict=True)
        )
        return replace(value, type=value.type.with_shape(shape))

    def _move_s(self, value: Value, has: Placement, wanted: Placement) -> float:
        """Seconds of one message that turns a placement into another."""
        if has == wanted:
            return 0.0
        if wanted == _TERM:
            return inf
        if has == WHOLE:
            return 0.0
        key = (value, has, wanted)
        if key not in self._moves:
            if has.partial:
                op = "all_reduce" if wanted.axis is None else "reduce_scatter"
            else:
                op = "all_gather" if wanted.axis is None else "all_to_all"
            mesh = self.unknowns.mesh_axis
            attrs = {"axis": mesh.name, "group_size": mesh.size, "group_stride": mesh.stride}
            source, target = self._part(value, has.axis), self._part(value, wanted.axis)
            node = Node("", op, (source,), (target,), attrs, phase="communication")
            self._moves[key] = self.prices.node_time(node)
        return self._moves[key]

    # --- values -----------------------------------------------------------------------------------------

    @cached_property
    def _readers(self) -> dict[Value, dict[int, list[frozenset[Request]]]]:
        """For each value and each unknown that reads it: what it asks for under each of its options."""
        found: dict[Value, dict[int, list[set[Request]]]] = defaultdict(dict)

        def ask(value: Value, i: int, option: int, request: Request) -> None:
            lists = found[value].setdefault(i, [set() for _ in self.unknowns.options[i]])
            lists[option].add(request)

        for node, unknown in self.unknowns.of.items():
            i = self.unknowns.index[unknown]
            block = self.graph.block_of.get(node)
            where = (node.during, block.start if block else -1, node.count)
            for option, axis in enumerate(self.unknowns.options[i]):
                rule = self.unknowns.rule(node, axis)
                for place, value in enumerate(node.inputs):
                    wanted = Placement(rule.inputs[place]) if rule else WHOLE
                    wanted = _TERM if axis is PENDING else wanted
                    ask(value, i, option, Request(wanted, *where))
        for block in self.graph.blocks:
            during = self.graph.nodes[block.start].during
            for carry in block.carries:
                i = self.unknowns.index[carry]
                for option, axis in enumerate(self.unknowns.options[i]):
                    lies = Placement(axis)
                    ask(carry.initial, i, option, Request(lies, during, -1, 1))
                    ask(carry.result, i, option, Request(lies, during, block.start, block.count))
        return {
            value: {i: [frozenset(s) for s in lists] for i, lists in per.items()}
            for value, per in found.items()
        }

    @cached_property
    def _makers(self) -> dict[Value, int]:
        found = {c.argument: self.unknowns.index[c] for c in self.unknowns.carries}
        for value, node in self.graph.producers.items():
            found[value] = self.unknowns.index[self.unknowns.of[node]]
        return found

    def _made(self, value: Value, axis: Axis | None) -> Placement:
        """Where a value's maker leaves it under one of its options."""
        producer = self.graph.producers.get(value)
        if producer is None:
            return Placement(axis)
        if axis is PENDING:
            return _TERM
        rule = self.unknowns.rule(producer, axis)
        if rule is None:
            return WHOLE
        place = rule.outputs[producer.outputs.index(value)]
        if place is not None or not rule.partial:
            return Placement(place)
        return Placement(partial=producer.equation.reduction)

    def _form(self, value: Value, choice: tuple[int, ...]) -> Placement | None:
        maker = self._makers.get(value)
        if maker is None:
            return None
        return self._made(value, self.unknowns.options[maker][choice[maker]])

    def _value(
        self, value: Value, readers: dict[int, list[frozenset[Request]]], byte_s: float
    ) -> list[Table]:
        maker = self._makers.get(value)
        if maker is None and not readers:
            return []
        makes: list[Placement | None] = [None]
        if maker is not None:
            makes = [self._made(value, axis) for axis in self.unknowns.options[maker]]
        unknowns = sorted({*readers, *([] if maker is None else [maker])})
        cases: list[list[tuple[Placement | None, frozenset[Request]]]] = []
        for i in unknowns:
            asked = readers.get(i, [frozenset()] * len(self.unknowns.options[i]))
            made = makes if i == maker else [None] * len(asked)
            cases.append(list(zip(made, asked, strict=True)))
        distinct = [list(dict.fromkeys(c)) for c in cases]
        if prod(map(len, distinct)) > MAX_CASES and len(readers) > 1:
            return [t for i in readers for t in self._value(value, {i: readers[i]}, byte_s)]
        small = np.zeros([len(d) for d in distinct])
        for at in itertools.product(*(range(len(d)) for d in distinct)):
            picked = [d[i] for d, i in zip(distinct, at, strict=True)]
            form = next((f for f, _ in picked if f is not None), None)
            small[at] = self._kept(value, form, frozenset().union(*(r for _, r in picked)), byte_s)[
                0
            ]
        if not small.any():
            return []
        places = [[d.index(c) for c in case] for d, case in zip(distinct, cases, strict=True)]
        return [Table(tuple(unknowns), small[np.ix_(*places)])]

    def _kept(
        self, value: Value, made: Placement | None, asked: frozenset[Request], byte_s: float
    ) -> tuple[float, Placement]:
        """(seconds, placement) of the cheapest form to keep a value in, for what is asked of it.

        A partial sum is reduced to it once; what comes from outside lies in it from the start.
        """
        requests = asked | self._leaving(value, made)
        waits = any(r.wanted == _TERM for r in requests)
        if made is not None and (waits or not made.partial):
            # A term waits for its reduction only if all its readers do.
            return self._answers_s(value, made, requests), made
        forms = dict.fromkeys([WHOLE, *sorted((r.wanted for r in requests), key=str)])
        if made is None:
            stored = value.kind in ("parameter", "state", "buffer")
            price = byte_s * value.count if stored else 0.0
            return min(
                (
                    (
                        self._answers_s(value, f, requests)
                        + price * self._part(value, f.axis).type.bytes,
                        f,
                    )
                    for f in forms
                ),
                key=lambda found: found[0],
            )
        # A scalar that only leaves the graph is a loss to log, and stays a term.
        if not requests and (value not in self.graph.outputs or value.type.elements == 1):
            return 0.0, WHOLE
        producer = self.graph.producers[value]
        once = all(n.phase == "optimizer" for n in self.graph.users.get(value, ()))
        weight = producer.count * (self.prices.gradients if once else 1.0)
        return min(
            (
                (weight * self._move_s(value, made, f) + self._answers_s(value, f, requests), f)
                for f in forms
            ),
            key=lambda found: found[0],
        )

    def _answers_s(self, value: Value, has: Placement, requests: frozenset[Request]) -> float:
        if has.partial and any(r.wanted != has for r in requests):
            return inf
        return sum(r.count * self._move_s(value, has, r.wanted) for r in requests)

    @cached_property
    def _returned(self) -> frozenset[Value]:
        """Results that inference delivers whole."""
        if self.trains:
            return frozenset()
        collected = {v for b in self.graph.blocks for v in b.collected}
        return frozenset(v for v in self.graph.outputs if v not in collected and not v.role)

    def _leaving(self, value: Value, made: Placement | None) -> frozenset[Request]:
        if value not in self._returned or made is None or made.axis in self.unknowns.batch:
            return frozenset()
        return frozenset({Request(WHOLE, "forward", -1, 1)})
