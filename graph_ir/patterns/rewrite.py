"""Replaces what a pattern found by one operator, in one walk over the graph.

Nodes are visited in their order, and a pattern ends at the visited node; so what it builds on is already
canonical, and one pattern can take up what another has made (a norm its weight, attention a softmax).
The replacement stands where the match ended and makes the same value: nothing behind it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graph_ir.graph import Graph, Node, Value
from graph_ir.patterns.known import Known
from graph_ir.patterns.match import Match, Matcher
from graph_ir.patterns.term import Apply, Term, endings
from graph_ir.tensor_type import TensorType


@dataclass(frozen=True)
class Pattern:
    """A term, and how to say the same in one operator."""

    name: str
    term: Term
    build: Callable[[Match, Replacement], bool]
    """Emits the replacement; False refuses the match."""


class Replacement:
    """Collects the nodes that take a match's place."""

    def __init__(self, rewriter: Rewriter, root: Node) -> None:
        self._rewriter = rewriter
        self.root = root
        """The last node of the match."""
        self.nodes: list[Node] = []
        self.producers: Mapping[Value, Node] = rewriter.producers
        self.known = rewriter.known
        self.training = rewriter.required is not None
        """Whether a backward pass will follow: then norms and attention also make what it needs."""

    def trains(self, value: Value) -> bool:
        """Whether a gradient will flow into a value."""
        required = self._rewriter.required
        return required is not None and value in required

    def emit(
        self,
        label: str,
        op: str,
        inputs: Sequence[Value],
        made: TensorType,
        attrs: Mapping[str, Any] | None = None,
        extra: Sequence[tuple[str, TensorType]] = (),
    ) -> Value:
        """Emits an operator that the canonical one needs beside it, such as a view of an operand."""
        root = self.root
        name = self._rewriter.unique(f"{root.name}.{label}")
        value = Value(name, made, count=root.outputs[0].count)
        self.nodes.append(
            replace(
                root,
                name=name,
                op=op,
                inputs=tuple(inputs),
                outputs=(value, *self._extra(name, extra)),
                attrs=dict(attrs or {}),
                instances=tuple(f"{n}.{label}" for n in root.instances),
            )
        )
        return value

    def view(self, value: Value, shape: Sequence[int], label: str) -> Value:
        """A value in another shape; the value itself if it has that shape, or comes from it by a view."""
        wanted = tuple(shape)
        if value.type.shape == wanted:
            return value
        maker = self.producers.get(value)
        if maker is not None and maker.op == "reshape" and maker.attrs.get("view"):
            (source,) = maker.inputs
            if source.type.shape == wanted:
                return source
        return self.emit(label, "reshape", [value], value.type.with_shape(wanted), {"view": True})

    def finish(
        self,
        op: str,
        inputs: Sequence[Value],
        attrs: Mapping[str, Any] | None = None,
        extra: Sequence[tuple[str, TensorType]] = (),
        telling: Value | None = None,
    ) -> bool:
        """Emits the canonical operator, which makes what the match's last node made, under its name.

        `extra` are (label, type) of further results. Where another emitted operator is what the user will
        look for, `telling` is its result, and they swap names.
        """
        root = self.root
        result = root.outputs[0]
        self.nodes.append(
            replace(
                root,
                op=op,
                inputs=tuple(inputs),
                outputs=(result, *self._extra(result.name, extra)),
                attrs=dict(attrs or {}),
            )
        )
        if telling is not None:
            self._swap_names(telling)
        return True

    def _swap_names(self, telling: Value) -> None:
        place = next(i for i, n in enumerate(self.nodes) if telling in n.outputs)
        one, other = self.nodes[place], self.nodes[-1]
        self.nodes[place] = replace(one, name=other.name, instances=other.instances)
        self.nodes[-1] = replace(other, name=one.name, instances=one.instances)

    def closed(self, inner: Iterable[Node]) -> bool:
        """Whether nothing but these nodes reads what they make (but for the root's result)."""
        return self._rewriter.closed(inner, self.root)

    def read_once(self, value: Value) -> bool:
        """Whether a value has one reader only, so that it goes if that one does."""
        return len(self._rewriter.readers.get(value, ())) == 1 and value not in self._rewriter.fixed

    def _extra(self, name: str, extra: Sequence[tuple[str, TensorType]]) -> list[Value]:
        count, unique = self.root.outputs[0].count, self._rewriter.unique
        return [Value(unique(f"{name}.{label}"), made, count=count) for label, made in extra]


