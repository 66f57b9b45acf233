"""Finds the blocks a model repeats and keeps each once.

A run of nodes is a repeated block if it is followed by copies of itself: the same operators on the same
types, wired alike, where each copy has weights of its own and reads either what all copies share or what
the copy before it produced. No name is looked at, so the layers of an ONNX file fold as those of a module.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from graph_ir.graph import Block, Carry, Graph, Node, Value

_NUMBER = re.compile(r"(\d+)")
MIN_NODES_SAVED = 2


def name_pattern(names: Sequence[str]) -> str:
    """One name for many: `layers.0.fc`, `layers.1.fc` -> `layers.[0-1].fc`."""
    parts = [_NUMBER.split(name) for name in names]
    if len({len(p) for p in parts}) != 1:
        return names[0]
    joined = []
    for column in zip(*parts, strict=True):
        if len(set(column)) == 1:
            joined.append(column[0])
        elif all(c.isdigit() for c in column):
            joined.append(f"[{column[0]}-{column[-1]}]")
        else:
            return names[0]
    return "".join(joined)


@dataclass(frozen=True)
class _Run:
    """`count` copies of `period` nodes from index `start` on."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count


@dataclass
class _Wiring:
    """How the copies of a run hang together."""

    carries: dict[tuple[Value, Value], None]
    """(what the first copy reads, what the first copy produces for the second), in order."""
    stacked: dict[Value, int]
    """Inputs of the first copy that stand for one per copy."""
    slots: dict[tuple[int, int], tuple[Value, Value]]
    """(node offset, operand index) -> its carry."""
    collected: set[Value]


