"""Of a value that is gathered for one of its rows, only candidates for that row are gathered.

A prefill hands on the last token alone. Where the tokens are split, that is one row of one device: every
device sends the row that stands there in its own part, and the right one of them is taken.
"""

from __future__ import annotations

from dataclasses import replace

from graph_ir.graph import Graph, Node
from partitioner.renumber import renumbered
from partitioner.strategies.rings import Emitter


def gathered_late(graph: Graph, axis: str) -> Graph:
    """The graph with rows taken before they are gathered over a mesh axis."""
    replaced: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.op != "all_gather" or node.attrs["axis"] != axis:
            continue
        readers = graph.users.get(node.outputs[0], [])
        if readers and node.outputs[0] not in graph.outputs and all(_row(node, r) for r in readers):
            replaced[node] = []
            replaced |= {r: _taken(node, r) for r in readers}
    return renumbered(graph, replaced) if replaced else graph


def _row(gather: Node, reader: Node) -> bool:
    """Whether a node reads one row of what is gathered."""
    dim, major, minor = gather.attrs.get("concat") or (0, 0, 0)
    if reader.op != "slice" or (major, minor) != (1, 1) or reader.inputs[0].count != reader.count:
        return False
    return reader.outputs[0].type.shape[dim] == 1 and reader.phase == "forward"


def _taken(gather: Node, reader: Node) -> list[Node]:
    dim, parts = gather.attrs["concat"][0], gather.attrs["group_size"]
    own, (result,) = gather.inputs[0], reader.outputs
    length = own.type.shape[dim]
    starts = list(reader.attrs["starts"])
    owner, place = divmod(starts[dim], length)
    if "zigzag" in gather.attrs:
        # A device has the chunks i and 2p - 1 - i of 2p.
        chunk, place = divmod(starts[dim], length // 2)
        owner = min(chunk, 2 * parts - 1 - chunk)
        place += length // 2 if chunk >= parts else 0
    emitter = Emitter(reader)
    starts[dim] = place
    attrs = {**reader.attrs, "starts": tuple(starts)}
    (row,) = emitter.emit("slice", [own], [result], attrs, "candidate")
    shape = list(row.type.shape)
    shape[dim] = parts
    rows = replace(row, type=row.type.with_shape(tuple(shape)))
    attrs = {k: v for k, v in gather.attrs.items() if k != "zigzag"}
    (rows,) = emitter.emit("all_gather", [row], [rows], attrs, "candidates", phase="communication")
    rank = len(shape)
    taken = {
        "starts": tuple(owner if i == dim else 0 for i in range(rank)),
        "steps": (1,) * rank,
        "view": True,
    }
    emitter.emit("slice", [rows], [result], taken, "row", results=[result])
    return emitter.nodes
