"""Where every value of a graph lies on one mesh axis, and by which rule every node runs.

Decisions only: `propagate` carries them out. A plan names the logical axes to split; a node that has one of
them runs split along it, by the rule of its equation; all others run whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graph_ir.graph import Graph, Node, Value
from graph_ir.logical_axes import Axis, AxisRule, LogicalAxes
from partitioner.mesh import MeshAxis
from partitioner.partial_terms import PartialTerms


@dataclass(frozen=True)
class Plan:
    """Which logical axes a mesh axis splits."""

    mesh_axis: MeshAxis
    axes: frozenset[Axis] = frozenset()
    """Split wherever they occur."""
    elsewhere: tuple[frozenset[Axis], ...] = ()
    """Split in nodes and values that have none of `axes` or cannot split them, the first that works:
    tokens in sequence parallelism, tokens and else heads in context parallelism. What is stored or comes
    from outside stays whole."""
    queries: bool = False
    """Whether fused attention that can split nothing else splits its queries, keys and values gathered."""
    zigzag: bool = False
    """Whether parts of the first of `elsewhere` are taken from both ends (see `graph_ir.sharding`)."""
    batch: frozenset[Axis] = frozenset()
    """Axes of independent samples or tokens: statistics are taken over each device's part of them, and
    lookups and sorts of the data itself are each device's own."""
    on_batch: frozenset[Node] = frozenset()
    """Nodes that run split along the batch although others of `axes` come first."""
    parts: frozenset[Node] = frozenset()
    """What an operator was taken apart into so that it can be split along `axes`: split along them only."""
    chosen: Mapping[Node, Axis | AxisRule | None] | None = None
    """Where a search has chosen for each node: the axis that it runs split along, None for whole. A rule
    says it of a node that an axis alone does not tell it of: a sort of each device's own tokens."""
    lies: Mapping[Value, Axis | None] | None = None
    """With `chosen`: the axis that each value is kept split along."""


@dataclass(frozen=True)
class Placement:
    """How a value lies over the mesh axis: split along `axis`, a partial term, or whole."""

    axis: Axis | None = None
    partial: str | None = None

    def __str__(self) -> str:
        return "P" if self.partial else f"S({self.axis.index})" if self.axis else "R"


WHOLE = Placement()
TERM = Placement(partial="sum")


def split_size(size: int, axis: Axis, parts: int) -> int:
    """Size of a dim (or name) that holds `axis` on the rank with the largest part."""
    return size // axis.size * -(-axis.size // parts)


