"""The graph of one pipeline stage: its part of the nodes, with `recv` and `send` at its borders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from graph_ir.fold import name_pattern
from graph_ir.graph import Block, Carry, Graph, Node, Value
from partitioner.cells import Cells, Group
from partitioner.shared_weights import SharedWeight


@dataclass(frozen=True)
class Held:
    """How many repetitions of a group a stage holds, and whether the first and the last are among them."""

    count: int
    first: bool
    last: bool
    offset: int = field(compare=False)
    """Index of the first one that it holds."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """A value that one stage sends to another."""

    value: Value
    during: str
    source: int
    target: int
    group: dict[str, Any]
    """Mesh axis, size and stride; of size 1 where both stages lie on the same rank."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for transfers that look the same from one of their stages."""
        return (self.value, self.during, *self.group.values())


@dataclass(frozen=True, eq=False)
class Exchange:
    """A weight that several ranks hold, and the group that sums up its gradient."""

    weight: SharedWeight
    group: dict[str, Any]


class StageBuilder:
    """Builds the graph of one stage.

    Args:
        cells: of the whole graph.
        held: which repetitions of which groups the stage holds.
        exchanges: of every weight that several ranks hold, by whether this stage takes part.
        elsewhere: weights that the same rank holds for another of its stages.
    """

    def __init__(
        self,
        cells: Cells,
        held: dict[Group, Held],
        exchanges: Sequence[tuple[Exchange, bool]],
        elsewhere: frozenset[Value],
    ) -> None:
        self.cells = cells
        self.graph = cells.graph
        self.held = held
        self.elsewhere = elsewhere
        self.exchanges = [e for e, takes_part in exchanges if takes_part]
        apart = {n for e, _ in exchanges for n in (*e.weight.sums, *e.weight.tail)}
        self.summed = {t for e, _ in exchanges for t in e.weight.terms}
        self.names: dict[str, str] = {}
        """What nodes of repeated layers are called here, by their names in the whole graph."""
        self.entries = {c.initial for b in self.graph.blocks for c in b.carries}
        self.kept = [n for n in self.graph.nodes if self._holds(n) and n not in apart]
        self.made = {v for n in self.kept for v in n.outputs}

    def _holds(self, node: Node) -> bool:
        """Whether a node, or repetitions of it, belong to the stage."""
        group = self.cells.group_of[node]
        held = self.held.get(group)
        if held is None:
            return False
        if group.count == 1 or node.count > 1 or node in self.graph.block_of:
            return True
        # Beside a repeated layer's backward pass: what it begins with, or what is made of its result.
        return held.last if self.entries.intersection(node.outputs) else held.first

    def _holds_end(self, node: Node) -> bool:
        """Whether the stage holds the repetition whose result is what the block leaves behind."""
        block = self.graph.block_of.get(node)
        if block is None:
            return True
        held = self.held[self.cells.group_of[node]]
        return held.last if node.during == "forward" else held.first

    def _holds_start(self, block: Block) -> bool:
        node = self.graph.nodes[block.start]
        held = self.held[self.cells.group_of[node]]
        return held.first if node.during == "forward" else held.last

    def _available(self, value: Value, reader: Node) -> bool:
        producer = self.graph.producers.get(value)
        if producer is None:
            return True
        if value not in self.made:
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
            if self.cells.group_of[node] not in self.held:
                continue
            during = "forward" if node.during == "forward" else "backward"
            for carry in block.carries:
                if carry.result in self.summed:
                    continue
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
        return [key for key in found if key[0] not in self.cells.data_free]

    def build(self, received: Sequence[Transfer], sent: Sequence[Transfer]) -> Graph:
        """The stage's graph.

        Args:
            received: what other stages send, in the order of `wanted`.
            sent: what other stages want.
        """
        rename: dict[Value, Value] = {
            v: replace(v, role="shared") for v in self.graph.inputs if v in self.elsewhere
        }
        nodes: list[Node] = []
        blocks: list[Block] = []
        known: dict[Value, Value] = {}
        nodes += self._free_nodes()
        kept = set(self.kept).difference(nodes)
        nodes += self._receive(received, "forward", known)
        turned = False
        optimizer: list[Node] = []
        for start, stop, block in self._segments():
            body = [n for n in self.graph.nodes[start:stop] if n in kept]
            if not body:
                continue
            if body[0].phase == "optimizer":
                optimizer += [self._local(n, rename, known) for n in body]
                continue
            if not turned and body[0].during != "forward":
                turned = True
                nodes += self._send(sent, rename, known, "forward")
                nodes += self._receive(received, "backward", known)
            entry: list[tuple[Carry, Value]] = []
            if block is not None:
                nodes += self._zeros(block, known)
                entry = [(c, self._entering(c, block, rename, known)) for c in block.carries]
                held = self.held[self.cells.group_of[body[0]]]
                for carry in block.carries:
                    rename[carry.argument] = replace(carry.argument, count=held.count)
            low = len(nodes)
            nodes += [self._local(n, rename, known) for n in body]
            if block is not None:
                carries = tuple(
                    Carry(rename[c.argument], initial, rename[c.result]) for c, initial in entry
                )
                collected = frozenset(rename[v] for v in block.collected)
                blocks.append(Block(low, len(nodes), held.count, carries, collected))
        if not turned:
            nodes += self._send(sent, rename, known, "forward")
        nodes += self._send(sent, rename, known, "backward")
        nodes += self._exchanged(rename)
        nodes += optimizer
        read = {v for n in nodes for v in n.inputs} | {c.initial for b in blocks for c in b.carries}
        inputs = tuple(
            dict.fromkeys(rename.get(v, v) for v in self.graph.inputs if rename.get(v, v) in read)
        )
        outputs = tuple(rename[v] for v in self.graph.outputs if v in rename)
        return Graph(tuple(nodes), inputs, outputs, tuple(blocks), self.graph.name)

    def _zeros(self, block: Block, known: dict[Value, Value]) -> list[Node]:
        """What a stage's own sum over its copies of a shared weight begins with."""
        nodes = []
        for carry in block.carries:
            if carry.result in self.summed:
                start = replace(carry.initial, name=f"{carry.result.name}.zeros", count=1)
                known[carry.result] = start
                near = self.graph.nodes[block.start]
                nodes.append(
                    Node(
                        start.name,
                        "fill",
                        (),
                        (start,),
                        {"value": 0.0},
                        phase="backward",
                        origin=near.origin,
                    )
                )
        return nodes

    def _exchanged(self, rename: dict[Value, Value]) -> list[Node]:
        """Sums up the stage's terms of shared weights' gradients, then those of all stages; updates."""
        sums: list[Node] = []
        exchanges: list[Node] = []
        rest: list[Node] = []
        for exchange in self.exchanges:
            weight = exchange.weight
            *_, update = weight.tail
            like = replace(update, attrs={}, phase="backward")
            own, *others = (rename[t] for t in weight.terms if t in rename)
            for i, term in enumerate(others):
                name = f"{weight.parameter.name}.grad.accumulate.{i}"
                total = replace(weight.total, name=name, count=1)
                sums.append(
                    replace(like, name=name, op="add", inputs=(own, term), outputs=(total,))
                )
                own = total
            name = f"{weight.parameter.name}.grad.all_reduce.{exchange.group['axis']}"
            total = replace(weight.total, name=name, count=1)
            group = {**exchange.group, "during": "backward"}
            exchanges.append(
                replace(
                    like,
                    name=name,
                    op="all_reduce",
                    inputs=(own,),
                    outputs=(total,),
                    attrs=group,
                    phase="communication",
                )
            )
            for node in weight.tail:
                inputs = tuple(
                    total if v is weight.total else rename.get(v, v) for v in node.inputs
                )
                rest.append(replace(node, inputs=inputs))
                rename.update((v, v) for v in node.outputs)
        # Collectives before updates, so that they can be joined into one message.
        return [*sums, *exchanges, *sorted(rest, key=lambda n: n.phase == "optimizer")]

    def _free_nodes(self) -> list[Node]:
        """Nodes that compute data-free values which this stage reads, wherever they stood."""
        free = self.cells.data_free
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
        if carry.result in self.summed or not self._holds_start(block):
            return received[carry.result]
        near = replace(self.graph.nodes[block.start], count=1)
        if carry.initial in received and not self._available(carry.initial, near):
            return received[carry.initial]
        return rename.get(carry.initial, carry.initial)

    def _local(self, node: Node, rename: dict[Value, Value], received: dict[Value, Value]) -> Node:
        """The node with this stage's number of repetitions and its operands."""
        held = self.held[self.cells.group_of[node]]
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
        origin = self.names.get(node.origin, node.origin)
        local = replace(node, inputs=tuple(operands), outputs=tuple(outputs), origin=origin)
        if count == node.count:
            return local
        own = slice(held.offset, held.offset + count)
        instances, modules = node.instances[own], node.instance_modules[own]
        name = name_pattern(list(instances)) if instances else node.name
        self.names[node.name] = name
        return replace(
            local,
            name=name,
            module=name_pattern(list(modules)) if modules else node.module,
            count=count,
            instances=instances if count > 1 else (),
            instance_modules=modules if count > 1 else (),
        )

    def _receive(
        self, transfers: Sequence[Transfer], during: str, known: dict[Value, Value]
    ) -> list[Node]:
        nodes = []
        for transfer in transfers:
            value = transfer.value
            if transfer.during == during and value not in known:
                name = f"{value.name}.received"
                local = replace(value, name=name, kind="intermediate", count=1)
                known[value] = local
                nodes.append(self._transfer("recv", (), (local,), transfer))
        return nodes

    def _send(
        self,
        transfers: Sequence[Transfer],
        rename: dict[Value, Value],
        known: dict[Value, Value],
        during: str,
    ) -> list[Node]:
        """Sends what the stage made, or passes on what it received."""
        return [
            self._transfer("send", (rename.get(t.value) or known[t.value],), (), t)
            for t in transfers
            if t.during == during
        ]

    def _transfer(
        self, op: str, inputs: tuple[Value, ...], outputs: tuple[Value, ...], transfer: Transfer
    ) -> Node:
        value = transfer.value
        attrs = {**transfer.group, "during": transfer.during}
        producer = self.graph.producers[value]
        return Node(
            f"{value.name}.{op}", op, inputs, outputs, attrs, producer.module, "communication"
        )
