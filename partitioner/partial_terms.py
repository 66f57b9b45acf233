"""Which partial terms wait for their reduction.

A term may wait while everything that reads it is linear in it: then the readers' results are terms too. It
pays if no more is sent in the end. A repeated block may hand a sum of terms from one repetition to the
next, so that a weight which all layers read is reduced once and not in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from graph_ir.graph import Block, Carry, Graph, Node, Value
from graph_ir.logical_axes import AxisRule


class PartialTerms:
    """The terms of a graph over one mesh axis.

    Args:
        graph: the graph that is split.
        rules: how every node runs; None: whole.
        is_whole: whether nobody keeps a value split.
        by_batch: whether the axis splits samples or tokens: terms are then gradients of weights, which are
            exchanged as they are stored, however large that is.
    """

    def __init__(
        self,
        graph: Graph,
        rules: Mapping[Node, AxisRule | None],
        is_whole: Callable[[Value], bool],
        by_batch: bool,
    ) -> None:
        self._graph = graph
        self._rules = rules
        self._is_whole = is_whole
        self._by_batch = by_batch
        self._home: dict[Value, Block | None] = {
            v: graph.block_of.get(n) for v, n in graph.producers.items()
        }
        self._begins: dict[Value, list[Carry]] = {}
        self._ends: dict[Value, list[Carry]] = {}
        for block in graph.blocks:
            for carry in block.carries:
                self._home[carry.argument] = block
                self._begins.setdefault(carry.initial, []).append(carry)
                self._ends.setdefault(carry.result, []).append(carry)
        self.sources: set[Value] = set()
        """Terms that no other term is the reason for."""
        results = set(graph.outputs)
        begin_as_term = {
            c.argument for b in graph.blocks for c in b.carries if self.is_zero(c.initial)
        }
        found = self._find(begin_as_term, hopeful=True)
        self._inside = {v for v in found if v not in results and self._is_read(v)}
        self._after = self._inside & self._ends.keys()
        self._settle()
        self.possible = self._find({v for v in graph.carries if self.waits(v)})
        """Values that are terms, or could be ones if their readers were others."""

    def waits(self, value: Value, reader: Node | None = None) -> bool:
        """Whether the reader gets the value as a term.

        A block's result is one value inside, and another one after the block. Without a reader: inside.
        """
        if reader is None or value not in self._ends:
            return value in self._inside
        outside = self._graph.block_of.get(reader) is not self._home[value]
        return value in (self._after if outside else self._inside)

    def waits_after(self, carry: Carry) -> bool:
        """Whether what a block leaves stays a term after it."""
        return carry.result in self._after

    def passes(self, node: Node) -> bool:
        """Whether the node's results are terms, because what it reads is."""
        return self._passes(node, [v for v in node.inputs if self.waits(v, node)])

    def is_zero(self, value: Value) -> bool:
        """Whether it is what a sum begins with: a term of it, wherever it lies."""
        producer = self._graph.producers.get(value)
        return producer is not None and producer.op == "fill" and producer.attrs["value"] == 0.0

    def _is_read(self, value: Value) -> bool:
        return value in self._graph.users or value in self._begins or value in self._ends

    def _find(self, arguments: Collection[Value], *, hopeful: bool = False) -> set[Value]:
        """Values that are terms where they are made, if these carried ones are.

        Args:
            arguments: carried values that are terms.
            hopeful: whether others are too that begin as terms.
        """
        found: set[Value] = set(arguments)
        starts = {b.start: b.carries for b in self._graph.blocks}
        for index, node in enumerate(self._graph.nodes):
            for carry in starts.get(index, ()):
                if hopeful and carry.initial in found:
                    found.add(carry.argument)
            rule = self._rules[node]
            if rule is not None and rule.partial:
                made = zip(node.outputs, rule.outputs, strict=True)
                terms = [v for v, axis in made if axis is None]
                # The gradients of keys and values are scattered as they come out of attention: a ring does
                # both.
                if node.definition.kind == "attention":
                    terms = [v for v in terms if self._is_whole(v)]
                self.sources.update(terms)
                found.update(terms)
            if self._passes(node, [v for v in node.inputs if v in found]):
                found.update(node.outputs)
        return found

    def _passes(self, node: Node, terms: Sequence[Value]) -> bool:
        """Whether the results are terms if these operands are, and no work is repeated for it."""
        if not terms or node.definition.kind == "contraction":
            return False
        linear = node.definition.linear_of(node)
        if linear is None:
            return False
        if linear == "jointly":
            return len(terms) == len(node.inputs)
        (term, *others) = terms
        if others or not (linear == "each" or term is node.inputs[0]):
            return False
        if self._by_batch and len(self._graph.users[term]) > 1:
            return False
        if not all(self._is_whole(v) for v in node.inputs if v is not term):
            return False
        # Frameworks reduce activations' gradients before they use them in products.
        producer = self._graph.producers.get(term)
        return linear == "first" or (producer is not None and producer.during == "forward")

    # --- who can wait ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Finds the largest sets in which every value can wait because the others do."""
        while True:
            before = len(self._inside), len(self._after)
            self._inside = {v for v in self._inside if self._can_wait(v)}
            self._after = {v for v in self._after if self._can_wait_after(v)}
            if not self._by_batch:
                costs: dict[Value, _Cost] = {}
                for node in reversed(self._graph.nodes):
                    for value in node.outputs:
                        if value in self._inside:
                            costs[value] = self._cost_of_waiting(value, costs)
                self._inside -= {v for v, cost in costs.items() if cost > _reduced(v)}
            if before == (len(self._inside), len(self._after)):
                return

    def _can_wait(self, value: Value) -> bool:
        graph, home = self._graph, self._home[value]
        for reader in graph.users.get(value, ()):
            block = graph.block_of.get(reader)
            if block is not home:
                if value in self._ends:
                    continue
                # What the backward pass of a block reads is what its own repetition saved.
                if block is None or home is None or block.count != home.count:
                    return False
            if not self.passes(reader):
                return False
        if value in self._graph.carries:
            carry = self._graph.carries[value]
            if carry.result not in self._inside or not self._begins_as_term(carry):
                return False
        elif value not in self.sources and not self.passes(graph.producers[value]):
            return False
        handed = [*self._ends.get(value, ())]
        if value not in self._ends:
            handed += self._begins.get(value, ())
        return all(c.argument in self._inside for c in handed)

    def _begins_as_term(self, carry: Carry) -> bool:
        if self.is_zero(carry.initial):
            return True
        return carry.initial in (self._after if carry.initial in self._ends else self._inside)

    def _can_wait_after(self, value: Value) -> bool:
        graph, home = self._graph, self._home[value]
        blocks = ((n, graph.block_of.get(n)) for n in graph.users.get(value, ()))
        outside = [(n, b) for n, b in blocks if b is not home]
        return (
            value in self._inside
            and all(b is None and self.passes(n) for n, b in outside)
            and all(c.argument in self._inside for c in self._begins.get(value, ()))
            and bool(outside or value in self._begins)
        )

    def _cost_of_waiting(self, value: Value, costs: Mapping[Value, _Cost]) -> _Cost:
        """What is reduced in the end if a value waits, per repetition of its block."""
        found: list[tuple[_Cost, float]] = []
        for reader in self._graph.users.get(value, ()):
            if self._graph.block_of.get(reader) is not self._home[value] and value in self._ends:
                continue
            terms = sum(self.waits(v, reader) for v in reader.inputs)
            found += ((costs.get(v, _reduced(v)), 1 / max(terms, 1)) for v in reader.outputs)
        if value in self._ends:
            home = self._home[value]
            found.append((_reduced(value), 1 / home.count if home is not None else 1.0))
        return sum(c[0] * share for c, share in found), sum(c[1] * share for c, share in found)


_Cost = tuple[float, float]
"""(elements, messages): of two ways to send as much, the one with fewer messages is better."""


def _reduced(value: Value) -> _Cost:
    return float(value.type.elements), 1.0