class Placements:
    """The decisions for one plan.

    Args:
        graph: any graph, whole or already split over other mesh axes.
        axes: its logical axes.
        plan: what to split.
    """

    def __init__(self, graph: Graph, axes: LogicalAxes, plan: Plan) -> None:
        self.graph = graph
        self.axes = axes
        self.plan = plan
        self.handed_on = {v for c in graph.carries.values() for v in (c.initial, c.result)}
        """What a repeated block receives and leaves."""
        self._relevant = plan.axes.union(plan.batch, *plan.elsewhere)
        self._natural: dict[Value, Placement] = {}
        self.rules: dict[Node, AxisRule | None] = {}
        """The rule each node runs by; None: it runs whole on every device."""
        for node in graph.nodes:
            self.rules[node] = self._choose(node)
        if plan.chosen is None:
            self._compute_whole_what_needs_no_data()
            if not plan.batch:
                self._gather_before_growth()
        # A scalar that only leaves the graph is a loss to log: data-parallel training leaves it local.
        self.read = {*graph.users, *self.handed_on}
        """Values that matter to anyone."""
        self.read |= {v for v in graph.outputs if v.type.elements > 1}
        self.terms = PartialTerms(graph, self.rules, self._is_whole, bool(plan.batch))
        """The partial terms, and which of them wait for their reduction."""
        for carry in graph.carries.values():
            if self.terms.waits(carry.argument) and self.terms.is_zero(carry.initial):
                self.rules[graph.producers[carry.initial]] = None

    def natural(self, value: Value) -> Placement:
        """Where a value is split when nothing else is asked of it."""
        found = self._natural.get(value)
        if found is None:
            found = self._natural[value] = self._find_natural(value)
        return found

    def _find_natural(self, value: Value) -> Placement:
        if self.plan.lies is not None:
            return Placement(self.plan.lies.get(value))
        own = self.axes.all_of(value)
        for axis in own:
            if axis in self.plan.axes and own.count(axis) == 1 and not axis.blocked:
                return Placement(axis)
        if value.kind in ("carried", "intermediate"):
            for candidates in self.plan.elsewhere:
                for axis in own:
                    if axis in candidates and own.count(axis) == 1 and not axis.blocked:
                        return Placement(axis)
        return WHOLE

    def of_carried(self, argument: Value) -> Placement:
        """Where a repeated block gets a value that it hands on."""
        return TERM if self.terms.waits(argument) else self.natural(argument)

    def _is_whole(self, value: Value) -> bool:
        """Whether nobody has to gather the value."""
        producer = self.graph.producers.get(value)
        # A node that has not been decided on yet is asked about by its axes alone.
        runs_whole = producer in self.rules and self.rules[producer] is None
        return (runs_whole and not self.plan.batch) or self.natural(value) == WHOLE

    def _lies_split(self, value: Value) -> bool:
        """Whether a node that is split makes a part of the value on each device."""
        producer = self.graph.producers.get(value)
        rule = self.rules.get(producer) if producer is not None else None
        if producer is None or rule is None:
            return False
        return rule.outputs[producer.outputs.index(value)] is not None

    def _choose(self, node: Node) -> AxisRule | None:
        if self.plan.chosen is not None:
            chosen = self.plan.chosen.get(node)
            if isinstance(chosen, AxisRule):
                return chosen
            batch = chosen in self.plan.batch
            return None if chosen is None else self.axes.rule(node, chosen, batch=batch)
        if self.plan.batch:
            local = self.axes.local_rule(node, self.plan.batch)
            if local is not None:
                return local
        own = dict.fromkeys(
            a for axes in self.axes.of_node(node).values() for a in axes if a in self._relevant
        )
        if not own:
            return None
        choices = (self.plan.axes, *(() if node in self.plan.parts else self.plan.elsewhere))
        if node in self.plan.on_batch or not any(v.type.dtype.is_float for v in node.outputs):
            # Bookkeeping of a dispatch is each device's own: there the batch goes before the experts.
            # Token numbers and labels are small, and cut where they are needed.
            own = dict.fromkeys(sorted(own, key=lambda axis: axis not in self.plan.batch))
            cut = not self.plan.batch and any(map(self._lies_split, node.inputs))
            choices = (self.plan.axes | self.plan.batch, *(choices[1:] if cut else ()))
        for candidates in choices:
            for axis in own:
                if axis in candidates:
                    rule = self.axes.rule(node, axis, batch=axis in self.plan.batch)
                    if rule is not None and (axis in self.plan.axes or self._pays(node, rule)):
                        return rule
        if self.plan.queries and node.definition.kind == "attention":
            return self._queries(node)
        return None

    def _queries(self, node: Node) -> AxisRule | None:
        for axis in (a for candidates in self.plan.elsewhere for a in candidates):
            if axis in self.axes.of_node(node)["s"]:
                return self.axes.query_rule(node, axis)
        return None

    def _pays(self, node: Node, rule: AxisRule) -> bool:
        """Whether a node had better be split where it need not be.

        What is stored stays whole; and rows that are written to many places are no sum worth sending: their
        source is sent.
        """
        split = [v for v, axis in zip(node.inputs, rule.inputs, strict=True) if axis]
        if any(v.kind in ("parameter", "buffer", "state") for v in split):
            return False
        if self.plan.batch or node.definition.kind == "contraction":
            return True
        # A weight's gradient is sent once per step.
        users = self.graph.users
        terms = [
            v
            for v, axis in zip(node.outputs, rule.outputs, strict=True)
            if axis is None and any(n.phase != "optimizer" for n in users.get(v, ()))
        ]
        # To reduce is to scatter, and to gather where what results is not kept split.
        sent = sum(v.type.bytes * (2 if self._is_whole(v) else 1) for v in terms)
        return sent <= sum(v.type.bytes for v in split)

    def _compute_whole_what_needs_no_data(self) -> None:
        """Positions, angles, masks: every device computes them whole, where anyone needs them so.

        To compute a part of them and then gather the parts would send what no device has to be told.
        """
        free = {
            v
            for v in self.graph.inputs
            if v.kind in ("buffer", "constant", "input")
            and not (v.kind == "input" and v.type.dtype.is_float)
            and self.natural(v) == WHOLE
        }
        computing: list[Node] = []
        for node in self.graph.nodes:
            if node.phase == "forward" and free.issuperset(node.inputs):
                free.update(node.outputs)
                computing.append(node)
        for node in reversed(computing):
            if self.rules[node] is not None and any(map(self._is_wanted_whole, node.outputs)):
                self.rules[node] = None

    def _gather_before_growth(self) -> None:
        """What a node only repeats or widens is gathered before it, if all of the result is wanted."""
        for node in reversed(self.graph.nodes):
            rule = self.rules[node]
            axis = None if rule is None else next((a for a in rule.outputs if a), None)
            if rule is None or axis is None or axis in self.plan.axes or None in rule.outputs:
                continue
            # Of what the backward pass reads too, a part is kept, and gathered again there.
            readers = {r.during for v in node.outputs for r in self.graph.users.get(v, ())}
            if (
                readers <= {node.during}
                and self.handed_on.isdisjoint(node.outputs)
                and all(set(self._wanted(v)) == {None} for v in node.outputs)
            ):
                split = [v for v, a in zip(node.inputs, rule.inputs, strict=True) if a]
                read_bytes = sum(v.type.bytes for v in dict.fromkeys(split))
                made_bytes = sum(v.type.bytes for v in node.outputs)
                if read_bytes < made_bytes + node.definition.is_view(node):
                    self.rules[node] = None

    def _is_wanted_whole(self, value: Value) -> bool:
        return None in self._wanted(value)

    def _wanted(self, value: Value) -> Iterator[Axis | None]:
        """The axes along which readers want a value split; None for whole."""
        for reader in self.graph.users.get(value, ()):
            rule = self.rules[reader]
            for place, operand in enumerate(reader.inputs):
                if operand is value:
                    yield None if rule is None else rule.inputs[place]

    def target(self, value: Value) -> Placement:
        """What a partial value is reduced to: whole if all its readers want it whole."""
        natural = self.natural(value)
        if natural == WHOLE or value in self.handed_on:
            return natural
        for reader in self.graph.users.get(value, ()):
            rule = self.rules[reader]
            places = [v is value for v in reader.inputs]
            if rule and any(p and s for p, s in zip(places, rule.inputs, strict=True)):
                return natural
        return WHOLE
