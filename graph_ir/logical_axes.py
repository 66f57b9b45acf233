"""Logical axes: which dims of all tensors are one and the same dim of the model.

Every dim of every value starts as an axis of its own; the equations unify them (union-find). A compound dim
(`(h d)`, from a reshape or a split) *refines* an axis into factors, wherever it occurs. What remains is a
handful of classes: the batch, the sequence, the residual width, the heads, the feed-forward width, ...

Dims of size 1 have no axis. Sizes that do not divide each other cannot be refined: such axes are marked
as `blocked` and are never sharded, so the answer is conservative, never wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graph_ir.equation import Dim, ShardingRule, Window, names_of
from graph_ir.graph import Graph, Node, Value


class _Atom:
    """An element of the union-find; a root may be refined into a major and a minor part."""

    __slots__ = ("blocked", "parent", "parts", "size")

    def __init__(self, size: int, blocked: bool = False) -> None:
        self.size = size
        self.parent: _Atom | None = None
        self.parts: tuple[_Atom, _Atom] | None = None
        self.blocked = blocked

    def find(self) -> _Atom:
        if self.parent is None:
            return self
        atom = self
        while atom.parent is not None:
            if atom.parent.parent is not None:
                atom.parent = atom.parent.parent
            atom = atom.parent
        return atom

    def leaves(self) -> list[_Atom]:
        """The factors this atom is refined into, major first."""
        root = self.find()
        if root.parts is None:
            return [root]
        return [leaf for part in root.parts for leaf in part.leaves()]

    def refine(self, major: int) -> None:
        self.parts = (_Atom(major, self.blocked), _Atom(self.size // major, self.blocked))


def _unite(x: _Atom, y: _Atom) -> None:
    y.parent = x
    x.blocked |= y.blocked


def _unify(left: Sequence[_Atom], right: Sequence[_Atom]) -> None:
    """Makes two row-major lists of factors one and the same, refining where one is coarser."""
    if len(left) == len(right) == 1:
        x, y = left[0].find(), right[0].find()
        if x is y:
            return
        if x.size == y.size and x.parts is None and y.parts is None:
            _unite(x, y)
            return
    a = [leaf for atom in reversed(left) for leaf in reversed(atom.leaves())]
    b = [leaf for atom in reversed(right) for leaf in reversed(atom.leaves())]
    while a and b:
        x, y = a[-1].find(), b[-1].find()
        if x.parts is not None or y.parts is not None:
            # A union or refinement a moment ago reached this one too.
            for stack, atom in ((a, x), (b, y)):
                if atom.parts is not None:
                    stack.pop()
                    stack.extend(reversed(atom.leaves()))
            continue
        if x is y:
            a.pop(), b.pop()
        elif x.size == y.size:
            _unite(x, y)
            a.pop(), b.pop()
        elif x.size > y.size and x.size % y.size == 0:
            x.refine(y.size)
        elif y.size > x.size and y.size % x.size == 0:
            y.refine(x.size)
        else:
            break
    for atom in (*a, *b):
        for leaf in atom.leaves():
            leaf.blocked = True


@dataclass(frozen=True, eq=False)
class Axis:
    """A logical axis of the model."""

    size: int
    blocked: bool
    """Its parts do not line up somewhere: it cannot be sharded."""
    index: int
    """Order of first occurrence."""

    def __str__(self) -> str:
        return f"axis{self.index}:{self.size}"


@dataclass(frozen=True)
class AxisRule:
    """A node's sharding over one mesh axis."""

    name: str
    """The equation's name that holds the axis; empty where a node runs on each device's own part of
    the data, in an order of its own."""
    inputs: tuple[Axis | None, ...]
    """The axis that each operand is split along; None where it is whole."""
    outputs: tuple[Axis | None, ...]
    """The axis that each result is split along; None where it is a partial term."""
    partial: bool = True
    """Whether results that are not split are partial terms; else each device's own."""


