"""Context parallelism of a decode step: the cached tokens are split, for there is one token besides.

Every device keeps a part of the cached keys and values, and attends to it with the whole query. What it
finds is a term of a mean: attention to all tokens is the sum of the parts' results, weighted with the softmax
of the logarithms of their sums (as Flash-Decoding does within a device; Dao et al. 2023,
https://pytorch.org/blog/flash-decoding). So the logarithms are gathered, one number per query and head, and
the weighted results all-reduced: two messages per layer, of the same size for any number of cached tokens.
The keys and values of the new token are written where they fall into a device's part. All else runs on every
device.

Attention that is written out as products and a softmax needs no such rule: the softmax is taken apart into a
maximum, a sum and elementwise work, and each of the two and the product with the values is reduced.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from math import ceil

from graph_ir.decompose import decompose
from graph_ir.equation import bind
from graph_ir.graph import Graph, Node, Value
from graph_ir.logical_axes import Axis, LogicalAxes
from graph_ir.ops.attention import attention_in_parts
from graph_ir.resize import resized
from graph_ir.tensor_type import DType, TensorType
from partitioner.mesh import MeshAxis
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.renumber import renumbered
from partitioner.strategies.data import batch_axes
from partitioner.strategies.rings import Emitter


def split_cached_tokens(graph: Graph, mesh_axis: MeshAxis) -> Graph | None:
    """The graph of one rank with cached tokens split; None if the graph attends to none.

    A cache whose tokens do not divide gets room for some more: that of the rank with most.
    """
    if any(node.phase != "forward" for node in graph.nodes):
        return None
    graph = _spread_writes(_written_in_place(graph))
    axes = graph.axes
    cached = cached_axes(graph, axes, mesh_axis.size)
    if not cached:
        return None
    parts = mesh_axis.size
    room = {a: ceil(a.size / parts) * parts for a in cached if a.size % parts}
    if room:
        graph = resized(graph, axes, room, (n for found in cached.values() for n in found))
        axes = graph.axes
        cached = cached_axes(graph, axes, parts)
    fused = [n for found in cached.values() for n in found if n.op == "attention"]
    graph = renumbered(graph, {node: _in_parts(node, parts) for node in fused})
    axes = graph.axes
    cached = cached_axes(graph, axes, parts)
    places = {(n.name, *_place(axes, n, a)) for a, found in cached.items() for n in found}
    graph = decompose(graph, lambda node: _normalises(graph, node, axes, cached.keys()))
    axes = graph.axes
    own = {n.name: axes.of_node(n) for n in graph.nodes}
    split = frozenset(own[node][name][factor] for node, name, factor in places)
    return split_graph(graph, axes, Plan(mesh_axis, split))


def cached_axes(graph: Graph, axes: LogicalAxes, parts: int) -> dict[Axis, list[Node]]:
    """Axes of tokens that come from outside, with the nodes that attend to them.

    Where tokens are several factors (a window of so many, and the others), it is the first that divides
    into the parts, else the largest.

    They are the keys of a fused attention, or in a product of data with data that are normalised over the
    axis, or written along it into what is given (a cache).
    """
    given = {v for v in graph.inputs if v.kind == "input" and not _numbers_rows(v)}
    stored = set(graph.parameters)
    weights = {a for v in stored for a in axes.all_of(v)}
    outside = {a for v in given for a in axes.all_of(v)} - weights - batch_axes(graph, axes)
    tokens: set[Axis] = set()
    for node in graph.nodes:
        if node.op == "softmax":
            tokens.update(_whole_axes(node, axes))
        elif node.op == "slice_update" and node.inputs[0] in given:
            tokens.update(axes.of_node(node)[f"i{node.attrs['axis']}"])
    found: dict[Axis, list[Node]] = {}
    for node in graph.nodes:
        own: list[tuple[Axis, ...]] = []
        if node.op == "attention":
            keys = axes.of_node(node)["p" if "parts" in node.attrs else "t"]
            # The fused form tells runs of keys apart, so it is the first factor or none.
            own = [keys[:1]] if len(keys) == 1 or (keys and keys[0].size % parts == 0) else []
        elif node.definition.kind == "contraction" and stored.isdisjoint(node.inputs):
            own = [dims for dims in axes.of_node(node).values() if not tokens.isdisjoint(dims)]
        for dims in own:
            free = [a for a in dims if a in outside and not a.blocked]
            even = [a for a in free if a.size % parts == 0]
            for axis in even[:1] or sorted(free, key=lambda a: a.size)[-1:]:
                found.setdefault(axis, []).append(node)
    return found


def _whole_axes(node: Node, axes: LogicalAxes) -> list[Axis]:
    """The axes that a node needs whole."""
    return [a for name in sorted(node.equation.replicated) for a in axes.of_node(node)[name]]


def _numbers_rows(value: Value) -> bool:
    """Whether it holds token numbers, not numbers: caches may be of 8-bit integers."""
    return not value.type.dtype.is_float and value.type.dtype.bits > 8


def _place(axes: LogicalAxes, node: Node, axis: Axis) -> tuple[str, int]:
    """The name behind which an axis stands in a node's equation, and which of its factors it is."""
    return next((n, own.index(axis)) for n, own in axes.of_node(node).items() if axis in own)


