"""Splits a graph over one mesh axis and inserts the collectives that this makes necessary.

A plan names the logical axes to split. Every node that has one of them runs split along it, by the rule of
its equation; all others run whole. Where a value is produced otherwise than it is read, a collective
stands between: partial sums are reduced (or reduce-scattered), splits are gathered. Nothing else decides
where communication happens: Megatron's two all-reduces per layer are what remains of this rule.

One mesh axis at a time: the result is an ordinary graph of one rank, on which the next axis is split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from graph_ir.equation import Equation
from graph_ir.graph import Block, Carry, Graph, Node, Value
from graph_ir.logical_axes import Axis, AxisRule, LogicalAxes
from graph_ir.ops.reduction import mean_divisor
from partitioner.mesh import MeshAxis


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
    batch: frozenset[Axis] = frozenset()
    """Those of `axes` that hold the batch: statistics are taken over each device's part of it, and
    lookups and sorts of the data itself are each device's own."""


@dataclass(frozen=True)
class Placement:
    """How a value lies over the mesh axis: split along `axis`, a partial term, or whole."""

    axis: Axis | None = None
    partial: str | None = None

    def __str__(self) -> str:
        return "P" if self.partial else f"S({self.axis.index})" if self.axis else "R"


WHOLE = Placement()


def split_size(size: int, axis: Axis, parts: int) -> int:
    """Size of a dim (or name) that holds `axis` on the rank with the largest part."""
    return size // axis.size * -(-axis.size // parts)


def local_attrs(node: Node, rule: AxisRule, parts: int) -> dict[str, Any]:
    """Attributes of a node that runs on its part of the axis."""
    attrs = dict(node.attrs)
    axis = next(a for a in (*rule.inputs, *rule.outputs) if a is not None)
    equation = attrs.get("equation")
    if isinstance(equation, Equation) and rule.name:
        sizes = dict(equation.sizes)
        sizes[rule.name] = split_size(sizes[rule.name], axis, parts)
        attrs["equation"] = replace(equation, sizes=sizes)
    if node.op == "reduce_mean" and None in rule.outputs:
        attrs["divisor"] = mean_divisor(node)
    elif node.op in ("nll_loss", "nll_loss_backward"):
        attrs.setdefault("divisor", node.inputs[1].type.elements)
    if "groups" in attrs and rule.name == "g":
        attrs["groups"] = split_size(attrs["groups"], axis, parts)
    return attrs


