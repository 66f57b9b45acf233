"""Pipeline parallelism: the graph is cut into stages, which send activations on and gradients back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from graph_ir.errors import MeshError
from graph_ir.fold import name_pattern
from graph_ir.graph import Block, Carry, Graph, Node, Value
from graph_ir.partitioned import Stage
from partitioner.cells import Cells, Group, balanced_cuts
from partitioner.mesh import MeshAxis

NodeTime = Callable[[Node], float]


@dataclass(frozen=True)
class Held:
    """How many repetitions of a group a stage holds, and whether the first and the last are among them."""

    count: int
    first: bool
    last: bool
    offset: int = field(compare=False)
    """Index of the first one that it holds."""


class Cutter:
    """Cuts a graph between cells.

    Args:
        graph: one rank's graph, split over all other mesh axes.
        node_time: seconds of one application of a node.
        mesh_axis: the pipeline axis.
    """

    def __init__(self, graph: Graph, node_time: NodeTime, mesh_axis: MeshAxis) -> None:
        self.graph = graph
        self.mesh_axis = mesh_axis
        self.cells = Cells(graph, node_time)
        self.free = self.cells.data_free()
        self._cache: dict[tuple[object, ...], Stage] = {}

    def cut(self) -> list[Stage]:
        """The graph of each stage, in model order.

        Raises:
            MeshError: if there are too few places to cut.
        """
        borders = self.cells.borders()
        stages = self.mesh_axis.size
        cuts = balanced_cuts(self.cells.seconds, borders, stages)
        if cuts is None:
            raise MeshError(
                f"pp={stages}: {self.graph.name or 'the graph'} can be cut into at most "
                f"{len(borders) + 1} stages; the nearest that works is pp={len(borders) + 1}"
            )
        bounds = [0, *cuts, self.cells.count]
        held = [
            {g: h for g in self.cells.groups if (h := _held(g, low, high)).count}
            for low, high in itertools.pairwise(bounds)
        ]
        builders = [_StageBuilder(self, h) for h in held]
        wanted = [b.wanted for b in builders]
        sent = self._senders(held, wanted)
        result = []
        for i, builder in enumerate(builders):
            key = (tuple(held[i].items()), tuple(wanted[i]), tuple(sent[i]))
            stage = self._cache.get(key)
            if stage is None:
                label = f"cells {bounds[i]}-{bounds[i + 1] - 1}"
                stage = self._cache[key] = Stage(builder.build(sent[i]), label)
            result.append(stage)
        return result

    def _senders(
        self, held: Sequence[dict[Group, Held]], wanted: Sequence[Sequence[tuple[Value, str]]]
    ) -> list[list[tuple[Value, str]]]:
        """What each stage sends: for every wanted value, the nearest stage upstream that has it."""
        sent: list[dict[tuple[Value, str], None]] = [{} for _ in held]
        for reader, values in enumerate(wanted):
            for value, during in values:
                group = self.cells.group_of[self.graph.producers[value]]
                owners = [i for i, h in enumerate(held) if group in h and i != reader]
                upstream = [i for i in owners if (i < reader) == (during == "forward")]
                nearest = min(upstream or owners, key=lambda i: abs(i - reader))
                sent[nearest].setdefault((value, during))
        return [list(s) for s in sent]


def _held(group: Group, low: int, high: int) -> Held:
    first, stop = group.first_cell, group.first_cell + group.count
    a, b = max(first, low), min(stop, high)
    return Held(max(0, b - a), a == first, b == stop, a - first)


class _StageBuilder:
    """Builds the graph of one stage."""

    def __init__(self, cutter: Cutter, held: dict[Group, Held]) -> None:
        self.cutter = cutter
        self.graph = cutter.graph
        self.held = held
        self.kept = [n for n in self.graph.nodes if cutter.cells.group_of[n] in held]

    def _holds_end(self, node: Node) -> bool:
        """Whether the stage holds the repetition whose result is what the block leaves behind."""
        block = self.graph.block_of.get(node)
        if block is None:
            return True
        held = self.held[self.cutter.cells.group_of[node]]
        return held.last if node.during == "forward" else held.first

    def _holds_start(self, block: Block) -> bool:
        node = self.graph.nodes[block.start]
        held = self.held[self.cutter.cells.group_of[node]]
        return held.first if node.during == "forward" else held.last

    def _available(self, value: Value, reader: Node) -> bool:
        producer = self.graph.producers.get(value)
        if producer is None:
            return True
        if self.cutter.cells.group_of[producer] not in self.held:
            return False
        same = self.graph.block_of.get(producer) is self.graph.block_of.get(reader)
        # What a forward repetition saved is read by its own backward repetition.
        saved = (
            producer.during == "forward"
            and reader.during != "forward"
            and producer.count == reader.count
        )
        return same or saved or self._holds_end(producer)

    @cached_property
    def wanted(self) -> list[tuple[Value, str]]:
        """Values that come from another stage, and in which pass."""
        found: dict[tuple[Value, str], None] = {}
        for block in self.graph.blocks:
            node = self.graph.nodes[block.start]
            if self.cutter.cells.group_of[node] not in self.held:
                continue
            during = "forward" if node.during == "forward" else "backward"
            for carry in block.carries:
                if not self._holds_start(block):
                    found.setdefault((carry.result, during))
                elif not self._available(carry.initial, replace(node, count=1)):
                    found.setdefault((carry.initial, during))
        for node in self.kept:
            if node.phase == "optimizer":
                continue
            during = "forward" if node.during == "forward" else "backward"
            for value in node.inputs:
                if value.kind != "carried" and not self._available(value, node):
                    # A backward node reads what its own stage received in the forward pass.
                    producer = self.graph.producers[value]
                    pass_ = "forward" if producer.during == "forward" else during
                    found.setdefault((value, pass_))
        return [key for key in found if key[0] not in self.cutter.free]

    def build(self, sent: Sequence[tuple[Value, str]]) -> Graph:
        """The stage's graph, with `recv` and `send` nodes at its borders."""
        rename: dict[Value, Value] = {}
        nodes: list[Node] = []
        blocks: list[Block] = []
        wanted = self.wanted
        received: dict[Value, Value] = {}
        nodes += self._free_nodes()
        kept = set(self.kept).difference(nodes)
        nodes += self._receive(wanted, "forward", received)
        sends = {d: [v for v, during in sent if during == d] for d in ("forward", "backward")}
        turned = False
        optimizer: list[Node] = []
        for start, stop, block in self._segments():
            body = [n for n in self.graph.nodes[start:stop] if n in kept]
            if not body:
                continue
            if body[0].phase == "optimizer":
                optimizer += [self._local(n, rename, received) for n in body]
                continue
            if not turned and body[0].during != "forward":
                turned = True
                nodes += self._send(sends["forward"], rename, "forward")
                nodes += self._receive(wanted, "backward", received)
            low = len(nodes)
            entry: list[tuple[Carry, Value]] = []
            if block is not None:
                entry = [(c, self._entering(c, block, rename, received)) for c in block.carries]
                held = self.held[self.cutter.cells.group_of[body[0]]]
                for carry in block.carries:
                    rename[carry.argument] = replace(carry.argument, count=held.count)
            nodes += [self._local(n, rename, received) for n in body]
            if block is not None:
                carries = tuple(
                    Carry(rename[c.argument], initial, rename[c.result]) for c, initial in entry
                )
                collected = frozenset(rename[v] for v in block.collected)
                blocks.append(Block(low, len(nodes), held.count, carries, collected))
        if not turned:
            nodes += self._send(sends["forward"], rename, "forward")
        nodes += self._send(sends["backward"], rename, "backward")
        nodes += optimizer
        read = {v for n in nodes for v in n.inputs} | {c.initial for b in blocks for c in b.carries}
        inputs = tuple(
            dict.fromkeys(rename.get(v, v) for v in self.graph.inputs if rename.get(v, v) in read)
        )
        outputs = tuple(rename[v] for v in self.graph.outputs if v in rename)
        return Graph(tuple(nodes), inputs, outputs, tuple(blocks), self.graph.name)

    def _free_nodes(self) -> list[Node]:
        """Nodes that compute data-free values which this stage reads, wherever they stood."""
        free = self.cutter.free
        needed = {v for n in self.kept for v in n.inputs if v in free}
        needed |= {c.initial for b in self.graph.blocks for c in b.carries if c.initial in free}
        nodes = []
        for node in reversed(self.graph.nodes):
            if node.during != "forward" or node in self.graph.block_of:
                continue
            if free.issuperset(node.outputs) and needed.intersection(node.outputs):
                needed.update(node.inputs)
                nodes.append(node)
        return nodes[::-1]

    def _segments(self) -> Iterable[tuple[int, int, Block | None]]:
        position = 0
        blocks = {b.start: b for b in self.graph.blocks}
        while position < len(self.graph.nodes):
            block = blocks.get(position)
            stop = block.stop if block else position + 1
            yield position, stop, block
            position = stop

    def _entering(
        self, carry: Carry, block: Block, rename: dict[Value, Value], received: dict[Value, Value]
    ) -> Value:
        if not self._holds_start(block):
            return received[carry.result]
        if carry.initial in received:
            return received[carry.initial]
        return rename.get(carry.initial, carry.initial)

    def _local(self, node: Node, rename: dict[Value, Value], received: dict[Value, Value]) -> Node:
        """The node with this stage's number of repetitions and its operands."""
        held = self.held[self.cutter.cells.group_of[node]]
        count = held.count if node.count > 1 else 1
        operands = []
        for value in node.inputs:
            if value in received and not self._available(value, node):
                operands.append(received[value])
                continue
            if value not in rename and value.count > 1 and value not in self.graph.producers:
                rename[value] = replace(value, count=count)
            operands.append(rename.get(value, value))
        outputs = []
        for value in node.outputs:
            if value.count != count:
                rename[value] = replace(value, count=count)
            else:
                rename[value] = value
            outputs.append(rename[value])
        local = replace(node, inputs=tuple(operands), outputs=tuple(outputs))
        if count == node.count:
            return local
        own = slice(held.offset, held.offset + count)
        instances, modules = node.instances[own], node.instance_modules[own]
        return replace(
            local,
            name=name_pattern(instances) if instances else node.name,
            module=name_pattern(modules) if modules else node.module,
            count=count,
            instances=instances if count > 1 else (),
            instance_modules=modules if count > 1 else (),
        )

    def _receive(
        self, wanted: Sequence[tuple[Value, str]], during: str, received: dict[Value, Value]
    ) -> list[Node]:
        nodes = []
        for value, when in wanted:
            if when != during or value in received:
                continue
            local = replace(value, name=f"{value.name}.received", kind="intermediate", count=1)
            received[value] = local
            nodes.append(self._transfer("recv", (), (local,), value, during))
        return nodes

    def _send(self, values: Sequence[Value], rename: dict[Value, Value], during: str) -> list[Node]:
        return [self._transfer("send", (rename[v],), (), v, during) for v in values if v in rename]

    def _transfer(
        self,
        op: str,
        inputs: tuple[Value, ...],
        outputs: tuple[Value, ...],
        value: Value,
        during: str,
    ) -> Node:
        attrs = {
            "axis": self.cutter.mesh_axis.name,
            "group_size": 2,
            "group_stride": self.cutter.mesh_axis.stride,
            "during": during,
        }
        producer = self.graph.producers[value]
        return Node(
            f"{value.name}.{op}", op, inputs, outputs, attrs, producer.module, "communication"
        )