def _normalises(graph: Graph, node: Node, axes: LogicalAxes, cached: Set[Axis]) -> bool:
    """Whether a softmax is one over cached tokens; that over the sums of their parts is small, and whole."""
    if node.op != "softmax" or cached.isdisjoint(_whole_axes(node, axes)):
        return False
    producer = graph.producers.get(node.inputs[0])
    return producer is None or producer.op != "attention"


def _in_parts(node: Node, parts: int) -> list[Node]:
    """Attention to each part of the keys, and their weighted mean."""
    emitter, (result, *_) = Emitter(node), node.outputs
    apart = result.type.with_shape((parts, *result.type.shape))
    sums = TensorType(apart.shape[:-1], DType.FLOAT32)
    like = [replace(result, type=apart), replace(result, type=sums)]
    found, logs = emitter.emit(
        "attention", node.inputs, like, attention_in_parts(node, parts), "parts"
    )
    (shares,) = emitter.emit("softmax", [logs], [logs], {"axis": 0}, "shares")
    equation = bind("p b h s, p b h s e -> b h s e", [sums.shape, apart.shape], [result.type.shape])
    emitter.emit(
        "einsum", [shares, found], [result], {"equation": equation}, "mean", results=[result]
    )
    return emitter.nodes


def _spread_writes(graph: Graph) -> Graph:
    """Caches are written where their tokens lie."""
    inputs = {v for v in graph.inputs if v.kind == "input"}
    return renumbered(
        graph,
        {
            n: [replace(n, attrs={**n.attrs, "clipped": True})]
            for n in graph.nodes
            if n.op == "slice_update" and n.inputs[0] in inputs
        },
    )


def _written_in_place(graph: Graph) -> Graph:
    """Caches that a step appends to by making a longer copy get room for the new tokens, and are written.

    That is how a runtime keeps a cache that lies on several devices, whatever the file says.
    """
    grown: dict[Node, tuple[Value, Value]] = {}
    for node in graph.nodes:
        if node.op != "concat" or len(node.inputs) != 2 or node.outputs[0] not in graph.outputs:
            continue
        past = node.inputs[0]
        if past.kind == "input" and graph.users[past] == [node]:
            grown[node] = past, replace(past, type=node.outputs[0].type, role=past.role)
    if not grown:
        return graph
    room = dict(grown.values())
    rename = {v: room.get(v, v) for v in graph.inputs}
    writes = {
        node: [
            replace(
                node,
                op="slice_update",
                inputs=(buffer, node.inputs[1]),
                attrs={"axis": node.attrs["axis"], "start": past.type.shape[node.attrs["axis"]]},
            )
        ]
        for node, (past, buffer) in grown.items()
    }
    return replace(renumbered(graph, writes), inputs=tuple(rename.values()))
