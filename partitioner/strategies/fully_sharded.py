"""ZeRO and FSDP: what is stored is split over the data-parallel group.

Stage 1 splits the optimizer's states: gradients are reduce-scattered, every rank updates its part, and
the updated parameters are gathered. Stage 2 also keeps only the reduced part of the gradients, and
therefore reduces after every micro-batch. Stage 3 stores parameters split as well, and gathers them before
the forward and again before the backward pass of the block that needs them (Rajbhandari et al. 2020,
arXiv 1910.02054, section 5).

The group of a weight is the one that its gradient is reduced over: all ranks that see other samples or
tokens, but for an expert's weight only those that hold the same experts. With `--shard-group N` what is
stored is split over N neighbours of the group and is whole in each N of them (hybrid sharding, Zhao et al.
2023, arXiv 2304.11277, section 3.2.2): an all-reduce between the copies follows the reduce-scatter.

A split tensor is flat, padded to a multiple of the group, as in FSDP and Megatron's distributed optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graph_ir.errors import MeshError
from graph_ir.graph import Block, Graph, Node, Value
from graph_ir.sharding import Shard
from partitioner.mesh import MeshAxis
from partitioner.strategies import Pass
from partitioner.strategies.buckets import DATA_AXES, axis_of
from partitioner.strategy import Strategy


def _flat(value: Value, mesh_axis: MeshAxis, suffix: str = ".shard") -> Value:
    """A rank's part of a tensor."""
    size = -(-value.type.elements // mesh_axis.size)
    shard = Shard(mesh_axis.name, mesh_axis.size, mesh_axis.stride, None)
    return replace(
        value,
        name=value.name + suffix,
        type=value.type.with_shape((size,)),
        shards=(*value.shards, shard),
    )


@dataclass
class _Sharder:
    graph: Graph
    replicas: MeshAxis
    """The group of weights whose gradients are not reduced."""
    stage: int
    shard_group: int
    """Ranks that what is stored is split over; 0: the whole group."""
    prefetch: bool

    def __post_init__(self) -> None:
        self.shards: dict[Value, Value] = {}
        """Whole parameter, state or reduced gradient -> this rank's part."""
        self.updates = {n.inputs[0]: n for n in self.graph.nodes if n.phase == "optimizer"}
        self.gradients = {n.inputs[1] for n in self.updates.values()}
        self.parameters = frozenset(self.graph.parameters)
        self.units: list[dict[Value, None]] = []
        """What each repeated block of the forward pass gathers."""
        self.views = self._views()
        """Views of weights, and views of those: which node makes them."""
        self.groups: dict[Value, MeshAxis] = {}
        """The ranks that a parameter, its gradient and its states are split over."""
        for update in self.updates.values():
            reducer = self.graph.producers.get(update.inputs[1])
            group = self.replicas
            if reducer is not None and _reduces_data(reducer):
                group = axis_of(reducer)
            for value in update.inputs:
                self.groups[value] = self._sharding(group)[0]

    def _views(self) -> dict[Value, Node]:
        views: dict[Value, Node] = {}
        for node in self.graph.nodes:
            of_weights = all(v in self.parameters or v in views for v in node.inputs)
            if node.inputs and of_weights and node.definition.is_view(node):
                views.update(dict.fromkeys(node.outputs, node))
        return views

    def _sharding(self, group: MeshAxis) -> tuple[MeshAxis, MeshAxis | None]:
        """The neighbours that store a weight together, and the ranks that store the same part."""
        size = self.shard_group
        if not size or size >= group.size:
            return group, None
        if group.size % size:
            raise MeshError(
                f"--shard-group {size} does not divide the {group.size} ranks along {group.name}; "
                f"choose a divisor of {group.size}"
            )
        outer = MeshAxis(f"{group.name}_replicate", group.size // size, group.stride * size)
        return MeshAxis(group.name, size, group.stride), outer

    def run(self) -> Graph:
        nodes: list[Node] = []
        blocks: list[Block] = []
        outputs: dict[Value, Value] = {}
        for start, stop, block in self._segments():
            low = len(nodes)
            body = self.graph.nodes[start:stop]
            updates = [n for n in body if n.phase == "optimizer"]
            rest = [m for n in body if n.phase != "optimizer" for m in self._reduced(n)]
            if self.stage == 3:
                rest = self._gathered(rest, block)
            nodes += rest
            for node in updates:
                nodes += self._update(node, outputs)
            if block is not None:
                blocks.append(replace(block, start=low, stop=len(nodes)))
        if self.stage < 3:
            nodes += self._gather_updated(nodes, outputs)
        inputs = tuple(self._stored(v) for v in self.graph.inputs)
        returned = tuple(outputs.get(v, v) for v in self.graph.outputs)
        return Graph(tuple(nodes), inputs, returned, tuple(blocks), self.graph.name)

    def _segments(self) -> Iterable[tuple[int, int, Block | None]]:
        """Runs of nodes: each repeated block, and what lies between them."""
        position = 0
        for block in sorted(self.graph.blocks, key=lambda b: b.start):
            if block.start > position:
                yield position, block.start, None
            yield block.start, block.stop, block
            position = block.stop
        if position < len(self.graph.nodes):
            yield position, len(self.graph.nodes), None

    def _stored(self, value: Value) -> Value:
        if value.kind == "state":
            return self._shard(value)
        if value.kind == "parameter" and self.stage == 3:
            return self._shard(value)
        return value

    def _shard(self, value: Value) -> Value:
        if value not in self.shards:
            self.shards[value] = _flat(value, self._group(value))
        return self.shards[value]

    def _group(self, value: Value) -> MeshAxis:
        return self.groups.get(value) or self._sharding(self.replicas)[0]

    def _reduced(self, node: Node) -> list[Node]:
        """Turns the all-reduce of gradients into a reduce-scatter, and one between copies if there are."""
        if not _reduces_data(node) or not self.gradients.intersection(node.outputs):
            return [node]
        group, copies = self._sharding(axis_of(node))
        outputs = tuple(self._shard(v) for v in node.outputs)
        own = outputs
        if copies is not None:
            own = tuple(replace(v, name=f"{v.name}.term") for v in outputs)
        instances = tuple(n.replace("all_reduce", "reduce_scatter") for n in node.instances)
        # Stage 1 keeps whole gradients over the micro-batches; later stages scatter after each one.
        when = "after_accumulation" if self.stage == 1 else "every_microbatch"
        attrs = {**node.attrs, **_attrs(group, node.during), when: True}
        scatter = replace(
            node,
            name=node.name.replace("all_reduce", "reduce_scatter"),
            op="reduce_scatter",
            outputs=own,
            attrs=attrs,
            instances=instances,
        )
        if copies is None:
            return [scatter]
        attrs = {**node.attrs, **_attrs(copies, node.during)}
        return [scatter, replace(node, inputs=own, outputs=outputs, attrs=attrs)]

    def _gathered(self, body: Sequence[Node], block: Block | None) -> list[Node]:
        """Puts one all-gather of all parameters that a segment uses, per phase, before their first use.

        The backward pass of a repeated block gathers what its forward pass did, also what it does not read:
        a block's weights are one message. Where a segment goes from the end of the forward pass to the
        start of the backward pass, what it gathered is still there.
        """
        phases: dict[str, list[Node]] = {}
        turns = block is None and all(n.op not in ("send", "recv") for n in body)
        for node in body:
            during = "forward" if turns or node.during == "forward" else "backward"
            phases.setdefault(during, []).append(node)
        result: list[Node] = []
        for during, nodes in phases.items():
            nodes = self._viewed_again(nodes) if during == "backward" else nodes
            used = dict.fromkeys(v for n in nodes for v in n.inputs if v in self.parameters)
            if not used:
                result += nodes
                continue
            if block is not None and during == "forward":
                self.units.append(used)
            elif block is not None:
                for unit in self.units:
                    used |= unit if unit.keys() & used.keys() else {}
            whole = {
                v: replace(v, name=f"{v.name}.gathered.{during}", kind="intermediate") for v in used
            }
            near = next(n for n in nodes if any(v in whole for v in n.inputs))
            for group in dict.fromkeys(self._group(v) for v in used):
                members = [v for v in used if self._group(v) == group]
                attrs = {**_attrs(group, near.during), "prefetch": self.prefetch}
                result.append(
                    Node(
                        f"{near.name}.parameters.all_gather.{group.name}.{during}",
                        "all_gather",
                        tuple(self._shard(v) for v in members),
                        tuple(whole[v] for v in members),
                        attrs,
                        near.module,
                        "communication",
                        near.count,
                        tuple(f"{n}.parameters.all_gather.{group.name}" for n in near.instances),
                        near.instance_modules,
                        near.origin or near.name,
                    )
                )
            result += [replace(n, inputs=tuple(whole.get(v, v) for v in n.inputs)) for n in nodes]
        return result

    def _viewed_again(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes of a backward pass with views of their own of the weights.

        A view that the forward pass made is of what was gathered there and is gone.
        """
        made = {v for n in nodes for v in n.outputs}
        views: dict[Value, Value] = {}
        result: list[Node] = []

        def view(value: Value, near: Node) -> Value:
            if value in views or value in made or value not in self.views:
                return views.get(value, value)
            node = self.views[value]
            operands = tuple(view(v, near) for v in node.inputs)
            outputs = tuple(replace(v, name=f"{v.name}.backward") for v in node.outputs)
            views.update(zip(node.outputs, outputs, strict=True))
            again = replace(node, inputs=operands, outputs=outputs, phase="backward")
            name = f"{node.name}.backward"
            result.append(replace(again, name=name, origin=node.origin or node.name))
            return views[value]

        for node in nodes:
            operands = tuple(view(v, node) for v in node.inputs)
            result.append(node if operands == node.inputs else replace(node, inputs=operands))
        return result

    def _update(self, node: Node, outputs: dict[Value, Value]) -> list[Node]:
        """The optimizer on this rank's part of parameter, gradient and states."""
        parameter, gradient, *states = node.inputs
        before: list[Node] = []
        if gradient not in self.shards:
            # A gradient that needed no all-reduce over the group: take the own part of it.
            part = self._shard(gradient)
            before.append(self._own_part(node, gradient, part))
        own = self._shard(parameter)
        if self.stage < 3:
            own = replace(own, kind="intermediate", name=f"{parameter.name}.own")
            before.append(self._own_part(node, parameter, own))
        results = tuple(_flat(v, self._group(parameter), "") for v in node.outputs)
        outputs.update(zip(node.outputs, results, strict=True))
        operands = (own, self.shards[gradient], *(self._shard(s) for s in states))
        return [*before, replace(node, inputs=operands, outputs=results)]

    def _own_part(self, near: Node, whole: Value, part: Value) -> Node:
        """A rank's own part of a tensor that it holds whole: a view."""
        return replace(
            near,
            name=f"{part.name}.view",
            op="own_part",
            inputs=(whole,),
            outputs=(part,),
            attrs={"view": True, **_attrs(self._group(whole), near.during)},
            instances=tuple(f"{n}.view" for n in near.instances),
        )

    def _gather_updated(self, nodes: Sequence[Node], outputs: dict[Value, Value]) -> list[Node]:
        """Stages 1 and 2: the updated parameters become whole again, in one message per block."""
        groups: dict[tuple[int, MeshAxis], list[Node]] = {}
        for parameter, node in self.updates.items():
            groups.setdefault((node.count, self._group(parameter)), []).append(node)
        result: list[Node] = []
        for (count, group), members in groups.items():
            made = [outputs[n.outputs[0]] for n in members]
            whole = [replace(n.outputs[0], name=f"{n.outputs[0].name}.whole") for n in members]
            near = members[0]
            result.append(
                Node(
                    f"updated_parameters.all_gather.{group.name}.{len(result)}",
                    "all_gather",
                    tuple(made),
                    tuple(whole),
                    _attrs(group, "optimizer"),
                    "",
                    "communication",
                    count,
                    tuple(f"{n}.all_gather.{group.name}" for n in near.instances),
                    ("",) * len(near.instances),
                    near.origin,
                )
            )
            outputs.update({n.outputs[0]: w for n, w in zip(members, whole, strict=True)})
        return result


def _attrs(group: MeshAxis, during: str) -> dict[str, Any]:
    return {
        "axis": group.name,
        "group_size": group.size,
        "group_stride": group.stride,
        "during": during,
    }


def _reduces_data(node: Node) -> bool:
    """Whether it sums up what ranks with other samples or tokens found."""
    return node.op == "all_reduce" and not set(node.attrs["axis"].split("+")).isdisjoint(DATA_AXES)


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits stored state over the ranks that see other data, at the strategy's ZeRO stage."""
    if not strategy.zero:
        return graph
    replicas = strategy.mesh.axis("dp")
    return _Sharder(graph, replicas, strategy.zero, strategy.shard_group, strategy.prefetch).run()


PASS = Pass("fully_sharded", 70, apply)
