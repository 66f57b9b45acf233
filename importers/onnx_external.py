"""Tensors whose elements lie in another file: never read, but it must be one beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING

from graph_ir.errors import ModelFileError

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, TensorProto

_MAX_LISTED = 3


def external_notes(model: ModelProto, path: Path) -> list[str]:
    """Says which external data files are absent.

    Args:
        model: parsed from `path`.
        path: of the model file.

    Raises:
        ModelFileError: a file lies outside the model's folder, or is a link to one there.
    """
    absent: list[str] = []
    seen: set[str] = set()
    for tensor in _tensors(model):
        location = external_entry(tensor, "location")
        if location is None or location in seen:
            continue
        seen.add(location)
        if not _is_inside(location, path):
            raise ModelFileError(
                f"{path}: tensor {tensor.name!r} keeps its data at {location!r}, outside the "
                "model's folder: such files are not read, save the model with its data beside it"
            )
        if not _is_file(path.parent / location):
            absent.append(location)
    if not absent:
        return []
    more = f" and {len(absent) - _MAX_LISTED} more" if len(absent) > _MAX_LISTED else ""
    names = ", ".join(absent[:_MAX_LISTED]) + more
    return [f"External data is absent ({names}); only shapes were needed."]


def _is_inside(location: str, path: Path) -> bool:
    """Whether a location written in the model at `path` stays in its folder, links followed."""
    for written in (PurePath(location), PureWindowsPath(location)):
        if written.is_absolute() or written.drive or ".." in written.parts:
            return False
    try:
        target = (path.parent / location).resolve()
        # Download caches link a model and its data to one store.
        folders = (path.parent.resolve(), path.resolve().parent)
    except (OSError, RuntimeError, ValueError):
        return False
    return any(target.is_relative_to(folder) for folder in folders)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the model, those of subgraphs and functions too."""
    waiting: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield from getattr(graph, "initializer", ())
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def external_entry(tensor: TensorProto, key: str) -> str | None:
    """The value of one of a tensor's external_data entries, or None."""
    for entry in tensor.external_data:
        if entry.key == key:
            return str(entry.value)
    return None