class Rewriter:
    """Applies patterns to one graph."""

    def __init__(
        self, graph: Graph, patterns: Iterable[Pattern], required: set[Value] | None
    ) -> None:
        self.graph = graph
        self.required = required
        self.by_root: dict[str, list[tuple[Pattern, Apply]]] = {}
        for pattern in patterns:
            for end in endings(pattern.term):
                for op in end.ops:
                    self.by_root.setdefault(op, []).append((pattern, end))
        self.producers = dict(graph.producers)
        self.readers = {v: dict.fromkeys(nodes) for v, nodes in graph.users.items()}
        self.block_of = dict(graph.block_of)
        self.fixed = set(graph.outputs)
        for block in graph.blocks:
            self.fixed |= block.collected
            for carry in block.carries:
                self.fixed |= {carry.initial, carry.result}
        self.matcher = Matcher(self.producers)
        self.known = Known(graph.nodes, self.producers)
        self.removed: set[Node] = set()
        self.names: set[str] | None = None

    def unique(self, name: str) -> str:
        """A name that nothing in the graph has."""
        if self.names is None:
            self.names = {n.name for n in self.graph.nodes}
            self.names |= {v.name for n in self.graph.nodes for v in n.outputs}
            self.names |= {v.name for v in self.graph.inputs}
        found, i = name, 0
        while found in self.names:
            i += 1
            found = f"{name}_{i}"
        self.names.add(found)
        return found

    def run(self) -> Graph:
        """The graph in canonical operators."""
        placed: list[list[Node]] = []
        changed = False
        for original in self.graph.nodes:
            nodes = [original]
            while original not in self.removed:
                found = self._rewrite(nodes[-1]) if nodes[-1].op in self.by_root else None
                if found is None:
                    break
                changed = True
                nodes[-1:] = found
            placed.append(nodes)
        if not changed:
            return self.graph
        index = [0]
        kept: list[Node] = []
        for nodes in placed:
            kept += [n for n in nodes if n not in self.removed]
            index.append(len(kept))
        blocks = [replace(b, start=index[b.start], stop=index[b.stop]) for b in self.graph.blocks]
        return replace(self.graph, nodes=tuple(kept), blocks=tuple(blocks))

    def _rewrite(self, node: Node) -> list[Node] | None:
        makers = self.matcher.makers(node)
        for pattern, end in self.by_root[node.op]:
            if any(makers.isdisjoint(ops) for ops in end.needs):
                continue
            for match in self.matcher.matches(end, node):
                if not self.closed(match.inner, node):
                    continue
                replacement = Replacement(self, node)
                if pattern.build(match, replacement):
                    self._install(node, replacement.nodes)
                    return replacement.nodes
        return None

    def closed(self, inner: Iterable[Node], root: Node) -> bool:
        """Whether nothing but the match reads what its nodes make, all in one block and phase."""
        members = set(inner)
        block = self.block_of.get(root)
        for node in members:
            if node is root:
                continue
            if self.block_of.get(node) is not block or node.phase != root.phase:
                return False
            for value in node.outputs:
                if value in self.fixed or not members.issuperset(self.readers.get(value, ())):
                    return False
        return not any(self.readers.get(v) or v in self.fixed for v in root.outputs[1:])

    def _install(self, root: Node, nodes: Sequence[Node]) -> None:
        block = self.block_of.get(root)
        for node in nodes:
            if block is not None:
                self.block_of[node] = block
            for value in node.outputs:
                self.producers[value] = node
            for value in node.inputs:
                self.readers.setdefault(value, {})[node] = None
        self._remove(root)

    def _remove(self, root: Node) -> None:
        """Takes out a node, and whatever was only there for it."""
        stack = [root]
        while stack:
            node = stack.pop()
            self.removed.add(node)
            for value in dict.fromkeys(node.inputs):
                del self.readers[value][node]
                maker = self.producers.get(value)
                if maker is not None and maker not in self.removed and self._dead(maker):
                    stack.append(maker)

    def _dead(self, node: Node) -> bool:
        return not any(self.readers.get(v) or v in self.fixed for v in node.outputs)
