"""Copies an ONNX file with notes on its nodes, byte for byte but for them.

Notes are entries of `metadata_props`, which viewers show and runtimes skip. The file is rewritten on the
wire: nodes and graph get new lengths, every other byte is copied from the memory map as it is, so that
weights are neither parsed nor held, and the IR version and unknown fields stay.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graph_ir.errors import ModelFileError
from importers.onnx_external import external_entry
from importers.onnx_file import is_text, read_onnx
from importers.onnx_names import name_of
from importers.onnx_wire import LENGTH_DELIMITED, WireError, delimited, encode_varint, fields

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

PREFIX = "opbound."
"""Begins every key of a note; older notes are replaced."""

CHUNK_BYTES = 16 << 20

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_METADATA, _GRAPH_NODE, _NODE_METADATA = 7, 14, 1, 9
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

Notes = Mapping[str, str]
Piece = bytes | slice
"""New bytes, or a range of the old ones."""
Change = Callable[[int, int, int], list[Piece] | None]
"""(field number, start and end of its value) -> what takes the field's place; None keeps it."""


def node_names(path: Path) -> list[str]:
    """What the operator graph calls each node of the main graph, in the file's order.

    Raises:
        ModelFileError: the file cannot be read.
    """
    return [name_of(node) for node in read_onnx(path).model.graph.node]


def check_place(path: Path, target: Path) -> None:
    """Makes sure that a copy at `target` finds the weights that `path` keeps in other files.

    Raises:
        ModelFileError: the copy would lie in another folder, or in place of the weights.
    """
    locations = {
        location
        for tensor in _tensors(read_onnx(path).model)
        if (location := external_entry(tensor, "location")) is not None
    }
    if not locations:
        return
    folder, place = path.parent.resolve(), target.resolve()
    if place in {(folder / location).resolve() for location in locations}:
        raise ModelFileError(f"{target} holds the weights of {path}: choose another output file")
    if place.parent != folder:
        raise ModelFileError(
            f"{path} keeps weights in files beside it ({sorted(locations)[0]}): write the copy into "
            f"the same folder, {folder}, so that it finds them"
        )


def annotated(path: Path, of_nodes: Sequence[Notes], of_model: Notes) -> Iterator[bytes]:
    """The bytes of the file with notes.

    Args:
        path: a binary ONNX file.
        of_nodes: notes of each node of the main graph, in the file's order; their keys get `PREFIX`.
        of_model: notes of the model itself.

    Raises:
        ModelFileError: the file cannot be read, or is in text form.
    """
    try:
        with path.open("rb") as file:
            if is_text(file.read(64), path):
                raise ModelFileError(
                    f"{path} is an ONNX model in text form, which holds no notes: convert it to binary"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for piece in _model(data, iter(of_nodes), of_model):
                    yield from _bytes_of(data, piece)
    except WireError as error:
        raise ModelFileError(f"{path} is no ONNX model ({error})") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror or error}") from None


def _model(data: mmap.mmap, of_nodes: Iterator[Notes], of_model: Notes) -> list[Piece]:
    def change(number: int, start: int, end: int) -> list[Piece] | None:
        if number == _MODEL_GRAPH:
            return _nested(_MODEL_GRAPH, _graph(data, start, end, of_nodes))
        return [] if number == _MODEL_METADATA and _is_note(data, start, end) else None

    return [*_changed(data, 0, len(data), change), *_entries(_MODEL_METADATA, of_model)]


def _graph(data: mmap.mmap, start: int, end: int, of_nodes: Iterator[Notes]) -> list[Piece]:
    def change(number: int, start: int, end: int) -> list[Piece] | None:
        if number != _GRAPH_NODE:
            return None
        node = _changed(data, start, end, drop_notes)
        return _nested(_GRAPH_NODE, [*node, *_entries(_NODE_METADATA, next(of_nodes, {}))])

    def drop_notes(number: int, start: int, end: int) -> list[Piece] | None:
        return [] if number == _NODE_METADATA and _is_note(data, start, end) else None

    return _changed(data, start, end, change)


def _changed(data: mmap.mmap, start: int, end: int, change: Change) -> list[Piece]:
    """The message in data[start:end] with some fields replaced."""
    pieces: list[Piece] = []
    kept_from = start
    for number, wire_type, field_start, value_start, value_end in fields(data, start, end):
        new = change(number, value_start, value_end) if wire_type == LENGTH_DELIMITED else None
        if new is not None:
            pieces += (slice(kept_from, field_start), *new)
            kept_from = value_end
    return [*pieces, slice(kept_from, end)]


def _nested(number: int, pieces: list[Piece]) -> list[Piece]:
    length = sum(p.stop - p.start if isinstance(p, slice) else len(p) for p in pieces)
    return [encode_varint(number << 3 | LENGTH_DELIMITED) + encode_varint(length), *pieces]


def _entries(number: int, notes: Notes) -> list[Piece]:
    return [
        delimited(
            number,
            delimited(_ENTRY_KEY, f"{PREFIX}{key}".encode())
            + delimited(_ENTRY_VALUE, text.encode("utf-8", "backslashreplace")),
        )
        for key, text in notes.items()
    ]


def _is_note(data: mmap.mmap, start: int, end: int) -> bool:
    """Whether a metadata entry is one of ours."""
    return any(
        number == _ENTRY_KEY and data[value_start:value_end].startswith(PREFIX.encode())
        for number, _, _, value_start, value_end in fields(data, start, end)
    )


def _bytes_of(data: mmap.mmap, piece: Piece) -> Iterator[bytes]:
    if isinstance(piece, bytes):
        yield piece
        return
    for start in range(piece.start, piece.stop, CHUNK_BYTES):
        yield data[start : min(start + CHUNK_BYTES, piece.stop)]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that may lie in another file."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Sequence[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from _graph_tensors(graph)
