"""Reads an ONNX file safely: weights stay on disk, broken files give one line.

Binary protobuf goes through `onnx_wire`, so neither memory nor protobuf's 2 GB limit depends on the
weights. Files in protobuf's text format and in ONNX's own textual syntax are read as well.
"""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graph_ir.errors import ModelFileError
from importers.onnx_external import external_entry, external_notes
from importers.onnx_wire import STRIPPED_KEY, WireError, strip_weights

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_MAX_TEXT_BYTES = 256 << 20
_PROTOBUF_LIMIT_BYTES = (1 << 31) - 1


@dataclass(frozen=True)
class OnnxFile:
    """A parsed model file without its large tensors."""

    model: ModelProto
    """The model; tensors over a few KiB have dims and type but no payload."""
    path: Path
    """Where it was read from."""
    sha256: str
    """Hash of what was read, hexadecimal: the file's bytes without the elements of its large tensors, so
    that neither reading them nor other weights in the same model count."""
    notes: tuple[str, ...]
    """What was odd but harmless, one sentence each."""


def read_onnx(path: Path) -> OnnxFile:
    """Reads the model at `path`.

    Raises:
        ModelFileError: the file is absent, empty, truncated or no ONNX model.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ModelFileError(f"{path} is a directory: give the path of an .onnx file")
        if size == 0:
            raise ModelFileError(f"{path} is empty: download or export the model again")
        with path.open("rb") as file:
            if is_text(file.read(64), path):
                content, model = _parse_text(path, size)
            else:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    content, model = _parse_binary(path, data)
    except FileNotFoundError:
        raise ModelFileError(f"there is no file {path}: check the path") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror or error}") from None
    if not model.HasField("graph"):
        raise ModelFileError(f"{path} holds no graph: it is no complete ONNX model")
    if not model.opset_import and (model.graph.node or model.functions):
        raise ModelFileError(
            f"{path} names no operator set (opset_import is empty): it is no valid ONNX model"
        )
    sha256 = hashlib.sha256(content).hexdigest()
    return OnnxFile(model, path, sha256, tuple(external_notes(model, path)))


def is_text(head: bytes, path: Path) -> bool:
    """Whether a file that begins with `head` is a model in one of the text forms."""
    if path.suffix in (".onnxtxt", ".pbtxt", ".textproto", ".prototxt", ".txt"):
        return True
    start = head.lstrip()
    return start.startswith((b"ir_version:", b"<ir_version", b"< ir_version"))


def _parse_text(path: Path, size: int) -> tuple[bytes, ModelProto]:
    from google.protobuf import text_format
    from onnx import ModelProto, parser

    if size > _MAX_TEXT_BYTES:
        raise ModelFileError(f"{path} is a text file of {size} bytes: convert it to binary first")
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
        if text.lstrip().startswith("<"):
            return content, parser.parse_model(text)
        model = ModelProto()
        text_format.Parse(text, model)
    except (UnicodeDecodeError, text_format.ParseError, parser.ParseError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelFileError(f"{path} is no ONNX model in text form: {reason}") from None
    return content, model


def _parse_binary(path: Path, data: mmap.mmap) -> tuple[bytes, ModelProto]:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    try:
        stripped = strip_weights(data)
        if len(stripped) > _PROTOBUF_LIMIT_BYTES:
            raise ModelFileError(f"{path} is over 2 GB even without its weights")
        model = ModelProto()
        model.ParseFromString(stripped)
    except WireError as error:
        raise ModelFileError(
            f"{path} is truncated or no ONNX model ({error}): download or export it again"
        ) from None
    except (DecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelFileError(f"{path} is no ONNX model: {reason}") from None
    return stripped, model


def payload_is_here(tensor: TensorProto) -> bool:
    """Whether the tensor's elements were kept: neither external, nor stripped, nor never there."""
    if tensor.external_data:
        return False
    return bool(
        tensor.raw_data
        or tensor.float_data
        or tensor.int32_data
        or tensor.int64_data
        or tensor.double_data
        or tensor.uint64_data
        or 0 in tensor.dims
    )


def check_payload(tensor: TensorProto, needed_bytes: int, where: str) -> None:
    """Compares the bytes that a tensor has with what its dims and dtype need.

    Raises:
        ModelFileError: raw data or stripped data of another length.
    """
    found: int | None = None
    stripped = external_entry(tensor, STRIPPED_KEY)
    if stripped is not None:
        found = int(stripped) if stripped.isdecimal() else None
    elif tensor.raw_data:  # empty: a model saved without its weights
        found = len(tensor.raw_data)
    if found is not None and found != needed_bytes:
        raise ModelFileError(
            f"{where} has {found} bytes of data where its shape {list(tensor.dims)} needs "
            f"{needed_bytes}: the file is damaged, export it again"
        )
