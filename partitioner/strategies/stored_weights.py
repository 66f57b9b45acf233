"""Where weights lie is said apart from how the nodes run that read them.

A `Plan` splits logical axes wherever they occur. A weight has several of them, and tensor parallelism in two
dims says for each weight which one: what computes views of the weight, its gradient behind the products,
and its update then follow that axis, whatever else the nodes around them are split along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graph_ir.decompose import decompose
from graph_ir.graph import Graph, Node, Value
from graph_ir.logical_axes import Axis, AxisRule, LogicalAxes
from partitioner.placements import Placements, Plan
from partitioner.strategies.tensor import weights_of


@dataclass
class Pins:
    """Decisions that a plan's own rule does not make."""

    rules: dict[Node, AxisRule] = field(default_factory=dict)
    """How nodes run."""
    lies: dict[Value, Axis] = field(default_factory=dict)
    """The axes that values are kept split along."""

    def pin(self, node: Node, rule: AxisRule | None) -> None:
        """Lets a node run by a rule, and its results lie so; what was pinned before stays."""
        if rule is None or node in self.rules:
            return
        self.rules[node] = rule
        for value, axis in zip(node.outputs, rule.outputs, strict=True):
            if axis is not None:
                self.lies.setdefault(value, axis)

    def applied(self, graph: Graph, axes: LogicalAxes, plan: Plan) -> Plan:
        """The plan with these decisions in place of its own."""
        own = Placements(graph, axes, plan)
        values = dict.fromkeys(graph.inputs)
        values |= dict.fromkeys(v for n in graph.nodes for v in (*n.inputs, *n.outputs))
        return replace(
            plan,
            chosen={**own.rules, **self.rules},
            lies={**{v: own.natural(v).axis for v in values}, **self.lies},
        )


def products(graph: Graph) -> list[tuple[Node, int]]:
    """Forward products with a weight and lookups in one, and which operand the weight is."""
    weights = weights_of(graph)
    found = []
    for node in graph.nodes:
        if node.phase != "forward" or weights.issuperset(node.outputs):
            continue
        contraction = node.definition.kind == "contraction"
        if contraction or node.op == "gather":
            places = [i for i, v in enumerate(node.inputs) if v in weights]
            if places and (contraction or places[0] == 0):
                found.append((node, places[0]))
    return found


@dataclass(frozen=True)
class WeightAxes:
    """The axis along which each product runs split, and its weight lies."""

    of: Mapping[str, Axis]
    """By the product's name."""
    weights: Mapping[Value, Axis]
    whole: Sequence[Node]
    """Products that no axis of their weight can be split for."""

    @property
    def all(self) -> frozenset[Axis]:
        """All these axes."""
        return frozenset(self.of.values())

    def renamed(self, new: Mapping[Axis, Axis]) -> WeightAxes:
        """The same in another graph's logical axes."""
        of = {name: new[a] for name, a in self.of.items()}
        return WeightAxes(of, {v: new[a] for v, a in self.weights.items()}, self.whole)

    def pins(self, graph: Graph, axes: LogicalAxes) -> Pins:
        """These decisions for the products, and for all that training derives from them."""
        pins = Pins()
        for node in graph.nodes:
            axis = self.of.get(node.origin) or self.of.get(node.name)
            if axis is not None and node.definition.kind in ("contraction", "gather"):
                pins.pin(node, axes.rule(node, axis))
        for weight, axis in self.weights.items():
            pin_weight(pins, graph, axes, weight, axis)
        return pins


