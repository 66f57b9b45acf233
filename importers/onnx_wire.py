"""Drops weight payloads from a serialised ONNX model before protobuf sees them.

A model file is mostly raw tensor bytes that no analysis reads. Protobuf would copy all of them (and
refuses messages over 2 GB), so this walks the wire format over a memory map, keeps everything but
large tensor payloads, and leaves a note of each payload's length in its place. Only messages longer
than the limit are looked into, so the walk takes one step per node and initializer.

Source: the wire format at https://protobuf.dev/programming-guides/encoding/, field numbers from
    onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

PAYLOAD_LIMIT_BYTES = 4096
"""Tensors up to this size are kept: shapes, axes and scales are needed to resolve shapes."""

STRIPPED_KEY = "opbound.stripped_bytes"
"""Key of the external_data entry that says how many bytes of raw_data a tensor had ("typed" when
its payload was in a typed field such as float_data)."""

OFFSET_KEY = "opbound.stripped_offset"
"""Key of the entry that says where in the file that raw_data begins."""

_VARINT, _FIXED64, LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_TENSOR = "TensorProto"

# Message -> field number -> message of the fields through which tensors are reached.
_CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
}
# float_data, int32_data, string_data, int64_data, raw_data, double_data, uint64_data of
# TensorProto.
_PAYLOAD_FIELDS = frozenset({4, 5, 6, 7, 9, 10, 11})
_RAW_DATA = 9
_MAX_DEPTH = 100


class WireError(ValueError):
    """The bytes are not a well-formed protobuf message."""


def _varint(data: mmap.mmap | bytes, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise WireError(f"a number at byte {position} is longer than 64 bits")
    raise WireError(f"the file ends inside a number at byte {position}")


def fields(
    data: mmap.mmap | bytes, start: int, end: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields (number, wire type, start of the field, start of its value, end) per field.

    Raises:
        WireError: the bytes are no message.
    """
    position = start
    while position < end:
        tag, value_start = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, value_end = _varint(data, value_start, end)
        elif wire_type == _FIXED64:
            value_end = value_start + 8
        elif wire_type == _FIXED32:
            value_end = value_start + 4
        elif wire_type == LENGTH_DELIMITED:
            length, value_start = _varint(data, value_start, end)
            value_end = value_start + length
        else:
            raise WireError(f"byte {position} starts no protobuf field")
        if number == 0 or value_end > end:
            raise WireError(f"a field at byte {position} runs past the end of its message")
        yield number, wire_type, position, value_start, value_end
        position = value_end


def encode_varint(value: int) -> bytes:
    """A non-negative number as the wire has it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def delimited(number: int, payload: bytes) -> bytes:
    """A field that holds bytes, text or a message."""
    return encode_varint(number << 3 | LENGTH_DELIMITED) + encode_varint(len(payload)) + payload


def _strip(data: mmap.mmap | bytes, start: int, end: int, message: str, depth: int) -> bytes:
    """Returns the message in data[start:end] without large tensor payloads."""
    if depth > _MAX_DEPTH:
        raise WireError(f"messages are nested deeper than {_MAX_DEPTH}")
    children = _CHILDREN.get(message, {})
    pieces: list[bytes] = []
    kept_from = start  # bytes since here are unchanged and copied in one slice
    notes: dict[str, str] = {}
    for number, wire_type, field_start, value_start, value_end in fields(data, start, end):
        if wire_type != LENGTH_DELIMITED or value_end - value_start <= PAYLOAD_LIMIT_BYTES:
            continue
        if message == _TENSOR and number in _PAYLOAD_FIELDS:
            replacement = b""
            if number == _RAW_DATA:
                notes = {STRIPPED_KEY: str(value_end - value_start), OFFSET_KEY: str(value_start)}
            else:
                notes.setdefault(STRIPPED_KEY, "typed")
        elif number in children:
            replacement = delimited(
                number, _strip(data, value_start, value_end, children[number], depth + 1)
            )
        else:
            continue
        pieces += (data[kept_from:field_start], replacement)
        kept_from = value_end
    pieces.append(data[kept_from:end])
    for key, value in notes.items():
        entry = delimited(1, key.encode()) + delimited(2, value.encode())
        pieces.append(delimited(13, entry))  # TensorProto.external_data
    return b"".join(pieces)


def strip_weights(data: mmap.mmap | bytes) -> bytes:
    """Returns a serialised ModelProto without tensor payloads over `PAYLOAD_LIMIT_BYTES`.

    A tensor that lost its payload carries an external_data entry `STRIPPED_KEY` with the payload's
    bytes, and one `OFFSET_KEY` where they can be read.

    Raises:
        WireError: the bytes are truncated or no protobuf message; the text says at which byte.
    """
    return _strip(data, 0, len(data), "ModelProto", 0)
