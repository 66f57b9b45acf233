"""The operator graph: values, nodes, and repeated blocks.

Everything is immutable and refers to other things by object, not by name. A graph may be *folded*
(`graph_ir.fold`): a block of nodes that a model repeats (its layers) is kept once, its nodes and values
carry the number of repetitions in `count`, and `Graph.blocks` says what one repetition hands to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from graph_ir.equation import Equation
from graph_ir.op_def import OpDef, op_def
from graph_ir.sharding import Shard
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    import networkx

    from graph_ir.logical_axes import LogicalAxes

ValueKind = Literal["input", "parameter", "buffer", "constant", "state", "carried", "intermediate"]
Phase = Literal["forward", "backward", "recompute", "optimizer", "communication"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "recompute", "optimizer", "communication")


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that flows through the graph."""

    name: str
    """Unique within the graph."""
    type: TensorType
    kind: ValueKind = "intermediate"
    """Where it comes from. `state` is the optimizer's; `carried` is what a repeated block receives from
    its previous repetition."""
    count: int = 1
    """Number of tensors this value stands for: the repetitions of the block that it belongs to."""
    dim_names: tuple[str | None, ...] = ()
    """What a graph input's dims mean to the user ('batch', 'sequence', an ONNX dim's name), if known."""
    role: str = ""
    """What the value is for where that matters to memory: 'kv_cache', or empty."""
    data: Any = field(default=None, repr=False)
    """A constant's content, if known: a small numpy array, or what numpy takes for an array and reads only
    then. Only patterns look at it."""
    shards: tuple[Shard, ...] = ()
    """In a graph of one rank: how this part was cut out of the whole tensor, one split after the other."""

    def altered(self, **changes: Any) -> Value:
        """A copy with other fields: `dataclasses.replace` in a fraction of its time."""
        if not changes.keys() <= _VALUE_FIELDS:
            raise TypeError(f"a value has no {', '.join(changes.keys() - _VALUE_FIELDS)}")
        copy = object.__new__(Value)
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    def __str__(self) -> str:
        times = f" x{self.count}" if self.count > 1 else ""
        return f"%{self.name}: {self.type}{times}"


@dataclass(frozen=True, eq=False)
class Node:
    """One operator application."""

    name: str
    """Unique within the graph; what the user finds in their model."""
    op: str
    """Name of the record in `graph_ir.ops`."""
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""
    """Dotted path of the module the operator comes from."""
    phase: Phase = "forward"
    count: int = 1
    """How often the operator runs: the repetitions of its block."""
    instances: tuple[str, ...] = ()
    """Names of all `count` repetitions, where the node stands for more than one."""
    instance_modules: tuple[str, ...] = ()
    """Module paths of the repetitions, in the same order."""
    origin: str = ""
    """Name of the forward node that this node was derived from; empty for a forward node."""

    @property
    def during(self) -> str:
        """The pass the node runs in: its phase, or, of a collective, the pass that waits for it."""
        return str(self.attrs.get("during", self.phase))

    @property
    def definition(self) -> OpDef:
        """The operator's record."""
        return op_def(self.op)

    @cached_property
    def equation(self) -> Equation:
        """What the node computes: its own equation, or the one its record derives from the types."""
        own = self.attrs.get("equation")
        if own is not None:
            return own  # type: ignore[no-any-return]
        return self.definition.equation_of(
            [v.type for v in self.inputs], [v.type for v in self.outputs], self.attrs
        )

    @cached_property
    def flops(self) -> int:
        """FLOPs of one application (one multiply-add is 2)."""
        return self.definition.flops_of(self)

    @cached_property
    def bytes_read(self) -> int:
        """Least bytes that one application reads."""
        return self.definition.bytes_read_of(self)

    @cached_property
    def bytes_written(self) -> int:
        """Least bytes that one application writes."""
        return self.definition.bytes_written_of(self)

    @cached_property
    def signature(self) -> tuple[Any, ...]:
        """Equal for nodes that cost the same: op, attributes, and types of operands and results."""
        return (
            self.op,
            tuple((k, _hashable(self.attrs[k])) for k in sorted(self.attrs)),
            tuple((v.type, v.kind in ("parameter", "buffer")) for v in self.inputs),
            tuple(v.type for v in self.outputs),
        )

    def altered(self, **changes: Any) -> Node:
        """A copy with other fields: `dataclasses.replace` in a fraction of its time.

        What was derived from the fields is derived anew.
        """
        if not changes.keys() <= _NODE_FIELDS:
            raise TypeError(f"a node has no {', '.join(changes.keys() - _NODE_FIELDS)}")
        copy = object.__new__(Node)
        own = copy.__dict__
        own.update(self.__dict__, **changes)
        for name in _DERIVED:
            own.pop(name, None)
        return copy

    def __str__(self) -> str:
        ins = ", ".join(f"%{v.name}" for v in self.inputs)
        outs = ", ".join(map(str, self.outputs))
        attrs = {k: v for k, v in self.attrs.items() if k != "equation"}
        extra = f" {attrs}" if attrs else ""
        return f"{outs} = {self.op}({ins}){extra}"


