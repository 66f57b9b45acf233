"""Which rearrangements a fusing compiler does not carry out, since the next kernel reads in their order.

ONNX files say nothing of memory: their runtime copies at every Transpose, Slice and Expand, where
PyTorch makes views. A fusing compiler does neither: it gives every kernel the strides to read with. A
reshape alone may need a copy: where its dims have no stride in what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from graph_ir.graph import Graph, Node, Value
from graph_ir.patterns.layout import (
    Layout,
    contiguous,
    expanded,
    is_strided,
    repeats,
    reshaped,
    sliced,
)

_REARRANGE = frozenset({"transpose", "expand", "slice", "split", "reshape"})
# Kernels of these kinds walk over their operands by any strides.
_ANY_STRIDES = frozenset(
    {
        "elementwise",
        "reduction",
        "normalization",
        "attention",
        "contraction",
        "data_movement",
        "gather",
    }
)


def read_in_place(graph: Graph) -> Graph:
    """Rearrangements become views, and reshapes views or copies, as strides allow."""
    walk = _Walk(graph)
    nodes = tuple(walk.visited(node) for node in graph.nodes)
    if all(a is b for a, b in zip(nodes, graph.nodes, strict=True)):
        return graph
    return replace(graph, nodes=nodes)


class _Walk:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.strided: dict[Value, Layout] = {}
        """Layouts of values that are not stored row by row."""
        self.fixed = set(graph.outputs)
        for block in graph.blocks:
            self.fixed |= block.collected
            for carry in block.carries:
                self.fixed |= {carry.initial, carry.result}

    def visited(self, node: Node) -> Node:
        if node.op not in _REARRANGE or "equation" in node.attrs:
            self._written(node)
            return node
        found = self._rearranged(node)
        if found is None or not self._may_be_view(node, found):
            return _as_copy(node)
        for value, layout in zip(node.outputs, found, strict=True):
            self._note(value, layout)
        return node if node.attrs.get("view") else replace(node, attrs={**node.attrs, "view": True})

    def _note(self, value: Value, layout: Layout) -> None:
        if layout != contiguous(value.type.shape):
            self.strided[value] = layout

    def layout(self, value: Value) -> Layout:
        return self.strided.get(value) or contiguous(value.type.shape)

    def _may_be_view(self, node: Node, layouts: list[Layout]) -> bool:
        if node.attrs.get("view"):
            return True
        if all(x == contiguous(v.type.shape) for v, x in zip(node.outputs, layouts, strict=True)):
            return True
        if any(v in self.fixed for v in node.outputs):
            return False
        return all(r.definition.kind in _ANY_STRIDES for r in self._readers(node))

    def _readers(self, node: Node) -> Iterator[Node]:
        for value in node.outputs:
            yield from self.graph.users.get(value, ())

    def _rearranged(self, node: Node) -> list[Layout] | None:
        """Layouts of the results in the operand's memory; None if strides cannot say them."""
        source, shape = self.layout(node.inputs[0]), node.outputs[0].type.shape
        found: Layout | None
        if node.op == "transpose":
            return [tuple(source[p] for p in node.attrs["perm"])]
        if node.op == "expand":
            return [expanded(source, shape)]
        if node.op == "split":
            steps = (1,) * len(shape)
            cut = [sliced(source, steps, v.type.shape) for v in node.outputs]
            return [x for x in cut if x is not None] if None not in cut else None
        if node.op == "slice":
            found = sliced(source, node.attrs.get("steps", (1,) * len(shape)), shape)
        else:
            found = reshaped(source, shape)
        return None if found is None or not is_strided(found) else [found]

    def _written(self, node: Node) -> None:
        """How a kernel stores its results."""
        if node.op == "attention":
            # Heads side by side, as the projection behind it reads them (FlashAttention and cuDNN both).
            shape = node.outputs[0].type.shape
            self._note(node.outputs[0], contiguous(shape, (0, 2, 1, 3)))
        elif node.definition.kind == "elementwise":
            for result in node.outputs:
                shape = result.type.shape
                same = (self.strided.get(v) for v in node.inputs if v.type.shape == shape)
                layout = next((x for x in same if x is not None and _is_dense(x)), None)
                # A copy is made to have its elements row by row.
                if layout is not None and node.op != "copy":
                    self._note(result, layout)


def _as_copy(node: Node) -> Node:
    """The same as a copy."""
    if not node.attrs.get("view"):
        return node
    return replace(node, attrs={k: v for k, v in node.attrs.items() if k != "view"})


def _is_dense(layout: Layout) -> bool:
    """Whether elements fill their memory, in whatever order."""
    if repeats(layout) or not is_strided(layout):
        return False
    step = 1
    for n, stride in sorted((f for d in layout for f in d), key=lambda f: f[1]):
        if stride != step:
            return False
        step *= n
    return True
