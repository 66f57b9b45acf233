"""The graph of one pipeline stage: its part of the nodes, with `recv` and `send` at its borders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graph_ir.fold import name_pattern
from graph_ir.graph import Block, Carry, Graph, Node, Value
from partitioner.cells import Group
from partitioner.stage_part import Held, StagePart
from partitioner.transfers import Transfer


class StageBuilder:
    """Builds the graph of one stage.

    Args:
        part: what the stage holds.
        held: the same, with where in the whole model it stands.
    """

    def __init__(self, part: StagePart, held: Mapping[Group, Held]) -> None:
        self.part = part
        self.cells = part.cells
        self.graph = part.graph
        self.held = held
        self.names: dict[str, str] = {}
        """What nodes of repeated layers are called here, by their names in the whole graph."""
        self._patterns: dict[tuple[str, str], str] = {}

    def build(self, received: Sequence[Transfer], sent: Sequence[Transfer]) -> Graph:
        """The stage's graph.

        Args:
            received: what other stages send, in the order of `wanted`.
            sent: what other stages want.
        """
        rename: dict[Value, Value] = {
            v: v.altered(role="shared") for v in self.graph.inputs if v in self.part.elsewhere
        }
        nodes: list[Node] = []
        blocks: list[Block] = []
        known: dict[Value, Value] = {}
        nodes += self._free_nodes()
        kept = set(self.part.kept).difference(nodes)
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
                    rename[carry.argument] = carry.argument.altered(count=held.count)
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
            if carry.result in self.part.summed:
                start = carry.initial.altered(name=f"{carry.result.name}.zeros", count=1)
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
        for exchange in self.part.exchanges:
            weight = exchange.weight
            *_, update = weight.tail
            like = update.altered(attrs={}, phase="backward")
            own, *others = (rename[t] for t in weight.terms if t in rename)
            for i, term in enumerate(others):
                name = f"{weight.parameter.name}.grad.accumulate.{i}"
                total = weight.total.altered(name=name, count=1)
                sums.append(like.altered(name=name, op="add", inputs=(own, term), outputs=(total,)))
                own = total
            name = f"{weight.parameter.name}.grad.all_reduce.{exchange.group['axis']}"
            total = weight.total.altered(name=name, count=1)
            group = {**exchange.group, "during": "backward"}
            exchanges.append(
                like.altered(
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
                rest.append(node.altered(inputs=inputs))
                rename.update((v, v) for v in node.outputs)
        # Collectives before updates, so that they can be joined into one message.
        return [*sums, *exchanges, *sorted(rest, key=lambda n: n.phase == "optimizer")]

    def _free_nodes(self) -> list[Node]:
        """Nodes that compute data-free values which this stage reads, wherever they stood."""
        free = self.cells.data_free
        needed = {v for n in self.part.kept for v in n.inputs if v in free}
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
        if carry.result in self.part.summed or not self.part.holds_start(block):
            return received[carry.result]
        if carry.initial in received and not self.part.has_initial(block, carry):
            return received[carry.initial]
        return rename.get(carry.initial, carry.initial)

    def _local(self, node: Node, rename: dict[Value, Value], received: dict[Value, Value]) -> Node:
        """The node with this stage's number of repetitions and its operands."""
        held = self.held[self.cells.group_of[node]]
        count = held.count if node.count > 1 else 1
        operands = []
        for value in node.inputs:
            if value in received and not self.part.has(value, node):
                operands.append(received[value])
                continue
            if value not in rename and value.count > 1 and value not in self.graph.producers:
                rename[value] = value.altered(count=count)
            operands.append(rename.get(value, value))
        outputs = []
        for value in node.outputs:
            rename[value] = value if value.count == count else value.altered(count=count)
            outputs.append(rename[value])
        changes: dict[str, Any] = {"inputs": tuple(operands), "outputs": tuple(outputs)}
        if node.origin in self.names:
            changes["origin"] = self.names[node.origin]
        if count == node.count:
            return node.altered(**changes)
        own = slice(held.offset, held.offset + count)
        instances, modules = node.instances[own], node.instance_modules[own]
        if instances:
            changes["name"] = self.names[node.name] = self._run_name(instances)
        if modules:
            changes["module"] = self._run_name(modules)
        changes["count"] = count
        changes["instances"] = instances if count > 1 else ()
        changes["instance_modules"] = modules if count > 1 else ()
        return node.altered(**changes)

    def _run_name(self, names: Sequence[str]) -> str:
        """One name for a run of repetitions, which the first and the last one tell."""
        ends = names[0], names[-1]
        found = self._patterns.get(ends)
        if found is None:
            found = self._patterns[ends] = ends[0] if len(names) == 1 else name_pattern(ends)
        return found

    def _receive(
        self, transfers: Sequence[Transfer], during: str, known: dict[Value, Value]
    ) -> list[Node]:
        nodes = []
        for transfer in transfers:
            value = transfer.value
            if transfer.during == during and value not in known:
                name = f"{value.name}.received"
                local = value.altered(name=name, kind="intermediate", count=1)
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
