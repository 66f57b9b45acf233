"""Takes out what is the same at every step: a compiler computes it when it prepares the model.

Masks and positions made from ranges, tables of angles, sums of biases: what reads no input of the model
becomes a constant. PyTorch's tracing does so too; an ONNX file keeps the operators.
"""

from __future__ import annotations

from dataclasses import replace

from graph_ir.graph import Graph, Node, Value
from graph_ir.patterns.known import is_fixed

# What may be done once with a whole matrix of weights: functions of each element, chosen rows.
_TABULAR = ("elementwise", "gather")


def prepared_once(graph: Graph, *, training: bool = False) -> Graph:
    """The graph with constants in place of what depends on none of its inputs.

    Views stay, since they cost nothing and what they repeat would fill memory. So does what is done with
    weight matrices, but for chosen rows and functions of each element that make them no larger: low-bit
    weights are converted where they are read.

    Args:
        graph: a forward graph; a folded one stays as it is.
        training: whether parameters change from step to step, and buffers with them.
    """
    if graph.blocks:
        return graph
    fixed = _fixed(graph, training)
    again = _remade(graph, fixed)
    dropped = {n for n in graph.nodes if fixed.issuperset(n.outputs) and n not in again}
    if not dropped:
        return graph
    constants: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node in dropped:
            constants |= {v: replace(v, kind="constant") for v in node.outputs}
        elif any(v in constants for v in node.inputs):
            nodes.append(replace(node, inputs=tuple(constants.get(v, v) for v in node.inputs)))
        else:
            nodes.append(node)
    read = {v for node in nodes for v in node.inputs}
    gone = {v for node in dropped for v in node.inputs} - read
    inputs = [v for v in graph.inputs if v not in gone or not _stays(v, training)]
    inputs += [v for v in constants.values() if v in read]
    return replace(graph, inputs=tuple(inputs), nodes=tuple(nodes))


def _stays(value: Value, training: bool) -> bool:
    """Whether an input of the graph holds the same numbers at each step."""
    return value.kind == "constant" or (not training and value.kind in ("buffer", "parameter"))


def _fixed(graph: Graph, training: bool) -> set[Value]:
    """What never changes and may be kept in the place of what it is made from."""
    fixed = {v for v in graph.inputs if _stays(v, training)}
    tables = {v for v in fixed if v.kind != "parameter" or _is_vector(v)}
    for node in graph.nodes:
        if is_fixed(node, tables):
            tables.update(node.outputs)
            fixed.update(node.outputs)
        elif node.definition.kind in _TABULAR and is_fixed(node, fixed) and not _grows(node):
            fixed.update(node.outputs)
    return fixed


def _is_vector(value: Value) -> bool:
    return max(value.type.shape, default=1) == value.type.elements


def _grows(node: Node) -> bool:
    """Whether results take more memory than operands."""
    return sum(v.type.bytes for v in node.outputs) > sum(v.type.bytes for v in node.inputs)


def _remade(graph: Graph, fixed: set[Value]) -> set[Node]:
    """Nodes that run at each step all the same, though they only read what never changes.

    They are views, and what makes a result of the model or a tensor that is then written to.
    """
    needed = set(graph.outputs)
    read: set[Value] = set()
    again: set[Node] = set()
    for node in reversed(graph.nodes):
        view = node.definition.is_view(node)
        if fixed.issuperset(node.outputs):
            if needed.isdisjoint(node.outputs) and not (view and not read.isdisjoint(node.outputs)):
                continue
            again.add(node)
            if not needed.isdisjoint(node.outputs):
                needed.update(node.inputs if view else ())
        elif node.definition.in_place is not None:
            needed.add(node.inputs[node.definition.in_place])
        read.update(node.inputs)
    return again
