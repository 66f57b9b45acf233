"""The reference of the Python API: public names with their signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from markup import classes_of, field_texts, prose, table

_HEAD = """\
# Python API

Made from signatures and docstrings. Only what is on this page is promised to users; the packages below
`opbound` may change with any version. The package is typed (`py.typed`).
"""

_SECTION = re.compile(r"^(Args|Returns|Raises):\n((?:    .*\n?|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^(\w+): ", re.MULTILINE)


def page() -> str:
    """The page."""
    import opbound
    from reports import report

    parts = [_HEAD]
    for name in sorted(opbound.__all__, key=lambda n: (n != "analyze", n.lower())):
        value = getattr(opbound, name)
        if inspect.isfunction(value):
            parts.append(f"\n## `opbound.{name}`\n\n{_function(name, value)}")
        elif value is report.Report:
            parts.append(f"\n## `opbound.{name}`\n\n{_class(value)}")
        elif inspect.isclass(value):
            parts.append(f"\n## `opbound.{name}`\n\n{_text(inspect.getdoc(value) or '')}")
        else:
            parts.append(f"\n## `opbound.{name}`\n\nThe version of the program, as text.\n")
    parts.append(
        "\n## The parts of a report\n\nA `Report` is made of these records. Each is also a mapping: "
        '`row.time_s` and `row["time_s"]` are the same.\n'
    )
    for cls in classes_of(report):
        if cls is not report.Report and (dataclasses.is_dataclass(cls) or hasattr(cls, "_fields")):
            parts.append(f"\n### {cls.__name__}\n\n{_class(cls)}")
    return "".join(parts)


def _function(name: str, function: Any) -> str:
    return (
        f"```python\n{_signature(name, function)}\n```\n\n{_text(inspect.getdoc(function) or '')}"
    )


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    given: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in given:
            given.append("*")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        given.append(f"{parameter.name}: {parameter.annotation}{default}")
    back = signature.return_annotation
    line = f"{name}({', '.join(given)}) -> {back}"
    if len(line) <= 90:
        return line
    inside = "".join(f"    {parameter},\n" for parameter in given)
    return f"{name}(\n{inside}) -> {back}"


def _class(cls: type) -> str:
    parts = (
        [_text(inspect.getdoc(cls) or "")] if cls.__doc__ and "(" not in cls.__doc__[:40] else []
    )
    texts = field_texts(cls)
    types = inspect.get_annotations(cls)
    rows = [(f"`{name}`", f"`{types[name]}`", prose(text)) for name, text in texts.items()]
    if rows:
        parts.append(table(["field", "type", "meaning"], rows))
    parts += _members(cls)
    return "\n".join(parts)


def _members(cls: type) -> Iterator[str]:
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        plain = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        if isinstance(member, property):
            back = inspect.signature(member.fget).return_annotation if member.fget else "object"
            yield f"`{name}: {back}`\n:   {prose(inspect.getdoc(member) or '')}\n"
        elif inspect.isfunction(plain):
            yield f"#### {cls.__name__}.{name}\n\n{_function(name, plain)}"


def _text(doc: str) -> str:
    """A Google-style docstring as Markdown."""
    lead = _SECTION.sub("", doc + "\n").strip()
    parts = [_lead(lead)]
    for title, body in _SECTION.findall(doc + "\n"):
        parts.append(f"**{title}**\n")
        plain = inspect.cleandoc(body)
        names = list(_ENTRY.finditer(plain))
        if not names:
            parts.append(prose(plain) + "\n")
        for found, after in zip(names, [*(n.start() for n in names[1:]), None], strict=True):
            parts.append(f"`{found[1]}`\n:   {prose(plain[found.end() : after])}\n")
    return "\n".join(parts) + "\n"


def _lead(text: str) -> str:
    return "".join(f"{prose(paragraph)}\n\n" for paragraph in text.split("\n\n"))
