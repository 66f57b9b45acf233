"""Derives the backward pass of a forward graph from its operators' gradient rules.

The result keeps the forward nodes and appends the backward ones, so a value that a backward node reads is
by that very fact saved from the forward pass. A repeated block gets a repeated backward block, which
carries the gradients of what the forward block carried, and sums up those of what its copies share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from graph_ir.errors import OpboundError
from graph_ir.gradients import GradientBuilder
from graph_ir.graph import Block, Carry, Graph, GraphBuilder, Node, Value

RecomputePolicy = Callable[[Sequence[Node]], frozenset[Value]]
"""Nodes of a repeated block -> values that the backward pass computes again instead of keeping."""


@dataclass
class Backward:
    """A graph with its backward pass."""

    builder: GraphBuilder
    blocks: list[Block]
    gradients: dict[Value, Value]
    """The gradient of each parameter."""


@dataclass
class _Scope:
    """Gradients known so far, of the whole graph or of one backward block."""

    gradients: dict[Value, Value] = field(default_factory=dict)


def required_gradients(graph: Graph) -> set[Value]:
    """Values through which gradients flow to a parameter."""
    required = {v for v in graph.parameters if v.type.dtype.is_float}
    before = -1
    # A carried value needs a gradient if what a later repetition hands to it does: iterate.
    while len(required) != before:
        before = len(required)
        for block in graph.blocks:
            for carry in block.carries:
                if carry.initial in required or carry.result in required:
                    required |= {carry.argument, carry.result}
        for node in graph.nodes:
            if node.definition.gradient is None or not required.intersection(node.inputs):
                continue
            required.update(v for v in node.outputs if v.type.dtype.is_float)
    return required


def loss_seeds(graph: Graph) -> list[Value]:
    """Results that training differentiates: the scalar loss if there is one, else every float result."""
    required = required_gradients(graph)
    floats = [v for v in graph.outputs if v in required]
    scalars = [v for v in floats if v.type.elements == 1]
    collected = {v for block in graph.blocks for v in block.collected}
    seeds = scalars[:1] or [v for v in floats if v not in collected]
    if not seeds:
        raise OpboundError(
            f"no result of {graph.name or 'the graph'} depends on a trainable weight through "
            "differentiable operators; training needs one: check the model, or use --mode inference"
        )
    return seeds


class _Walk:
    def __init__(self, graph: Graph, recompute: RecomputePolicy | None) -> None:
        self.graph = graph
        self.recompute = recompute
        self.builder = GraphBuilder(graph.name)
        self.builder.nodes = list(graph.nodes)
        self.builder.inputs = list(graph.inputs)
        for node in graph.nodes:
            self.builder.unique(node.name)
        self.required = required_gradients(graph)
        self.emitter = GradientBuilder(self.builder, self.required)
        self.blocks: list[Block] = []
        self.top = _Scope()

    def run(self) -> Backward:
        for seed in loss_seeds(self.graph):
            name = f"{seed.name}.grad"
            if seed.type.elements == 1:
                attrs = {"value": 1.0}
                (value,) = self.builder.emit(
                    "fill",
                    [],
                    [seed.type],
                    attrs,
                    name=name,
                    phase="backward",
                    origin=self.graph.nodes[-1].name,
                )
            else:
                value = self.builder.add_input(name, seed.type)
            self.top.gradients[seed] = value
        starts = {b.stop: b for b in self.graph.blocks}
        index = len(self.graph.nodes)
        while index > 0:
            block = starts.get(index)
            if block is not None:
                self._block(block)
                index = block.start
            else:
                index -= 1
                self._node(self.graph.nodes[index], self.top)
        gradients = {
            v: self.top.gradients[v] for v in self.graph.parameters if v in self.top.gradients
        }
        return Backward(self.builder, [*self.graph.blocks, *self.blocks], gradients)

    def _node(self, node: Node, scope: _Scope) -> None:
        rule = node.definition.gradient
        grads = [scope.gradients.get(v) for v in node.outputs]
        if rule is None or all(g is None for g in grads):
            return
        if not self.required.intersection(node.inputs):
            return
        found = rule(self.emitter, node, grads)
        for i, (operand, grad) in enumerate(zip(node.inputs, found, strict=True)):
            if grad is None or operand not in self.required:
                continue
            if grad.type.dtype is not operand.type.dtype:
                # Where a wider operand promoted the result, the gradient is cast back.
                to = grad.type.with_dtype(operand.type.dtype)
                (grad,) = self.emitter.emit(node, "cast", [grad], [to], label=f"grad{i}.cast")
            self._accumulate(operand, grad, node, scope)

    def _accumulate(self, value: Value, grad: Value, node: Node, scope: _Scope) -> None:
        """A value that several nodes read gets the sum of their gradients."""
        known = scope.gradients.get(value)
        if known is not None:
            (grad,) = self.emitter.emit(
                node, "add", [known, grad], [value.type], label="accumulate"
            )
        scope.gradients[value] = grad

    def _block(self, block: Block) -> None:
        body = self.graph.nodes[block.start : block.stop]
        inside = {v for node in body for v in node.outputs}
        scope = _Scope()
        carried: list[tuple[Carry, Value, Value]] = []
        for carry in block.carries:
            if carry.argument not in self.required:
                continue
            initial = self._incoming(carry.result, body[-1])
            argument = self._carried(carry.result, block)
            scope.gradients[carry.result] = argument
            carried.append((carry, argument, initial))
        for value in inside:
            if value in self.top.gradients and value not in scope.gradients:
                scope.gradients[value] = self.top.gradients[value]
        shared = self._shared_operands(block, body, inside)
        sums: list[tuple[Value, Value, Value]] = []
        for value in shared:
            initial = self._incoming(value, body[-1])
            argument = self._carried(value, block)
            scope.gradients[value] = argument
            sums.append((value, argument, initial))
        start = len(self.builder.nodes)
        for node in reversed(body):
            self._node(node, scope)
        carries = []
        for carry, argument, initial in carried:
            result = scope.gradients.get(carry.argument)
            if result is None:
                continue
            if result is argument:
                result = initial
            else:
                carries.append(Carry(argument, initial, result))
            self._hand_over(carry.initial, result, body[0])
        for value, argument, initial in sums:
            result = scope.gradients[value]
            if result is not argument:
                carries.append(Carry(argument, initial, result))
                self.top.gradients[value] = result
        for value, grad in scope.gradients.items():
            if value.kind == "parameter" and value.count > 1:
                self.top.gradients[value] = grad
        if self.recompute is not None:
            self._insert_recomputation(start, body, self.recompute(body))
        if len(self.builder.nodes) > start:
            self.blocks.append(Block(start, len(self.builder.nodes), block.count, tuple(carries)))

    def _carried(self, value: Value, block: Block) -> Value:
        """What the repetitions of a backward block hand on: a value's gradient so far."""
        # What one block leaves and another one reads has a gradient in both.
        name = self.builder.unique(f"{value.name}.grad.carried")
        return Value(name, value.type, "carried", block.count)

    def _incoming(self, value: Value, near: Node) -> Value:
        """The gradient known before a backward block, zeros if there is none yet."""
        known = self.top.gradients.get(value)
        if known is not None:
            return known
        once = replace(near, count=1, instances=(), instance_modules=())
        return self.emitter.emit(
            once, "fill", [], [value.type], {"value": 0.0}, f"{value.name}.zeros"
        )[0]

    def _hand_over(self, value: Value, grad: Value, near: Node) -> None:
        if value in self.required:
            self._accumulate(
                value, grad, replace(near, count=1, instances=(), instance_modules=()), self.top
            )

    def _shared_operands(
        self, block: Block, body: Sequence[Node], inside: set[Value]
    ) -> list[Value]:
        """What all copies of a block read from outside, and gradients flow to."""
        arguments = {c.argument for c in block.carries}
        outer = dict.fromkeys(
            v
            for node in body
            if node.definition.gradient is not None
            for v in node.inputs
            if v in self.required
            and v not in inside
            and v not in arguments
            and not (v.kind == "parameter" and v.count > 1)
        )
        return list(outer)

    def _insert_recomputation(
        self, start: int, body: Sequence[Node], dropped: frozenset[Value]
    ) -> None:
        """Puts copies of the forward nodes that make dropped values in front of a backward block."""
        needed = {v for node in self.builder.nodes[start:] for v in node.inputs if v in dropped}
        copies: list[Node] = []
        for node in reversed(body):
            if needed.isdisjoint(node.outputs):
                continue
            needed.update(v for v in node.inputs if v in dropped)
            copies.append(node)
        rename: dict[Value, Value] = {}
        again = []
        for node in reversed(copies):
            outputs = tuple(replace(v, name=f"{v.name}.recomputed") for v in node.outputs)
            operands = tuple(rename.get(v, v) for v in node.inputs)
            rename.update(zip(node.outputs, outputs, strict=True))
            again.append(
                replace(
                    node,
                    name=self.builder.unique(f"{node.name}.recompute"),
                    inputs=operands,
                    outputs=outputs,
                    phase="recompute",
                    instances=tuple(f"{n}.recompute" for n in node.instances),
                    origin=node.name,
                )
            )
        backward = [
            replace(n, inputs=tuple(rename.get(v, v) if v in dropped else v for v in n.inputs))
            for n in self.builder.nodes[start:]
        ]
        self.builder.nodes[start:] = [*again, *backward]


def derive_backward(graph: Graph, recompute: RecomputePolicy | None = None) -> Backward:
    """Appends the backward pass to a forward graph.

    Args:
        graph: forward graph, folded or not.
        recompute: which values of a repeated block are computed again instead of kept.

    Raises:
        OpboundError: if no result depends on a trainable weight.
    """
    return _Walk(graph, recompute).run()
