"""A graph as text, for people: inputs by kind, then every node with the types of its results.

A repeated block is written once, under the number of its repetitions and the prefix that all its names
share; a name in it that begins with a dot continues that prefix. Text from a model file is printable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from graph_ir.equation import Equation
from graph_ir.graph import Block, Graph, Node, Value

MAX_ATTRIBUTE = 60
"""Characters of an attribute that are shown: long lists are constants of the model."""
_SHORTEST_PREFIX = 4


def graph_text(graph: Graph) -> str:
    """The whole graph, one line per input and node."""
    return "\n".join(_lines(graph))


def _lines(graph: Graph) -> Iterator[str]:
    runs = sum(node.count for node in graph.nodes)
    repeated = f", {runs} with repetitions" if runs != len(graph.nodes) else ""
    title = f"graph {_printable(graph.name)}".rstrip()
    nodes = "1 node" if len(graph.nodes) == 1 else f"{len(graph.nodes)} nodes"
    yield f"{title}: {nodes}{repeated}"
    width = max((len(v.kind) for v in graph.inputs), default=0)
    for value in graph.inputs:
        yield f"  {value.kind:<{width}}  {_result(value, '', 1)}{_meaning(value)}"
    starts = {b.start: b for b in graph.blocks}
    stop, indent, prefix, count, during = -1, "  ", "", 1, "forward"
    for index, node in enumerate(graph.nodes):
        block = starts.get(index)
        if block is not None or index == stop:
            indent, prefix, count = "  ", "", 1
        if node.during != during and (block is not None or not prefix):
            during = node.during
            yield f"{during}:"
        if block is not None:
            prefix, count, stop = _prefix_of(graph, block), block.count, block.stop
            yield from _block_lines(block, prefix)
            indent = "    "
        yield indent + _node_line(node, prefix, count)
    if graph.outputs:
        yield f"return {', '.join(_name(v, '') for v in graph.outputs)}"


def _prefix_of(graph: Graph, block: Block) -> str:
    """Whole parts of a dotted path that all results of a block begin with; empty if they share none."""
    nodes = graph.nodes[block.start : block.stop]
    paths = [value.name.split(".") for node in nodes for value in node.outputs]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    prefix = ".".join(parts[0] for parts in shared)
    return prefix if len(prefix) >= _SHORTEST_PREFIX else ""


def _block_lines(block: Block, prefix: str) -> Iterator[str]:
    where = f", names in {_printable(prefix)}" if prefix else ""
    yield f"  repeat {block.count} times{where}:"
    for carry in block.carries:
        argument, result = _name(carry.argument, prefix), _name(carry.result, prefix)
        yield f"    {argument}: first {_name(carry.initial, '')}, then {result}"


def _node_line(node: Node, prefix: str, count: int) -> str:
    results = ", ".join(_result(v, prefix, count) for v in node.outputs)
    operands = ", ".join(_name(v, prefix) for v in node.inputs)
    attributes = "".join(f" {text}" for text in _attributes(node.attrs))
    told = not node.module or node.name.startswith(node.module)
    module = "" if told else f"  # {_printable(node.module)}"
    made = f"{results} = " if results else ""
    return f"{made}{node.op}({operands}){attributes}{module}"


def attributes_text(attrs: Mapping[str, Any]) -> str:
    """A node's attributes on one line, each cut to `MAX_ATTRIBUTE` characters."""
    return " ".join(_attributes(attrs))


def _attributes(attrs: Mapping[str, Any]) -> Iterator[str]:
    for key, value in sorted(attrs.items()):
        # The pass is said once, above its nodes.
        if key == "during":
            continue
        if value is True:
            yield _printable(key)
            continue
        text = f'"{value}"' if isinstance(value, Equation) else _printable(_value_text(value))
        shown = text if len(text) <= MAX_ATTRIBUTE else f"{text[: MAX_ATTRIBUTE - 1]}…"
        yield f"{_printable(key)}={shown}"


def _value_text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"[{','.join(map(_value_text, value[:MAX_ATTRIBUTE]))}]"
    return repr(value) if isinstance(value, str | bytes) else str(value)


def _result(value: Value, prefix: str, count: int) -> str:
    """Name and type, and the number of tensors where the block does not say it."""
    times = f" x{value.count}" if value.count != count else ""
    return f"{_name(value, prefix)}: {value.type}{times}"


def _meaning(value: Value) -> str:
    """What a graph input is for and what its dims mean."""
    dims = ", ".join(_printable(name or "_") for name in value.dim_names)
    parts = [value.role.replace("_", " "), dims if any(value.dim_names) else ""]
    return "".join(f"  ({part})" for part in parts if part)


def _name(value: Value, prefix: str) -> str:
    name = value.name
    if prefix and name.startswith(f"{prefix}."):
        name = name[len(prefix) :]
    return f"%{_printable(name)}"


def _printable(text: str) -> str:
    """Untrusted text on one line, without control characters."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
