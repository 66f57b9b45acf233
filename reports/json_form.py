"""Report to JSON and back. The schema is `report.schema.json`, beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from graph_ir.errors import OpboundError
from reports.figures import Instance
from reports.records import Record
from reports.report import SCHEMA_VERSION, Report

SCHEMA_PATH = Path(__file__).with_name("report.schema.json")
"""The published JSON Schema of a report."""

# Keys that only one mode has: they are left out, not written as null, where they mean nothing.
_OPTIONAL_KEYS = frozenset(
    {
        "prefill_time_s",
        "decode_time_s",
        "time_per_token_s",
        "search",
        "pipeline",
        "energy_j",
        "idle_watts",
    }
)


def to_plain(value: Any) -> Any:
    """Records as dicts, tuples as lists, everything else as it is."""
    if isinstance(value, Record):
        return {
            key: to_plain(value[key])
            for key in value
            if not (key in _OPTIONAL_KEYS and value[key] is None)
        }
    if isinstance(value, Instance):
        return value._asdict()
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
    return value


def dump_report(report: Report) -> str:
    """The report as JSON text that ends in a newline; the same report gives the same bytes."""
    # One line per key, and one per row of a list: readable, a tenth of indented JSON's time and
    # half its size, and a line-wise diff names the rows that changed.
    keys = [f"{_line(key)}: {_lines(value)}" for key, value in to_plain(report).items()]
    return "{\n" + ",\n".join(keys) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(_line, value)) + "\n]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def load_report(text: str) -> Report:
    """Reads a report back.

    Raises:
        OpboundError: if the text is not JSON, not a report, or of another schema version.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise OpboundError(
            f"not a report: {error}; give a file of `opbound --format json`"
        ) from None
    if not isinstance(plain, dict) or "schema_version" not in plain:
        raise OpboundError(
            "not a report: it has no schema_version; give a file of `opbound --format json`"
        )
    version = str(plain["schema_version"])
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise OpboundError(
            f"the report has schema version {version}, this opbound reads {SCHEMA_VERSION}: "
            "analyse the model again"
        )
    report: Report = _read(Report, plain, "report")
    return report


def _read(kind: Any, plain: Any, where: str) -> Any:
    """Turns plain JSON into what the annotation `kind` says; `where` names the place in errors."""
    origin = get_origin(kind)
    if origin in (UnionType, Union):
        if plain is None:
            return None
        return _read(next(arm for arm in get_args(kind) if arm is not type(None)), plain, where)
    if origin is tuple:
        _expect(isinstance(plain, list), "a list", where)
        return tuple(_read(get_args(kind)[0], entry, where) for entry in plain)
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(plain, dict), "an object", where)
        inner = get_args(kind)[1]
        return {key: _read(inner, entry, f"{where}.{key}") for key, entry in plain.items()}
    if isinstance(kind, type) and issubclass(kind, Record | Instance):
        return _read_record(kind, plain, where)
    if kind is float:
        _expect(isinstance(plain, int | float) and not isinstance(plain, bool), "a number", where)
        return float(plain)
    if kind in (int, str, bool):
        right = isinstance(plain, kind) and not (kind is int and isinstance(plain, bool))
        _expect(right, kind.__name__, where)
    return plain


def _read_record(kind: type[Record | Instance], plain: Any, where: str) -> Record | Instance:
    _expect(isinstance(plain, dict), "an object", where)
    hints = _hints(kind)
    # A newer minor version may say more: keys that this version does not know are passed over.
    known = {
        key: _read(hints[key], entry, f"{where}.{key}")
        for key, entry in plain.items()
        if key in hints
    }
    try:
        return kind(**known)
    except TypeError as error:
        missing = str(error).partition("argument")[2].lstrip("s: ")
        raise OpboundError(f"not a report: {where} lacks {missing}") from None


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _HINTS:
        hints = get_type_hints(kind)
        _HINTS[kind] = {key: hint for key, hint in hints.items() if not key.startswith("_")}
    return _HINTS[kind]


def _expect(right: bool, wanted: str, where: str) -> None:
    if not right:
        raise OpboundError(f"not a report: {where} should be {wanted}")
