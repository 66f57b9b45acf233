"""Splits a graph over one mesh axis and inserts the collectives that this makes necessary.

A plan names the logical axes to split. Every node that has one of them runs split along it, by the rule of
its equation; all others run whole. Where a value is produced otherwise than it is read, a collective
stands between: partial sums are reduced (or reduce-scattered), splits are gathered. Nothing else decides
where communication happens: Megatron's two all-reduces per layer are what remains of this rule.

One mesh axis at a time: the result is an ordinary graph of one rank, on which the next axis is split.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from math import prod
from typing import Any

from graph_ir.equation import Equation
from graph_ir.graph import Block, Carry, Graph, Node, Value
from graph_ir.localize import local_equation
from graph_ir.logical_axes import Axis, AxisRule, LogicalAxes
from graph_ir.sharding import ByRank, Shard
from partitioner.placements import TERM, WHOLE, Placement, Placements, Plan, split_size
from partitioner.sums import partial_first


def local_attrs(node: Node, rule: AxisRule, plan: Plan) -> dict[str, Any]:
    """Attributes of a node that runs on its part of the axis: those of the group's first rank.

    What they grow by from rank to rank is added to `by_rank` (see `graph_ir.sharding`).
    """
    attrs = dict(node.attrs)
    if not rule.name:
        return attrs
    axis = next(a for a in (*rule.inputs, *rule.outputs) if a is not None)
    mesh = plan.mesh_axis
    length = split_size(node.equation.sizes[rule.name], axis, mesh.size)
    localize = node.definition.localize
    if localize is not None:
        own = localize(node, rule.name, 0, length)
        following = localize(node, rule.name, length, 2 * length)
        attrs.update(own)
        numbers = {k: n for k, n in own.items() if isinstance(n, int)}
        steps = {k: following[k] - n for k, n in numbers.items() if following[k] != n}
        if plan.zigzag:
            attrs, steps = _zigzag(attrs, steps, mesh.size)
        if steps:
            found = dict(attrs.get("by_rank", {}))
            for name, step in steps.items():
                found[name] = (*found.get(name, ()), ByRank(mesh.size, mesh.stride, step))
            attrs["by_rank"] = found
    if isinstance(attrs.get("equation"), Equation):
        attrs["equation"] = local_equation(node.equation, rule.name, length)
    return attrs


def _zigzag(
    attrs: dict[str, Any], steps: dict[str, int], parts: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """Where the two chunks of queries start: the second ones are counted from the end."""
    chunk = steps.get("first_query")
    if chunk is None:
        return attrs, steps
    chunk //= 2
    attrs = {**attrs, "second_query": (2 * parts - 1) * chunk}
    return attrs, {**steps, "first_query": chunk, "second_query": -chunk}


class _Split:
    def __init__(self, choices: Placements) -> None:
        self.graph = choices.graph
        self.axes = choices.axes
        self.plan = plan = choices.plan
        self.parts = plan.mesh_axis.size
        self.choices = choices
        self.terms = choices.terms
        self.nodes: list[Node] = []
        self.produced: dict[Value, Placement] = {}
        self.local: dict[tuple[Value, Axis | None], Value] = {}
        self.converted: dict[tuple[Any, ...], Value] = {}

    # --- values ---------------------------------------------------------------------------------------

    def _type(self, value: Value, placement: Placement) -> Value:
        """The rank's own tensor of a value."""
        axis = placement.axis
        found = self.local.get((value, axis))
        if found is not None:
            return found
        if axis is None:
            return value
        place, major, minor = self._layout(value, axis)
        sizes = list(value.type.shape)
        sizes[place] = split_size(sizes[place], axis, self.parts)
        mesh, zigzag = self.plan.mesh_axis, self._is_zigzag(axis)
        shard = Shard(mesh.name, mesh.size, mesh.stride, place, major, minor, zigzag)
        kind = value.type.with_shape(tuple(sizes))
        found = value.altered(type=kind, shards=(*value.shards, shard))
        self.local[value, axis] = found
        return found

    def _layout(self, value: Value, axis: Axis, other: Axis | None = None) -> tuple[int, int, int]:
        """The dim that holds an axis, and the sizes of its factors before and after it.

        `other` is an axis that the value is split along.
        """
        dims = self.axes.of_value(value)
        place = next(i for i, dim in enumerate(dims) if axis in dim)
        at = dims[place].index(axis)
        sizes = [split_size(a.size, a, self.parts) if a is other else a.size for a in dims[place]]
        return place, prod(sizes[:at]), prod(sizes[at + 1 :])

    def _is_zigzag(self, axis: Axis) -> bool:
        return self.plan.zigzag and axis in self.plan.elsewhere[0]

    def read(self, value: Value, wanted: Placement, reader: Node) -> Value:
        """The value as a reader wants it, through a collective if it lies otherwise.

        A gathered value is not kept for another phase: what the backward pass needs, it gathers again,
        so that only the split form is stored (Korthikanti et al. 2022, section 4.2.2). One that is split
        in another way is as small, and kept.
        """
        has = self.produced.get(value) or self.choices.natural(value)
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
        attrs: dict[str, Any] = {
            "axis": mesh.name,
            "group_size": mesh.size,
            "group_stride": mesh.stride,
            "during": during,
        }
        if wanted.axis is not None:
            attrs["split"] = self._layout(value, wanted.axis, has.axis)
        if has.axis is not None:
            attrs["concat"] = self._layout(value, has.axis, wanted.axis)
        for side, axis in (("split", wanted.axis), ("concat", has.axis)):
            if axis is not None and self._is_zigzag(axis):
                attrs["zigzag"] = side
        if has.partial and has.partial != "sum":
            attrs["reduction"] = has.partial
        suffix = f"{op}.{mesh.name}"
        count = near.count
        result = target.altered(
            name=f"{value.name}.{suffix}.{during}", kind="intermediate", count=count
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

    def _part(
        self, value: Value, source: Value, target: Value, wanted: Placement, near: Node
    ) -> Value:
        """A rank's own part of a value that it holds whole: a view, no communication."""
        mesh, axis = self.plan.mesh_axis, wanted.axis
        if axis is None:
            raise ValueError(f"{value} is asked for as {wanted} but is whole")
        attrs: dict[str, Any] = {
            "view": True,
            "axis": mesh.name,
            "group_size": mesh.size,
            "group_stride": mesh.stride,
            "split": self._layout(value, axis),
        }
        if self._is_zigzag(axis):
            attrs["zigzag"] = "split"
        name = f"{value.name}.part.{mesh.name}.{near.during}"
        result = target.altered(name=name, kind="intermediate", count=near.count)
        self.nodes.append(
            near.altered(
                name=name,
                op="shard",
                inputs=(source,),
                outputs=(result,),
                attrs=attrs,
                phase="forward" if near.during == "forward" else "backward",
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
                    wanted = self.choices.of_carried(carry.argument)
                    self.produced[carry.argument] = wanted
                    before = node.altered(count=1, instances=(), instance_modules=())
                    initials[carry] = self._outside(carry.initial, wanted, before)
                bounds[block] = len(self.nodes)
            self._node(node)
        if len(self.graph.nodes) in stops:
            blocks.append(self._close(stops[len(self.graph.nodes)], bounds, initials))
        inputs = tuple(self._type(v, self.choices.natural(v)) for v in self.graph.inputs)
        outputs = tuple(self._returned(v) for v in self.graph.outputs)
        return Graph(tuple(self.nodes), inputs, outputs, tuple(blocks), self.graph.name)

    def _returned(self, value: Value) -> Value:
        """A result of the graph. Inference delivers whole results, but for the batch and the caches."""
        has = self.produced.get(value) or self.choices.natural(value)
        producer = self.graph.producers.get(value)
        collected = any(value in block.collected for block in self.graph.blocks)
        stays = has.axis in self.plan.batch or collected or value.role or not self._infers
        if has.axis is None or producer is None or stays:
            return self._type(value, has)
        return self._convert(value, has, WHOLE, producer, producer.phase)

    @cached_property
    def _infers(self) -> bool:
        return all(n.phase == "forward" for n in self.graph.nodes if n.phase != "communication")

    def _outside(self, value: Value, wanted: Placement, near: Node) -> Value:
        """A carried value before its block, as the block wants it."""
        has = self.produced.get(value) or self.choices.natural(value)
        # What is handed on as a term begins as one, or as zeros.
        if has == wanted or wanted.partial:
            return self._type(value, wanted)
        return self._convert(value, has, wanted, near, near.phase)

    def _close(self, block: Block, bounds: dict[Block, int], initials: dict[Carry, Value]) -> Block:
        last = self.graph.nodes[block.stop - 1]
        carries = []
        for carry in block.carries:
            wanted = self.choices.of_carried(carry.argument)
            result = self.read(carry.result, wanted, last)
            carries.append(Carry(self._type(carry.argument, wanted), initials[carry], result))
        collected = frozenset(
            self._type(v, self.produced.get(v) or self.choices.natural(v)) for v in block.collected
        )
        stop = len(self.nodes)
        after = last.altered(count=1, instances=(), instance_modules=())
        for carry in block.carries:
            summed = self.terms.waits(carry.argument) and not self.terms.waits_after(carry)
            if summed and carry.result in self.choices.read:
                self._reduce(carry.result, TERM, after)
        return Block(bounds[block], stop, block.count, tuple(carries), collected)

    def _node(self, node: Node) -> None:
        if self.terms.passes(node):
            wanted = [TERM if self.terms.waits(v, node) else WHOLE for v in node.inputs]
            self._emit(node, None, wanted)
            for value in node.outputs:
                self._finish(value, TERM, node)
            return
        rule = self.choices.rules[node]
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
        if not self.terms.waits(value) and value in self.choices.read:
            self._reduce(value, placement, node)

    def _reduce(self, value: Value, term: Placement, near: Node) -> None:
        wanted = self.choices.target(value)
        result = self._convert(value, term, wanted, near, near.during)
        self.produced[value] = wanted
        self.local[value, wanted.axis] = result

    def _emit(self, node: Node, rule: AxisRule | None, wanted: Iterable[Placement]) -> None:
        operands = tuple(self.read(v, p, node) for v, p in zip(node.inputs, wanted, strict=True))
        if rule is None:
            if operands != node.inputs:
                node = node.altered(inputs=operands)
            self.nodes.append(node)
            return
        outputs = tuple(
            self._type(v, Placement(axis))
            for v, axis in zip(node.outputs, rule.outputs, strict=True)
        )
        attrs = local_attrs(node, rule, self.plan)
        self.nodes.append(node.altered(inputs=operands, outputs=outputs, attrs=attrs))


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
    choices = Placements(graph, axes, plan)
    ordered = graph if plan.chosen is not None else partial_first(graph, choices.terms.possible)
    if ordered is not graph:
        known = set(graph.nodes)
        axes = axes.with_nodes(n for n in ordered.nodes if n not in known)
        choices = Placements(ordered, axes, plan)
    return _Split(choices).run()