class _Folder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = graph.nodes
        ids: dict[object, int] = {}
        self.signature = [ids.setdefault(node.signature, len(ids)) for node in graph.nodes]
        self.place = {v: (i, k) for i, n in enumerate(graph.nodes) for k, v in enumerate(n.outputs)}
        self.reads: dict[Value, list[int]] = defaultdict(list)
        for i, node in enumerate(graph.nodes):
            for value in node.inputs:
                self.reads[value].append(i)
        self.returned = set(graph.outputs)

    def runs(self, low: int, high: int) -> list[tuple[_Run, _Wiring]]:
        """Disjoint foldable runs among nodes low..high, in order."""
        for run in self._candidates(low, high):
            found = self._align(run)
            if found is not None:
                return [
                    *self.runs(low, found[0].start),
                    found,
                    *self.runs(found[0].stop, high),
                ]
        return []

    def _candidates(self, low: int, high: int) -> Iterator[_Run]:
        """Longest runs of equal signatures at a fixed distance, those that save most nodes first."""
        positions: dict[int, list[int]] = defaultdict(list)
        for i in range(low, high):
            positions[self.signature[i]].append(i)
        votes: Counter[int] = Counter()
        for places in positions.values():
            for a, b in itertools.pairwise(places):
                votes[b - a] += 1
            steps = {b - a for a, b in itertools.pairwise(places)}
            # An operator that occurs several times per layer repeats at the sum of its distances.
            if 1 < len(steps) <= 16 and len(places) > 4:
                for width in range(2, min(len(places) // 2, 16)):
                    total = Counter(
                        b - a for a, b in zip(places, places[width:], strict=False)
                    ).most_common(1)[0]
                    votes[total[0]] += total[1]
        found: list[_Run] = []
        for period, _ in votes.most_common(48):
            start = None
            for i in range(low, high - period + 1):
                same = i + period < high and self.signature[i] == self.signature[i + period]
                if same and start is None:
                    start = i
                elif not same and start is not None:
                    length = i - start + period
                    if length // period >= 2:
                        found.append(_Run(start, period, length // period))
                    start = None
        saved = sorted(found, key=lambda r: (r.count - 1) * r.period, reverse=True)
        for run in saved:
            if (run.count - 1) * run.period >= MIN_NODES_SAVED:
                yield run

    def _align(self, run: _Run) -> tuple[_Run, _Wiring] | None:
        """Rotates a run to the cut that hands on the fewest bytes, and checks the wiring."""
        best: tuple[tuple[int, int], _Run, _Wiring] | None = None
        limit = run.start
        while (
            limit + run.period * run.count < len(self.nodes)
            and self.signature[limit] == self.signature[limit + run.period * (run.count - 1)]
            and limit < run.start + run.period - 1
        ):
            limit += 1
        for start in range(run.start, min(limit, run.start + run.period - 1) + 1):
            for count in (run.count, run.count - 1):
                if count < 2:
                    continue
                aligned = _Run(start, run.period, count)
                if not self._equal(aligned):
                    continue
                wiring = self._wiring(aligned)
                if wiring is None:
                    continue
                handed = sum(result.type.bytes for _, result in wiring.carries)
                rank = (count * -run.period, handed)
                if best is None or rank < best[0]:
                    best = (rank, aligned, wiring)
                break
        return None if best is None else best[1:]

    def _equal(self, run: _Run) -> bool:
        if run.stop > len(self.nodes):
            return False
        s, p = self.signature, run.period
        return all(
            s[run.start + i] == s[run.start + k * p + i]
            for k in range(1, run.count)
            for i in range(p)
        )

    def _wiring(self, run: _Run) -> _Wiring | None:
        """How the copies are wired, or None if they are not wired alike."""
        wiring = _Wiring({}, {}, {}, set())
        for offset in range(run.period):
            for slot in range(len(self.nodes[run.start + offset].inputs)):
                if not self._slot(run, offset, slot, wiring):
                    return None
        if not self._outputs_stay(run, wiring):
            return None
        return wiring

    def _slot(self, run: _Run, offset: int, slot: int, wiring: _Wiring) -> bool:
        values = [
            self.nodes[run.start + k * run.period + offset].inputs[slot] for k in range(run.count)
        ]
        first, second = values[0], values[1]
        if all(v is first for v in values):
            return first not in self.place or self.place[first][0] < run.start
        if first not in self.place and second not in self.place:
            return self._stack(run, values, wiring)
        if second not in self.place:
            return False
        index, output = self.place[second]
        copy = (index - run.start) // run.period
        relative = all(
            self.place.get(values[k]) == (index + (k - 1) * run.period, output)
            for k in range(1, run.count)
        )
        if not relative:
            return False
        if copy == 1 and run.start <= index < run.stop:
            return self.place.get(first) == (index - run.period, output)
        if copy != 0 or index < run.start:
            return False
        if first in self.place and self.place[first][0] >= run.start:
            return False
        key = (first, second)
        wiring.carries.setdefault(key)
        wiring.slots[offset, slot] = key
        return True

    def _stack(self, run: _Run, values: list[Value], wiring: _Wiring) -> bool:
        """Weights of each copy: distinct inputs that only their own copy reads."""
        if len(set(values)) != len(values) or len({v.kind for v in values}) != 1:
            return False
        for k, value in enumerate(values):
            low = run.start + k * run.period
            if any(not low <= i < low + run.period for i in self.reads[value]):
                return False
            if value in self.returned:
                return False
        return wiring.stacked.setdefault(values[0], id(values[1])) == id(values[1])

    def _outputs_stay(self, run: _Run, wiring: _Wiring) -> bool:
        """What a copy produces is read by itself and the next copy; the last one's by anyone."""
        handed = {result for _, result in wiring.carries}
        for offset in range(run.period):
            for output, value in enumerate(self.nodes[run.start + offset].outputs):
                leaves = 0
                for k in range(run.count):
                    low = run.start + k * run.period
                    copy = self.nodes[low + offset].outputs[output]
                    leaves += copy in self.returned
                    if k == run.count - 1:
                        continue
                    reach = low + run.period * (2 if value in handed else 1)
                    if any(not low <= i < reach for i in self.reads[copy]):
                        return False
                if leaves == run.count:
                    wiring.collected.add(value)
                elif leaves and not (leaves == 1 and copy in self.returned):
                    return False
        return True


def fold(graph: Graph) -> Graph:
    """Keeps one copy of every repeated block.

    Args:
        graph: unfolded.

    Returns:
        A graph with the same meaning; its `blocks` list what was folded. Equal to `graph` if nothing
        repeats.
    """
    folder = _Folder(graph)
    runs = folder.runs(0, len(graph.nodes))
    if not runs:
        return graph
    rename: dict[Value, Value] = {}
    dropped: set[Value] = set()
    nodes: list[Node] = []
    blocks: list[Block] = []
    position = 0
    for run, wiring in runs:
        nodes += [_rewired(n, rename) for n in graph.nodes[position : run.start]]
        position = run.stop
        start = len(nodes)
        _stack_inputs(graph, run, wiring, rename, dropped)
        arguments = {
            key: Value(f"{key[1].name}.carried", key[1].type, "carried", run.count)
            for key in wiring.carries
        }
        for offset in range(run.period):
            copies = [graph.nodes[run.start + k * run.period + offset] for k in range(run.count)]
            node = copies[0]
            outputs = tuple(
                replace(v, name=name_pattern([c.outputs[i].name for c in copies]), count=run.count)
                for i, v in enumerate(node.outputs)
            )
            operands = tuple(
                arguments[wiring.slots[offset, slot]]
                if (offset, slot) in wiring.slots
                else rename.get(v, v)
                for slot, v in enumerate(node.inputs)
            )
            for copy in (copies[0], copies[-1]):
                rename.update(zip(copy.outputs, outputs, strict=True))
            for copy in copies:
                dropped.update(copy.outputs)
            nodes.append(
                replace(
                    node,
                    name=name_pattern([c.name for c in copies]),
                    module=name_pattern([c.module for c in copies]),
                    inputs=operands,
                    outputs=outputs,
                    count=run.count,
                    instances=tuple(c.name for c in copies),
                    instance_modules=tuple(c.module for c in copies),
                )
            )
        carries = tuple(
            Carry(arguments[key], rename.get(key[0], key[0]), rename[key[1]])
            for key in wiring.carries
        )
        collected = frozenset(rename[v] for v in wiring.collected)
        blocks.append(Block(start, len(nodes), run.count, carries, collected))
    nodes += [_rewired(n, rename) for n in graph.nodes[position:]]
    inputs = tuple(rename.get(v, v) for v in graph.inputs if v not in dropped)
    outputs = tuple(
        dict.fromkeys(rename.get(v, v) for v in graph.outputs if v in rename or v not in dropped)
    )
    return Graph(tuple(nodes), inputs, outputs, tuple(blocks), graph.name)


def _rewired(node: Node, rename: dict[Value, Value]) -> Node:
    if not any(v in rename for v in node.inputs):
        return node
    return replace(node, inputs=tuple(rename.get(v, v) for v in node.inputs))


def _stack_inputs(
    graph: Graph, run: _Run, wiring: _Wiring, rename: dict[Value, Value], dropped: set[Value]
) -> None:
    """Lets the first copy's weights stand for those of all copies."""
    for offset in range(run.period):
        copies = [graph.nodes[run.start + k * run.period + offset] for k in range(run.count)]
        for slot, value in enumerate(copies[0].inputs):
            if value not in wiring.stacked or value in rename:
                continue
            stack = [c.inputs[slot] for c in copies]
            rename[value] = replace(
                value, name=name_pattern([v.name for v in stack]), count=run.count
            )
            dropped.update(stack[1:])