class _Split:
    def __init__(self, graph: Graph, axes: LogicalAxes, plan: Plan) -> None:
        self.graph = graph
        self.axes = axes
        self.plan = plan
        self.parts = plan.mesh_axis.size
        self.rules = {node: self._choose(node) for node in graph.nodes}
        self._handed_on = {v for c in graph.carries.values() for v in (c.initial, c.result)}
        # A scalar that only leaves the graph is a loss to log: data-parallel training leaves it local.
        self._read = {*graph.users, *self._handed_on}
        self._read |= {v for v in graph.outputs if v.type.elements > 1}
        self.deferred = self._deferred()
        self.nodes: list[Node] = []
        self.produced: dict[Value, Placement] = {}
        self.local: dict[tuple[Value, Placement], Value] = {}
        self.converted: dict[tuple[Any, ...], Value] = {}

    # --- decisions ------------------------------------------------------------------------------------

    def natural(self, value: Value) -> Placement:
        """Where a value is split when nothing else is asked of it."""
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

    def _choose(self, node: Node) -> AxisRule | None:
        """The rule a node runs by; None if it runs whole on every device."""
        if self.plan.batch:
            local = self.axes.local_rule(node, self.plan.batch)
            if local is not None:
                return local
        own = dict.fromkeys(a for axes in self.axes.of_node(node).values() for a in axes)
        choices = (self.plan.axes, *self.plan.elsewhere)
        if not any(v.type.dtype.is_float for v in node.outputs):
            # Bookkeeping of a dispatch is each device's own: there the batch goes before the experts.
            # Token numbers and labels are small, and cut where they are needed.
            own = dict.fromkeys(sorted(own, key=lambda axis: axis not in self.plan.batch))
            choices = choices[:1]
        for candidates in choices:
            for axis in own:
                if axis in candidates:
                    rule = self.axes.rule(node, axis, batch=axis in self.plan.batch)
                    if rule is not None and (
                        candidates is self.plan.axes or self._keeps_parameters_whole(node, rule)
                    ):
                        return rule
        return None

    def _keeps_parameters_whole(self, node: Node, rule: AxisRule) -> bool:
        stored = ("parameter", "buffer", "state")
        return not any(
            s and v.kind in stored for s, v in zip(rule.inputs, node.inputs, strict=True)
        )

    def _deferred(self) -> set[Value]:
        """Partial values whose reduction can wait, because all their readers are linear in them."""
        partial: set[Value] = set()
        for node in self.graph.nodes:
            rule = self.rules[node]
            if rule is not None and rule.partial:
                partial.update(
                    v for v, axis in zip(node.outputs, rule.outputs, strict=True) if axis is None
                )
            if self._passes(node, partial):
                partial.update(node.outputs)
        fixed = self._handed_on | set(self.graph.outputs)
        users = self.graph.users
        deferred = {v for v in partial if v not in fixed and v in users}
        while True:
            kept = {
                v
                for v in deferred
                if all(self._passes(n, deferred) and self._same_block(v, n) for n in users[v])
            }
            if kept == deferred:
                return kept
            deferred = kept

    def _same_block(self, value: Value, reader: Node) -> bool:
        producer = self.graph.producers[value]
        return self.graph.block_of.get(producer) is self.graph.block_of.get(reader)

    def _passes(self, node: Node, partial: set[Value]) -> bool:
        """Whether the node's results are partial terms if these values are, and it pays to wait.

        It does not pay to send more than what came in, except for a weight's gradient, which is
        exchanged as a whole, nor to repeat a product on every term, nor to reduce on several paths.
        """
        linear = node.definition.linear_of(node)
        terms = [v for v in node.inputs if v in partial]
        rest = [v for v in node.inputs if v not in partial]
        if linear is None or not terms or node.definition.kind == "contraction":
            return False
        if linear == "jointly":
            joined = not rest
        else:
            alone = len(terms) == 1 and all(self.natural(v) == WHOLE for v in rest)
            once = alone and len(self.graph.users[terms[0]]) == 1
            joined = once and (linear == "each" or terms[0] is node.inputs[0])
        # Frameworks reduce activations' gradients before they use them in products.
        if not joined or (linear == "each" and node.during != "forward"):
            return False
        made = sum(v.type.elements for v in node.outputs)
        return bool(self.plan.batch) or made <= max(v.type.elements for v in node.inputs)

    # --- values ---------------------------------------------------------------------------------------

    def _type(self, value: Value, placement: Placement) -> Value:
        """The rank's own tensor of a value."""
        key = (value, Placement(placement.axis))
        found = self.local.get(key)
        if found is None:
            axis = placement.axis
            if axis is None:
                found = value
            else:
                shape = tuple(
                    split_size(n, axis, self.parts) if axis in dim else n
                    for n, dim in zip(value.type.shape, self.axes.of_value(value), strict=True)
                )
                found = replace(value, type=value.type.with_shape(shape))
            self.local[key] = found
        return found

    def read(self, value: Value, wanted: Placement, reader: Node) -> Value:
        """The value as a reader wants it, through a collective if it lies otherwise.

        A gathered value is not kept for another phase: what the backward pass needs, it gathers again,
        so that only the split form is stored (Korthikanti et al. 2022, section 4.2.2). One that is split
        in another way is as small, and kept.
        """
        has = self.produced.get(value) or self.natural(value)
        if has == wanted:
            return self._type(value, has)
        during = reader.during
        key: tuple[Any, ...] = (value, wanted)
        if has.axis is None or wanted.axis is None:
            key = (value, wanted, during, self.graph.block_of.get(reader))
        found = self.converted.get(key)
        if found is None:
            found = self._convert(value, has, wanted, reader, during)
            self.converted[key] = found
        return found

    def _convert(
        self, value: Value, has: Placement, wanted: Placement, near: Node, during: str
    ) -> Value:
        source, target = self._type(value, has), self._type(value, wanted)
        if has == WHOLE:
            return self._part(value, source, target, wanted, near)
        if has.partial:
            op = "all_reduce" if wanted.axis is None else "reduce_scatter"
        else:
            op = "all_gather" if wanted.axis is None else "all_to_all"
        mesh = self.plan.mesh_axis
        axis = wanted.axis or has.axis
        attrs: dict[str, Any] = {
            "axis": mesh.name,
            "group_size": mesh.size,
            "group_stride": mesh.stride,
            "during": during,
        }
        if axis is not None:
            dims = self.axes.of_value(value)
            attrs["dim"] = next(i for i, dim in enumerate(dims) if axis in dim)
            attrs["around"] = self._around(dims[attrs["dim"]], axis, has.axis)
        if has.partial and has.partial != "sum":
            attrs["reduction"] = has.partial
        suffix = f"{op}.{mesh.name}"
        count = near.count
        result = replace(
            target, name=f"{value.name}.{suffix}.{during}", kind="intermediate", count=count
        )
        producer = self.graph.producers.get(value, near)
        self.nodes.append(
            Node(
                f"{value.name}.{suffix}.{during}",
                op,
                (source,),
                (result,),
                attrs,
                producer.module,
                "communication",
                count,
                tuple(f"{n}.{suffix}.{during}" for n in near.instances),
                near.instance_modules,
                near.origin or near.name,
            )
        )
        return result

    def _around(self, dim: tuple[Axis, ...], axis: Axis, other: Axis | None) -> tuple[int, int]:
        """Sizes of a compound dim's factors before and after what a collective exchanges."""
        place = dim.index(axis)
        before, after = (prod(a.size for a in part) for part in (dim[:place], dim[place + 1 :]))
        if other is None or other is axis or other not in dim:
            return before, after
        # An exchange between neighbouring factors moves a block of the minor one for one of the major.
        first, second = sorted((place, dim.index(other)))
        if second != first + 1:
            return 1, 1
        behind = prod(a.size for a in dim[second + 1 :])
        return prod(a.size for a in dim[:first]), dim[second].size // self.parts * behind

    def _part(
        self, value: Value, source: Value, target: Value, wanted: Placement, near: Node
    ) -> Value:
        """A rank's own part of a value that it holds whole: a view, no communication."""
        result = replace(target, name=f"{value.name}.part", kind="intermediate", count=near.count)
        self.nodes.append(
            replace(
                near,
                name=f"{value.name}.part.{near.phase}",
                op="slice",
                inputs=(source,),
                outputs=(result,),
                attrs={"view": True},
                instances=tuple(f"{n}.part" for n in near.instances),
                origin=near.origin or near.name,
            )
        )
        return result

    # --- the walk -------------------------------------------------------------------------------------

    def run(self) -> Graph:
        starts = {b.start: b for b in self.graph.blocks}
        stops = {b.stop: b for b in self.graph.blocks}
        bounds: dict[Block, int] = {}
        initials: dict[Carry, Value] = {}
        blocks: list[Block] = []
        for index, node in enumerate(self.graph.nodes):
            if index in stops:
                blocks.append(self._close(stops[index], bounds, initials))
            block = starts.get(index)
            if block is not None:
                for carry in block.carries:
                    self.produced[carry.argument] = self.natural(carry.argument)
                    wanted = self.natural(carry.argument)
                    before = replace(node, count=1, instances=(), instance_modules=())
                    initials[carry] = self._outside(carry.initial, wanted, before)
                bounds[block] = len(self.nodes)
            self._node(node)
        if len(self.graph.nodes) in stops:
            blocks.append(self._close(stops[len(self.graph.nodes)], bounds, initials))
        inputs = tuple(self._type(v, self.natural(v)) for v in self.graph.inputs)
        outputs = tuple(self._returned(v) for v in self.graph.outputs)
        return Graph(tuple(self.nodes), inputs, outputs, tuple(blocks), self.graph.name)

    def _returned(self, value: Value) -> Value:
        """A result of the graph. Inference delivers whole results, but for the batch and the caches."""
        has = self.produced.get(value) or self.natural(value)
        producer = self.graph.producers.get(value)
        inference = all(
            n.phase == "forward" for n in self.graph.nodes if n.phase != "communication"
        )
        collected = any(value in block.collected for block in self.graph.blocks)
        stays = self.plan.batch or collected or value.role or not inference
        if has.axis is None or producer is None or stays:
            return self._type(value, has)
        return self._convert(value, has, WHOLE, producer, producer.phase)

    def _outside(self, value: Value, wanted: Placement, near: Node) -> Value:
        """A carried value before its block, as the block wants it."""
        has = self.produced.get(value) or self.natural(value)
        if has == wanted:
            return self._type(value, has)
        return self._convert(value, has, wanted, near, near.phase)

    def _close(self, block: Block, bounds: dict[Block, int], initials: dict[Carry, Value]) -> Block:
        last = self.graph.nodes[block.stop - 1]
        carries = []
        for carry in block.carries:
            wanted = self.natural(carry.argument)
            result = self.read(carry.result, wanted, last)
            carries.append(Carry(self._type(carry.argument, wanted), initials[carry], result))
        collected = frozenset(
            self._type(v, self.produced.get(v) or self.natural(v)) for v in block.collected
        )
        return Block(bounds[block], len(self.nodes), block.count, tuple(carries), collected)

    def _node(self, node: Node) -> None:
        if self._passes(node, self.deferred):
            term = Placement(partial="sum")
            self._emit(node, None, [term if v in self.deferred else WHOLE for v in node.inputs])
            for value in node.outputs:
                self._finish(value, Placement(partial="sum"), node)
            return
        rule = self.rules[node]
        if rule is None:
            self._emit(node, None, [WHOLE] * len(node.inputs))
            for value in node.outputs:
                self.produced[value] = WHOLE
            return
        self._emit(node, rule, [Placement(axis) for axis in rule.inputs])
        for value, axis in zip(node.outputs, rule.outputs, strict=True):
            if axis is not None or not rule.partial:
                self.produced[value] = Placement(axis)
            else:
                self._finish(value, Placement(partial=node.equation.reduction), node)

    def _finish(self, value: Value, placement: Placement, node: Node) -> None:
        """Reduces a partial value at once, unless all its readers can wait."""
        self.produced[value] = placement
        if value in self.deferred or value not in self._read:
            return
        wanted = self._target(value)
        during = node.during
        result = self._convert(value, placement, wanted, node, during)
        self.produced[value] = wanted
        self.local[value, wanted] = result

    def _target(self, value: Value) -> Placement:
        """What a partial value is reduced to: whole if all its readers want it whole."""
        natural = self.natural(value)
        if natural == WHOLE or value in self._handed_on:
            return natural
        for reader in self.graph.users.get(value, ()):
            rule = self.rules[reader]
            places = [v is value for v in reader.inputs]
            if rule and any(p and s for p, s in zip(places, rule.inputs, strict=True)):
                return natural
        return WHOLE

    def _emit(self, node: Node, rule: AxisRule | None, wanted: Iterable[Placement]) -> None:
        operands = tuple(self.read(v, p, node) for v, p in zip(node.inputs, wanted, strict=True))
        if rule is None:
            if operands != node.inputs:
                node = replace(node, inputs=operands)
            self.nodes.append(node)
            return
        outputs = tuple(
            self._type(v, Placement(axis))
            for v, axis in zip(node.outputs, rule.outputs, strict=True)
        )
        attrs = local_attrs(node, rule, self.parts)
        self.nodes.append(replace(node, inputs=operands, outputs=outputs, attrs=attrs))


def split_graph(graph: Graph, axes: LogicalAxes, plan: Plan) -> Graph:
    """The graph of one rank when a mesh axis splits the plan's logical axes.

    Args:
        graph: any graph, whole or already split over other mesh axes.
        axes: the graph's logical axes.
        plan: what to split.

    Returns:
        The busiest rank's graph: local shapes (rounded up where a size is uneven), collectives as nodes.
    """
    if plan.mesh_axis.size == 1:
        return graph
    return _Split(graph, axes, plan).run()
