"""Overlapped tensor parallelism: tokens are gathered and scattered in pieces, beside the products.

With sequence parallelism an all-gather stands before a column-parallel product and a reduce-scatter behind a
row-parallel one. Taken apart, a rank multiplies the tokens that it has while the next ones come from its
neighbour, and adds its terms to a sum that goes round (Wang et al. 2023, doi:10.1145/3567955.3567959). The
products become as many smaller ones as the group has ranks; what that loses is in their own cost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graph_ir.equation import factors
from graph_ir.graph import Graph, Node, Value
from graph_ir.localize import local_equation
from graph_ir.sharding import ByRank
from partitioner.mesh import MeshAxis
from partitioner.renumber import renumbered
from partitioner.strategies import Pass
from partitioner.strategies.buckets import axis_of
from partitioner.strategies.rings import Emitter
from partitioner.strategy import Strategy


class _Rewrite:
    def __init__(self, graph: Graph, axis_name: str) -> None:
        self.graph = graph
        self.axis_name = axis_name
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.replaced: dict[Node, list[Node]] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if self._in_whole_dim(node, "all_gather", "concat"):
                self._gather(node)
            elif self._in_whole_dim(node, "reduce_scatter", "split"):
                self._scatter(node)
        return renumbered(self.graph, self.replaced)

    def _in_whole_dim(self, node: Node, op: str, place: str) -> bool:
        """Whether it is this collective of one tensor along a dim without other factors."""
        if node.op != op or node.attrs["axis"] != self.axis_name or len(node.inputs) != 1:
            return False
        return place in node.attrs and tuple(node.attrs[place][1:]) == (1, 1)

    def _by_tokens(self, node: Node, dim: int) -> bool:
        """Whether a node is a product whose rows, one per token, do not depend on each other."""
        if node.definition.kind != "contraction" or len(node.inputs) != 2:
            return False
        equation = node.equation
        rows, weight = equation.inputs
        result = equation.outputs[0]
        if len(rows) <= dim or len(result) <= dim or len(rows[dim]) != 1:
            return False
        name = rows[dim][0]
        return rows[dim] == result[dim] and all(name not in d for d in weight)

    def _gather(self, node: Node) -> None:
        dim, axis = node.attrs["concat"][0], axis_of(node)
        (whole,), (own,) = node.outputs, node.inputs
        readers = self.graph.users.get(whole, [])
        products = [r for r in readers if self._by_tokens(r, dim) and r.inputs[0] is whole]
        if not products or node in self.replaced:
            return
        first = min(self.position[r] for r in products)
        block = self.graph.block_of.get(node)
        products = [
            r
            for r in products
            if self._made_before(r.inputs[1], first)
            and self.graph.block_of.get(r) is block
            and r not in self.replaced
        ]
        if not products or self.position[products[0]] != first:
            return
        emitter = Emitter(node)
        chunks = [own]
        parts: dict[Node, list[Value]] = {r: [] for r in products}
        for step in range(axis.size):
            if step + 1 < axis.size:
                chunks += emitter.permute(chunks[-1:], axis, f"ring{step + 1}")
            for reader in products:
                inner = Emitter(reader, emitter.nodes)
                like = _chunk_of(reader.outputs[0], dim, axis.size)
                operands = [chunks[step], reader.inputs[1]]
                attrs = _attrs_of_chunk(reader, dim, axis.size)
                made = inner.emit(reader.op, operands, [like], attrs, f"chunk{step}")
                parts[reader] += made
        whole_attrs = {"dim": dim, "index": 0, "by_rank": {"index": (_index(axis),)}}
        for reader in products:
            inner = Emitter(reader, emitter.nodes)
            inner.emit("ring_join", parts[reader], [], whole_attrs, "join", results=reader.outputs)
        if len(products) < len(readers):
            phase = products[0].phase
            emitter.emit(
                "ring_join", chunks, [], whole_attrs, "join", results=(whole,), phase=phase
            )
        self.replaced[node] = []
        self.replaced |= {r: [] for r in products}
        # Other readers (a weight's gradient) may stand before the first product.
        earliest = min(readers, key=lambda r: self.position[r])
        if earliest in products:
            self.replaced[earliest] = emitter.nodes
        else:
            self.replaced[node] = emitter.nodes

    def _made_before(self, value: Value, position: int) -> bool:
        producer = self.graph.producers.get(value)
        return producer is None or self.position[producer] < position

    def _scatter(self, node: Node) -> None:
        dim, axis = node.attrs["split"][0], axis_of(node)
        (term,) = node.inputs
        tree = self._terms(term, dim, node)
        if not tree:
            return
        emitter = Emitter(node)
        total: Value | None = None
        for step in range(axis.size):
            arrived = emitter.permute([total], axis, f"ring{step}")[0] if total else None
            made = self._chunk(term, tree, dim, axis, step, emitter)
            if arrived is not None:
                last = step == axis.size - 1
                results = node.outputs if last else None
                inner = Emitter(tree[term], emitter.nodes)
                (made,) = inner.emit(
                    "add", [arrived, made], [made], {}, f"sum{step}", results=results
                )
            total = made
        self.replaced |= {n: [] for n in tree.values()}
        self.replaced[node] = emitter.nodes

    def _terms(self, value: Value, dim: int, reader: Node) -> dict[Value, Node]:
        """The products by tokens whose sum a value is, and the additions; empty if it is anything else."""
        node = self.graph.producers.get(value)
        alone = self.graph.users.get(value) == [reader]
        if node is None or not alone or node in self.replaced:
            return {}
        if self.graph.block_of.get(node) is not self.graph.block_of.get(reader):
            return {}
        if self._by_tokens(node, dim):
            return {value: node}
        if node.op != "add" or len(node.inputs) != 2 or "scalar" in node.attrs:
            return {}
        left, right = (self._terms(v, dim, node) for v in node.inputs)
        same = all(v.type.shape == value.type.shape for v in node.inputs)
        return {**left, **right, value: node} if left and right and same else {}

    def _chunk(
        self,
        value: Value,
        tree: dict[Value, Node],
        dim: int,
        axis: MeshAxis,
        step: int,
        emitter: Emitter,
    ) -> Value:
        """The terms of the tokens whose sum passes in a step: of the rank itself in the last one."""
        node = tree[value]
        inner = Emitter(node, emitter.nodes)
        attrs = dict(node.attrs)
        if node.op == "add":
            operands = [self._chunk(v, tree, dim, axis, step, emitter) for v in node.inputs]
        else:
            rows = node.inputs[0]
            attrs = _attrs_of_chunk(node, dim, axis.size)
            index = replace(_index(axis), shift=step + 1)
            own = {"dim": dim, "index": 0, "view": True, "by_rank": {"index": (index,)}}
            like = _chunk_of(rows, dim, axis.size)
            chunk = inner.emit("ring_chunk", [rows], [like], own, f"rows{step}")
            operands = [*chunk, node.inputs[1]]
        like = _chunk_of(value, dim, axis.size)
        return inner.emit(node.op, operands, [like], attrs, f"chunk{step}")[0]


def _index(axis: MeshAxis) -> ByRank:
    return ByRank(axis.size, axis.stride, 1)


def _attrs_of_chunk(node: Node, dim: int, parts: int) -> dict[str, Any]:
    """Attributes of a product of some of the tokens."""
    attrs = dict(node.attrs)
    if "equation" in attrs:
        name = factors(node.equation.inputs[0][dim])[0]
        length = node.equation.sizes[name] // parts
        attrs["equation"] = local_equation(node.equation, name, length)
    return attrs


def _chunk_of(value: Value, dim: int, parts: int) -> Value:
    shape = list(value.type.shape)
    shape[dim] //= parts
    return replace(value, type=value.type.with_shape(tuple(shape)))


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Takes the gathers and scatters of tokens over `tp` apart."""
    if not strategy.async_tp or strategy.mesh.axis("tp").size == 1:
        return graph
    return _Rewrite(graph, "tp").run()


PASS = Pass("async_tensor", 85, apply)
