"""The reference of the JSON report, from its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from markup import prose, table

_HEAD = """\
# JSON report

Made from the schema that the reports are checked against, `reports/report.schema.json` (JSON Schema
2020-12), version {version}. `opbound analyze --format json` writes a report; `opbound.Report.from_json` reads
one. When the version grows is said under [stability](../stability.md).

{about}

`[]` stands for each entry of a list, `{{}}` for each value of an object. A key in **bold** is in every report
of this version.
"""


def page() -> str:
    """The page."""
    from reports.report import SCHEMA_VERSION

    schema = json.loads(files("reports").joinpath("report.schema.json").read_text(encoding="utf-8"))
    parts = [_HEAD.format(version=SCHEMA_VERSION, about=schema["description"])]
    plain = [key for key, entry in schema["properties"].items() if entry.get("type") == "string"]
    rows = [row for key in plain for row in _rows(key, schema["properties"][key], True)]
    parts.append("\n## The report\n\n" + table(["key", "type", "meaning"], rows))
    for key, entry in schema["properties"].items():
        if key in plain:
            continue
        rows = list(_rows(key, entry, key in schema["required"]))
        parts.append(f"\n## {key}\n\n" + table(["key", "type", "meaning"], rows))
    return "".join(parts)


def _rows(path: str, entry: dict[str, Any], required: bool) -> Iterator[tuple[str, str, str]]:
    name = f"**`{path}`**" if required else f"`{path}`"
    yield name, _type(entry), prose(entry.get("description", ""))
    for key, inner in entry.get("properties", {}).items():
        yield from _rows(f"{path}.{key}", inner, key in entry.get("required", ()))
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        inner = entry.get(key)
        if isinstance(inner, dict) and ("properties" in inner or "description" in inner):
            yield from _rows(path + suffix, inner, required)


def _type(entry: dict[str, Any]) -> str:
    if "enum" in entry:
        return " ".join(f"`{value}`" for value in entry["enum"])
    if "anyOf" in entry:
        return " or ".join(_type(choice) for choice in entry["anyOf"])
    kinds = entry.get("type", "any")
    said = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    inner = entry.get("items")
    if isinstance(inner, dict) and "type" in inner:
        return f"{said} of {_type(inner)}"
    return said + (f" like `{entry['pattern']}`" if "pattern" in entry else "")
