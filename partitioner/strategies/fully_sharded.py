"""ZeRO and FSDP: what is stored is split over the data-parallel group.

Stage 1 splits the optimizer's states: gradients are reduce-scattered, every rank updates its part, and
the updated parameters are gathered. Stage 2 also keeps only the reduced part of the gradients, and
therefore reduces after every micro-batch. Stage 3 stores parameters split as well, and gathers them before
the forward and again before the backward pass of the block that needs them (Rajbhandari et al. 2020,
arXiv 1910.02054, section 5).

A split tensor is flat, padded to a multiple of the group, as in FSDP and Megatron's distributed optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graph_ir.graph import Block, Graph, Node, Value
from partitioner.mesh import MeshAxis
from partitioner.strategies import Pass
from partitioner.strategy import Strategy


def _flat(value: Value, parts: int, suffix: str = ".shard") -> Value:
    """A rank's part of a tensor."""
    size = -(-value.type.elements // parts)
    return replace(value, name=value.name + suffix, type=value.type.with_shape((size,)))


@dataclass
class _Sharder:
    graph: Graph
    mesh_axis: MeshAxis
    stage: int

    def __post_init__(self) -> None:
        self.parts = self.mesh_axis.size
        self.shards: dict[Value, Value] = {}
        """Whole parameter, state or reduced gradient -> this rank's part."""
        self.updates = {n.inputs[0]: n for n in self.graph.nodes if n.phase == "optimizer"}
        self.gradients = {n.inputs[1] for n in self.updates.values()}

    def run(self) -> Graph:
        for parameter in self.graph.parameters:
            self.shards[parameter] = _flat(parameter, self.parts)
        nodes: list[Node] = []
        blocks: list[Block] = []
        outputs: dict[Value, Value] = {}
        for start, stop, block in self._segments():
            low = len(nodes)
            body = self.graph.nodes[start:stop]
            updates = [n for n in body if n.phase == "optimizer"]
            rest = [self._reduced(n) for n in body if n.phase != "optimizer"]
            if self.stage == 3:
                rest = self._gathered(rest)
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
            self.shards[value] = _flat(value, self.parts)
        return self.shards[value]

    def _attrs(self, during: str) -> dict[str, Any]:
        axis = self.mesh_axis
        return {
            "axis": axis.name,
            "group_size": axis.size,
            "group_stride": axis.stride,
            "during": during,
        }

    def _reduced(self, node: Node) -> Node:
        """Turns the all-reduce of gradients into a reduce-scatter."""
        if node.op != "all_reduce" or not self.gradients.intersection(node.outputs):
            return node
        outputs = tuple(self._shard(v) for v in node.outputs)
        name = node.name.replace("all_reduce", "reduce_scatter")
        instances = tuple(n.replace("all_reduce", "reduce_scatter") for n in node.instances)
        # Stage 1 keeps whole gradients over the micro-batches; later stages scatter after each one.
        when = "after_accumulation" if self.stage == 1 else "every_microbatch"
        return replace(
            node,
            name=name,
            op="reduce_scatter",
            outputs=outputs,
            attrs={**node.attrs, when: True},
            instances=instances,
        )

    def _gathered(self, body: Sequence[Node]) -> list[Node]:
        """Puts one all-gather of all parameters that a segment uses, per phase, before their first use."""
        result: list[Node] = []
        phases: dict[str, list[Node]] = {}
        for node in body:
            phases.setdefault("forward" if node.during == "forward" else "backward", []).append(
                node
            )
        for during, nodes in phases.items():
            used = dict.fromkeys(v for n in nodes for v in n.inputs if v in self.graph.parameters)
            if not used:
                result += nodes
                continue
            whole = {
                v: replace(v, name=f"{v.name}.gathered.{during}", kind="intermediate") for v in used
            }
            near = next(n for n in nodes if any(v in whole for v in n.inputs))
            gather = Node(
                f"{near.name}.parameters.all_gather.{self.mesh_axis.name}",
                "all_gather",
                tuple(self._shard(v) for v in used),
                tuple(whole.values()),
                {**self._attrs(during), "prefetch": True},
                near.module,
                "communication",
                near.count,
                tuple(f"{n}.parameters.all_gather" for n in near.instances),
                near.instance_modules,
                near.origin or near.name,
            )
            result.append(gather)
            result += [replace(n, inputs=tuple(whole.get(v, v) for v in n.inputs)) for n in nodes]
        return result

    def _update(self, node: Node, outputs: dict[Value, Value]) -> list[Node]:
        """The optimizer on this rank's part of parameter, gradient and states."""
        parameter, gradient, *states = node.inputs
        before: list[Node] = []
        if gradient not in self.shards:
            # A gradient that needed no all-reduce over this axis: take the own part of it.
            part = self._shard(gradient)
            before.append(_slice_of(node, gradient, part))
        own = self._shard(parameter)
        if self.stage < 3:
            own = replace(own, kind="intermediate", name=f"{parameter.name}.own")
            before.append(_slice_of(node, parameter, own))
        results = tuple(_flat(v, self.parts, "") for v in node.outputs)
        outputs.update(zip(node.outputs, results, strict=True))
        operands = (own, self.shards[gradient], *(self._shard(s) for s in states))
        return [*before, replace(node, inputs=operands, outputs=results)]

    def _gather_updated(self, nodes: Sequence[Node], outputs: dict[Value, Value]) -> list[Node]:
        """Stages 1 and 2: the updated parameters become whole again, in one message per block."""
        groups: dict[int, list[Node]] = {}
        for node in self.updates.values():
            groups.setdefault(node.count, []).append(node)
        result: list[Node] = []
        for count, members in groups.items():
            made = [outputs[n.outputs[0]] for n in members]
            whole = [replace(n.outputs[0], name=f"{n.outputs[0].name}.whole") for n in members]
            near = members[0]
            result.append(
                Node(
                    f"updated_parameters.all_gather.{self.mesh_axis.name}.{len(result)}",
                    "all_gather",
                    tuple(made),
                    tuple(whole),
                    self._attrs("optimizer"),
                    "",
                    "communication",
                    count,
                    tuple(f"{n}.all_gather" for n in near.instances),
                    ("",) * len(near.instances),
                    near.origin,
                )
            )
            outputs.update({n.outputs[0]: w for n, w in zip(members, whole, strict=True)})
        return result


def _slice_of(near: Node, whole: Value, part: Value) -> Node:
    """A rank's own part of a flat tensor: a view."""
    return replace(
        near,
        name=f"{part.name}.view",
        op="own_part",
        inputs=(whole,),
        outputs=(part,),
        attrs={"view": True},
        instances=tuple(f"{n}.view" for n in near.instances),
    )


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits stored state over the mesh axis `dp`, at the strategy's ZeRO stage."""
    if not strategy.zero:
        return graph
    return _Sharder(graph, strategy.mesh.axis("dp"), strategy.zero).run()


PASS = Pass("fully_sharded", 70, apply)
