"""Where weights lie is said apart from how the nodes run that read them.

A `Plan` splits logical axes wherever they occur. A weight has several of them, and tensor parallelism in two
dims says for each weight which one: what computes views of the weight, its gradient behind the products,
and its update then follow that axis, whatever else the nodes around them are split along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

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
        """Lets a node run by a rule, and its results lie so; nothing if there is no such rule."""
        if rule is None:
            return
        self.rules[node] = rule
        self.lies.update(
            {v: a for v, a in zip(node.outputs, rule.outputs, strict=True) if a is not None}
        )

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


def views_of(graph: Graph, value: Value) -> list[Node]:
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
    views = views_of(graph, value)
    names = {n.name for n in views}
    for node in graph.nodes if names else ():
        if node in views or node.origin in names:
            pins.pin(node, axes.rule(node, axis))
    stored = {value, *(v for n in views for v in n.inputs)} & set(graph.inputs)
    for parameter in (v for v in stored if axis in axes.all_of(v)):
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


def derived_from(graph: Graph, nodes: Iterable[Node]) -> Mapping[str, list[Node]]:
    """By name of each of some forward nodes: itself, its copies, and what training derives from it."""
    found: dict[str, list[Node]] = {n.name: [] for n in nodes}
    for node in graph.nodes:
        own = found.get(node.origin or node.name)
        if own is not None:
            own.append(node)
    return found