def weight_axes(
    graph: Graph, axes: LogicalAxes, choice: Callable[[Node, int], Axis | None]
) -> WeightAxes:
    """Chooses an axis for every product with a weight.

    Args:
        graph: any graph.
        axes: of the graph.
        choice: the axis for a product and the place of its weight. Of two readers of one weight, the one with
            more work is asked; the other follows, if it can.
    """
    of: dict[str, Axis] = {}
    weights: dict[Value, Axis] = {}
    stored: dict[Value, Axis] = {}
    whole = []
    for node, place in sorted(products(graph), key=lambda p: -p[0].flops * p[0].count):
        weight = node.inputs[place]
        parameters = _parameters_of(graph, weight)
        axis = next((stored[v] for v in parameters if v in stored), None)
        if axis is None or axes.rule(node, axis) is None:
            axis = choice(node, place)
        if axis is None:
            whole.append(node)
        else:
            of[node.name] = axis
            weights.setdefault(weight, axis)
            for value in parameters:
                stored.setdefault(value, axis)
    return WeightAxes(of, weights, whole)


def norms_apart(
    graph: Graph, axes: LogicalAxes, split: frozenset[Axis]
) -> tuple[Graph, LogicalAxes, Mapping[Axis, Axis]]:
    """The graph with those operators in parts that need a split axis whole.

    Returns:
        The graph, its logical axes, and which of them the old ones are.
    """

    def needs_whole(node: Node) -> bool:
        own = {a for found in axes.of_node(node).values() for a in found} & split
        return bool(own) and all(axes.rule(node, a) is None for a in own)

    apart = decompose(graph, needs_whole, norms=True)
    if apart is graph:
        return graph, axes, {a: a for a in split}
    found = apart.axes
    new: dict[Axis, Axis] = {}
    for value in (*graph.inputs, *graph.producers):
        if value in apart.producers or value.kind != "intermediate":
            new.update(zip(axes.all_of(value), found.all_of(value), strict=True))
    return apart, found, new


def _parameters_of(graph: Graph, value: Value) -> list[Value]:
    """What a weight's value is computed from: often the value itself."""
    read = (value, *(v for n in _views_of(graph, value) for v in n.inputs))
    return [v for v in dict.fromkeys(read) if v not in graph.producers]


def _views_of(graph: Graph, value: Value) -> list[Node]:
    """The nodes that make a weight's value out of parameters: views, casts; none for a parameter."""
    found: list[Node] = []
    wanted = [value]
    while wanted:
        node = graph.producers.get(wanted.pop())
        if node is not None and node not in found:
            found.append(node)
            wanted += node.inputs
    return found


def pin_weight(pins: Pins, graph: Graph, axes: LogicalAxes, value: Value, axis: Axis) -> None:
    """Lets a weight's value lie along an axis, and all that makes it, its gradient and its update.

    Args:
        pins: to which the decisions are added; what is there already stays.
        graph: with or without its backward pass.
        axes: of the graph.
        value: what a product reads: a parameter or computed from parameters alone.
        axis: of the value.
    """
    views = _views_of(graph, value)
    names = {n.name for n in views}
    for node in graph.nodes if names else ():
        if node in views or node.origin in names:
            pins.pin(node, axes.rule(node, axis))
    for parameter in _parameters_of(graph, value):
        if axis in axes.all_of(parameter) and parameter not in pins.lies:
            pins.lies[parameter] = axis
            for reader in graph.users.get(parameter, ()):
                if reader.phase == "optimizer":
                    _pin_update(pins, graph, axes, reader, axis)


def _pin_update(pins: Pins, graph: Graph, axes: LogicalAxes, update: Node, axis: Axis) -> None:
    """The update and its states lie like the weight; so do sums and casts of its gradient."""
    pins.pin(update, axes.rule(update, axis))
    pins.lies.update(dict.fromkeys(update.inputs, axis))
    wanted = [update.inputs[1]]
    while wanted:
        node = graph.producers.get(wanted.pop())
        passes = ("elementwise", "data_movement", "collective")
        if node is None or node.definition.kind not in passes:
            continue
        rule = axes.rule(node, axis)
        if rule is not None and all(rule.outputs) and node not in pins.rules:
            pins.pin(node, rule)
            wanted += [v for v, a in zip(node.inputs, rule.inputs, strict=True) if a is not None]