class LogicalAxes:
    """The logical axes of a graph.

    Args:
        graph: any graph, folded or not, forward or training.
    """

    def __init__(self, graph: Graph) -> None:
        self._value_atoms: dict[Value, list[list[_Atom]]] = {}
        self._name_atoms: dict[Node, dict[str, list[_Atom]]] = {}
        for value in graph.inputs:
            self._value_atoms[value] = _fresh(value.type.shape)
        starts = {b.start: b for b in graph.blocks}
        stops = {b.stop: b for b in graph.blocks}
        for index, node in enumerate(graph.nodes):
            self._close(stops.get(index))
            block = starts.get(index)
            if block is not None:
                for carry in block.carries:
                    self._value_atoms[carry.argument] = self._atoms(carry.initial)
            self._visit(node)
        self._close(stops.get(len(graph.nodes)))
        self._axes: dict[_Atom, Axis] = {}
        self._value_axes: dict[Value, tuple[tuple[Axis, ...], ...]] = {}
        self._all_axes: dict[Value, tuple[Axis, ...]] = {}
        self._node_axes: dict[Node, dict[str, tuple[Axis, ...]]] = {}
        self._rules: dict[tuple[Node, Axis], AxisRule | None] = {}

    def _atoms(self, value: Value) -> list[list[_Atom]]:
        found = self._value_atoms.get(value)
        if found is None:
            found = self._value_atoms[value] = _fresh(value.type.shape)
        return found

    def _close(self, block: object) -> None:
        for carry in getattr(block, "carries", ()):
            pairs = zip(self._atoms(carry.argument), self._atoms(carry.result), strict=True)
            for left, right in pairs:
                _unify(left, right)

    def _visit(self, node: Node) -> None:
        equation = node.equation
        names: dict[str, list[_Atom]] = {}
        for value, dims in zip(node.inputs, equation.inputs, strict=True):
            for dim, atoms in zip(dims, self._atoms(value), strict=True):
                if len(dim) == 1:
                    known = names.setdefault(dim[0], atoms)
                    if known is not atoms:
                        _unify(known, atoms)
                elif isinstance(dim, Window):
                    _atoms_of(dim, names, equation.sizes)
                elif dim:
                    _unify(_atoms_of(dim, names, equation.sizes), atoms)
        for value, dims in zip(node.outputs, equation.outputs, strict=True):
            result = []
            for dim, size in zip(dims, value.type.shape, strict=True):
                atoms = _atoms_of(dim, names, equation.sizes)
                if isinstance(dim, Window):
                    atoms = [_Atom(size)] if size > 1 else []
                result.append(atoms)
            self._value_atoms[value] = result
        self._name_atoms[node] = names

    def _axis(self, atom: _Atom) -> Axis:
        axis = self._axes.get(atom)
        if axis is None:
            axis = self._axes[atom] = Axis(atom.size, atom.blocked, len(self._axes))
        return axis

    def _resolve(self, atoms: Iterable[_Atom]) -> tuple[Axis, ...]:
        return tuple([self._axis(leaf) for atom in atoms for leaf in atom.leaves()])

    def with_nodes(self, nodes: Iterable[Node]) -> LogicalAxes:
        """The same axes with those of nodes that are made of values whose axes are known, and unite none."""
        copy = object.__new__(LogicalAxes)
        vars(copy).update((name, dict(known)) for name, known in vars(self).items())
        for node in nodes:
            copy._visit(node)
        return copy

    def of_value(self, value: Value) -> tuple[tuple[Axis, ...], ...]:
        """The axes of each dim of a value, major first; none for a dim of size 1."""
        found = self._value_axes.get(value)
        if found is None:
            found = tuple([self._resolve(dim) for dim in self._atoms(value)])
            self._value_axes[value] = found
        return found

    def all_of(self, value: Value) -> tuple[Axis, ...]:
        """All axes of a value in row-major order."""
        found = self._all_axes.get(value)
        if found is None:
            found = tuple([axis for dim in self.of_value(value) for axis in dim])
            self._all_axes[value] = found
        return found

    def of_node(self, node: Node) -> dict[str, tuple[Axis, ...]]:
        """The axes behind each name of a node's equation."""
        found = self._node_axes.get(node)
        if found is None:
            found = {n: self._resolve(atoms) for n, atoms in self._name_atoms[node].items()}
            self._node_axes[node] = found
        return found

    def rule(self, node: Node, axis: Axis, *, batch: bool = False) -> AxisRule | None:
        """How the node runs when `axis` is split, or None if it cannot.

        Args:
            node: a node of the graph.
            axis: one of its axes.
            batch: whether the axis is the batch, which statistics may be split over.
        """
        key = (node, axis)
        if key not in self._rules:
            self._rules[key] = self._find_rule(node, axis)
        rule = self._rules[key]
        if rule is not None and rule.name in node.equation.statistics and not batch:
            return None
        return rule

    def local_rule(self, node: Node, split: frozenset[Axis]) -> AxisRule | None:
        """A rule for lookups and sorts of the split data itself: each device works on its own part.

        A permutation of the tokens (an expert dispatch and its inverse) is undone later, so each device
        may permute its own tokens alone. Only meant for the batch and what is a permutation of it.
        """
        if node.definition.kind not in ("gather", "routing"):
            return None
        found = [
            next((a for a in self.all_of(v) if a in split), None)
            for v in (*node.inputs, *node.outputs)
        ]
        inputs, outputs = tuple(found[: len(node.inputs)]), tuple(found[len(node.inputs) :])
        # A lookup in a table of the data's own rows; one in a table of weights has an ordinary rule.
        tables = {"gather": inputs[:1], "gather_backward": outputs, "scatter_nd": outputs}
        own = tables.get(node.op, inputs if node.definition.kind == "routing" else ())
        if all(a is None for a in own) or all(a is None for a in inputs):
            return None
        return AxisRule("", inputs, outputs, partial=False)

    def query_rule(self, node: Node, axis: Axis) -> AxisRule | None:
        """A rule for fused attention of tokens to themselves: queries are split, keys and values whole."""
        if node.definition.kind != "attention" or axis not in self.of_node(node)["s"]:
            return None
        if any(self.all_of(v).count(axis) > 1 for v in node.inputs):
            return None
        equation = node.equation
        inputs, outputs = (
            tuple(axis if "s" in names_of(dims) else None for dims in operands)
            for operands in (equation.inputs, equation.outputs)
        )
        return AxisRule("s", inputs, outputs)

    def _find_rule(self, node: Node, axis: Axis) -> AxisRule | None:
        if axis.blocked:
            return None
        holders = [name for name, axes in self.of_node(node).items() if axis in axes]
        if len(holders) != 1:
            return None
        rule: ShardingRule | None = node.equation.rule(holders[0])
        if rule is None:
            return None
        for value in (*node.inputs, *node.outputs):
            if self.all_of(value).count(axis) > 1:
                return None
        looks_up = node.definition.kind == "gather" and node.definition.localize is not None
        if looks_up and self.of_node(node)[holders[0]][0] is not axis:
            # Rows that indices number: a device can hold a run of them, not some out of each run.
            holding = [*rule.inputs, *rule.outputs]
            if len(holding) - holding.count(None) == 1:
                return None
        return AxisRule(
            holders[0],
            tuple([None if place is None else axis for place in rule.inputs]),
            tuple([None if place is None else axis for place in rule.outputs]),
            # Without a reduction there are no terms: statistics over each device's own part.
            partial=node.equation.reduction is not None,
        )


def _fresh(shape: Iterable[int]) -> list[list[_Atom]]:
    return [[_Atom(n)] if n > 1 else [] for n in shape]


def _atoms_of(dim: Dim, names: dict[str, list[_Atom]], sizes: Mapping[str, int]) -> list[_Atom]:
    """The atoms of a dim's names; of a name that is new they are made."""
    found: list[_Atom] = []
    for name in dim:
        own = names.get(name)
        if own is None:
            size = sizes[name]
            own = names[name] = [_Atom(size)] if size > 1 else []
        if len(dim) == 1:
            return own
        found += own
    return found
