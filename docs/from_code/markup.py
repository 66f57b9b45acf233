"""Pieces of Markdown that several reference pages share."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Sequence
from textwrap import dedent
from types import ModuleType


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    # Python-Markdown shows a backslash before `|` in code; outside it needs one.
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(p if p.startswith("`") else p.replace("|", "\\|") for p in parts)


def prose(text: str) -> str:
    """A sentence of the code as Markdown: placeholders such as <name> are no tags."""
    kept = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part if part.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", part) for part in kept
    )


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    found = prose(text)
    return (
        f"{found[:1].upper()}{found[1:]}{'' if found.endswith(('.', ')')) else '.'}"
        if found
        else ""
    )


def field_texts(cls: type) -> dict[str, str]:
    """What the source says of each field of a class: the string below it."""
    (tree,) = ast.parse(dedent(inspect.getsource(cls))).body
    if not isinstance(tree, ast.ClassDef):
        raise TypeError(f"{cls} is no class")
    texts = {}
    for entry, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            texts[entry.target.id] = str(below.value.value) if said else ""
    return texts


def classes_of(module: ModuleType) -> list[type]:
    """The classes that a module defines, in its order."""
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
    ]