_VALUE_FIELDS = frozenset(f.name for f in fields(Value))
_NODE_FIELDS = frozenset(f.name for f in fields(Node))
_DERIVED = tuple(n for n, v in vars(Node).items() if isinstance(v, cached_property))


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, Equation):
        return (value, tuple(sorted(value.sizes.items())))
    if isinstance(value, Mapping):
        return tuple((k, _hashable(v)) for k, v in sorted(value.items()))
    return value


@dataclass(frozen=True, eq=False)
class Carry:
    """What a repeated block hands on: the first repetition gets `initial`, the next ones `result`."""

    argument: Value
    """What the block's nodes read (kind 'carried')."""
    initial: Value
    result: Value
    """Produced in the block; after the block its name means the last repetition's."""


@dataclass(frozen=True, eq=False)
class Block:
    """A run of nodes that is repeated `count` times."""

    start: int
    """Index of its first node."""
    stop: int
    """Index after its last node."""
    count: int
    carries: tuple[Carry, ...]
    collected: frozenset[Value] = frozenset()
    """Results of every repetition that leave the graph (a KV cache), not only of the last one."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A topologically ordered operator graph."""

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    """Graph inputs, parameters, buffers and constants."""
    outputs: tuple[Value, ...]
    blocks: tuple[Block, ...] = ()
    name: str = ""

    @cached_property
    def parameters(self) -> tuple[Value, ...]:
        """Trainable weights."""
        return tuple(v for v in self.inputs if v.kind == "parameter")

    @cached_property
    def producers(self) -> dict[Value, Node]:
        """The node that produces each intermediate value."""
        return {v: node for node in self.nodes for v in node.outputs}

    @cached_property
    def users(self) -> dict[Value, list[Node]]:
        """The nodes that read each value, in order; values that no node reads are absent."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                found.setdefault(value, []).append(node)
        return found

    @cached_property
    def block_of(self) -> dict[Node, Block]:
        """The repeated block of each node that belongs to one."""
        return {n: b for b in self.blocks for n in self.nodes[b.start : b.stop]}

    @cached_property
    def carries(self) -> dict[Value, Carry]:
        """The carry behind each value of kind 'carried'."""
        return {c.argument: c for b in self.blocks for c in b.carries}

    @cached_property
    def axes(self) -> LogicalAxes:
        """Its logical axes."""
        from graph_ir.logical_axes import LogicalAxes

        return LogicalAxes(self)

    def networkx(self) -> networkx.MultiDiGraph[Node]:
        """A networkx view: nodes are this graph's nodes, edges carry the value that flows."""
        import networkx

        view: networkx.MultiDiGraph[Node] = networkx.MultiDiGraph()
        view.add_nodes_from(self.nodes)
        for value, readers in self.users.items():
            carry = self.carries.get(value)
            producer = self.producers.get(carry.initial if carry else value)
            if producer is not None:
                view.add_edges_from((producer, reader, {"value": value}) for reader in readers)
        return view

    def __str__(self) -> str:
        from graph_ir.text_format import graph_text

        return graph_text(self)


class GraphBuilder:
    """Builds a graph node by node, and keeps names unique."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self._names: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """A value or node name that is not in use yet: `name`, or `name_1`, `name_2`, ..."""
        uses = self._names.get(name)
        if uses is None:
            self._names[name] = 0
            return name
        while True:
            uses += 1
            candidate = f"{name}_{uses}"
            if candidate not in self._names:
                self._names[name] = uses
                self._names[candidate] = 0
                return candidate

    def add_input(
        self,
        name: str,
        type: TensorType,  # noqa: A002  (the field's name in Value)
        kind: ValueKind = "input",
        *,
        count: int = 1,
        dim_names: Sequence[str | None] = (),
        role: str = "",
        data: Any = None,
    ) -> Value:
        """Adds a graph input, a parameter, a buffer or a constant."""
        value = Value(self.unique(name), type, kind, count, tuple(dim_names), role, data)
        self.inputs.append(value)
        return value

    def emit(
        self,
        op: str,
        inputs: Iterable[Value],
        outputs: Sequence[TensorType],
        attrs: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        module: str = "",
        phase: Phase = "forward",
        count: int = 1,
        instances: tuple[str, ...] = (),
        instance_modules: tuple[str, ...] = (),
        origin: str = "",
        output_names: Sequence[str] = (),
        role: str = "",
    ) -> tuple[Value, ...]:
        """Adds a node and returns its results, all of the given role.

        Raises:
            UnknownOperatorError: if `op` has no record.
        """
        op_def(op)
        node_name = self.unique(name or op)
        labels = output_names or (
            [node_name] if len(outputs) == 1 else [f"{node_name}.{i}" for i in range(len(outputs))]
        )
        results = tuple(
            Value(self.unique(label) if label != node_name else label, made, count=count, role=role)
            for label, made in zip(labels, outputs, strict=True)
        )
        self.nodes.append(
            Node(
                node_name,
                op,
                tuple(inputs),
                results,
                dict(attrs or {}),
                module,
                phase,
                count,
                instances,
                instance_modules,
                origin,
            )
        )
        return results

    def build(self, outputs: Iterable[Value], blocks: Sequence[Block] = ()) -> Graph:
        """The finished graph, without inputs that nothing reads (parameters and buffers stay)."""
        outs = tuple(outputs)
        return Graph(tuple(self.nodes), tuple(self.inputs), outs, tuple(blocks), self.name)
