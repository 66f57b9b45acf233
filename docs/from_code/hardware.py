"""The reference of the hardware file: what the code that reads it asks for.

Every key, its dimension and its default are read off the reader's source (`costing.hardware_reader`), its
meaning off the field that it fills.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import NamedTuple, TypeGuard

from markup import field_texts, prose, table

_HEAD = """\
# Hardware file

Made from the code that reads it. How to write one: [your own device](../howto/hardware.md).

A figure is written `{value: 3.35 TB/s, source: data sheet}`: the source is a key of the file's `sources`
table or a sentence. An unknown key is an error that names the nearest known one, so a misspelt key is never
ignored.
"""

_TITLES = {
    "memory[].": "Memory, from the nearest level to the farthest",
    "links[].": "Links, from the innermost to the outermost",
}
_READS = ("get", "text", "flag", "words", "quantity", "sourced", "one_of", "section", "sections")


class Key(NamedTuple):
    """A key that a reader asks for."""

    name: str
    how: str
    """The method that reads it."""
    dimension: str
    optional: bool
    field: str
    """The field that it fills, if any."""


def page() -> str:
    """The page."""
    from costing import hardware_base
    from costing.units import UNITS

    parts = [_HEAD]
    for reader, path, cls in sections("read_hardware", ""):
        texts = field_texts(cls)
        rows = [
            (
                f"`{path}{key.name}`",
                _kind(key),
                "no" if key.optional else "yes",
                prose(texts.get(key.field, "")),
            )
            for key in keys(reader)
        ]
        title = _TITLES.get(path) or f"`{path.rstrip('.')}`" if path else "The file"
        parts.append(f"\n## {title}\n\n" + table(["key", "value", "required", "meaning"], rows))
    said = prose((hardware_base.__doc__ or "").strip())
    parts.append(f"\n## `base`\n\n{said}\n")
    units = [(d, ", ".join(f"`{u}`" for u in names if u)) for d, names in UNITS.items()]
    units.append(("count", "any word: `132 SMs`, `8 devices`"))
    parts.append("\n## Units\n\n" + table(["dimension", "may be written"], units))
    return "".join(parts)


def _kind(key: Key) -> str:
    plain = {"text": "text", "flag": "`true` or `false`", "words": "a word, or a list of words"}
    plain |= {"section": "keys", "sections": "a list of entries", "sourced": "words, with a source"}
    plain |= {"one_of": "a word, with a source"}
    return key.dimension or plain.get(key.how, "a name and a sentence each")


def _functions() -> dict[str, ast.FunctionDef]:
    from costing import hardware_reader

    tree = ast.parse(inspect.getsource(hardware_reader))
    return {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}


def sections(reader: str, path: str) -> Iterator[tuple[str, str, type]]:
    """(reader function, path of its keys in the file, class that it fills), the outer ones first."""
    from costing import hardware_reader

    functions = _functions()
    function = functions[reader]
    calls = [
        n for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    built = [
        vars(hardware_reader).get(call.func.id) for call in calls if isinstance(call.func, ast.Name)
    ]
    yield reader, path, next(cls for cls in built if hasattr(cls, "__dataclass_fields__"))
    owner = _owner(function)
    # The entries of a list: `_engine(s) for s in top.sections("engines")`.
    lists = {
        id(name): ast.literal_eval(part.generators[0].iter.args[0])
        for part in ast.walk(function)
        if isinstance(part, ast.GeneratorExp)
        and isinstance(part.generators[0].iter, ast.Call)
        and _reads_key(part.generators[0].iter, owner)
        for name in ast.walk(part.elt)
    }
    for call in sorted(calls, key=lambda c: (c.lineno, c.col_offset)):
        helper = functions.get(call.func.id) if isinstance(call.func, ast.Name) else None
        if helper is None or not call.args or not _builds(helper):
            continue
        first = call.args[0]
        if id(first) in lists:
            yield from sections(helper.name, f"{path}{lists[id(first)]}[].")
        elif isinstance(first, ast.Call) and _reads_key(first, owner):
            yield from sections(helper.name, f"{path}{ast.literal_eval(first.args[0])}.")
        elif isinstance(first, ast.Name) and first.id == owner != _owner(helper):
            opened = next(n for n in helper.body if _opens(n, helper.args.args[0].arg))
            yield from sections(helper.name, f"{path}{ast.literal_eval(opened.value.args[0])}.")


def _builds(function: ast.FunctionDef) -> bool:
    from costing import hardware_reader

    names = {
        n.func.id
        for n in ast.walk(function)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    return any(hasattr(vars(hardware_reader).get(name), "__dataclass_fields__") for name in names)


def keys(reader: str) -> list[Key]:
    """The keys that a reader function asks for, in its order."""
    functions = _functions()
    function = functions[reader]
    fields = _fields(function)
    found: dict[str, Key] = {}
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    for node in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        for read, helped in _reads(node, _owner(function), functions):
            key = _key(read, helped, fields)
            known = found.setdefault(key.name, key)
            found[key.name] = Key(
                key.name,
                known.how if known.how in ("section", "sections") else key.how,
                known.dimension or key.dimension,
                known.optional or key.optional,
                known.field or key.field,
            )
    return list(found.values())


def _owner(function: ast.FunctionDef) -> str:
    """The name of the section whose keys are read: the argument, or the one part of it that is opened."""
    argument = function.args.args[0].arg
    for node in function.body:
        if _opens(node, argument):
            return ast.unparse(node.targets[0])
    return argument


def _opens(node: ast.stmt, owner: str) -> TypeGuard[ast.Assign]:
    """Whether a statement gives a part of the owner's section a name."""
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
        return False
    method = node.value.func
    reads = _reads_key(node.value, owner)
    return reads and isinstance(method, ast.Attribute) and method.attr == "section"


def _reads(
    node: ast.AST, owner: str, functions: dict[str, ast.FunctionDef]
) -> Iterator[tuple[ast.Call, ast.Call | None]]:
    """Calls that read a key of `owner`; with the call of the helper that they stand in or feed, if any."""
    if not isinstance(node, ast.Call):
        return
    if _reads_key(node, owner):
        yield node, None
    if isinstance(node.func, ast.Name) and node.func.id in functions and node.args:
        first, helper = node.args[0], functions[node.func.id]
        if isinstance(first, ast.Name) and first.id == owner:
            inner = helper.args.args[0].arg
            calls = [n for n in ast.walk(helper) if isinstance(n, ast.Call)]
            yield from ((read, node) for read in calls if _reads_key(read, inner))
        elif isinstance(first, ast.Call) and _reads_key(first, owner):
            yield first, node


def _reads_key(call: ast.Call, owner: str) -> bool:
    method = call.func
    return (
        isinstance(method, ast.Attribute)
        and isinstance(method.value, ast.Name)
        and method.value.id == owner
        and method.attr in _READS
        and bool(call.args)
        and isinstance(call.args[0], ast.Constant)
    )


def _key(read: ast.Call, helped: ast.Call | None, fields: dict[int, str]) -> Key:
    constants = [a.value for a in read.args if isinstance(a, ast.Constant)]
    how = read.func.attr if isinstance(read.func, ast.Attribute) else ""
    not_required = any(
        word.arg == "required" and isinstance(word.value, ast.Constant) and not word.value.value
        for word in read.keywords
    )
    dimension = str(constants[1]) if how == "quantity" else ""
    if how == "section" and helped is not None and len(helped.args) > 1:
        given = helped.args[1]
        dimension = f"{given.value} by dtype" if isinstance(given, ast.Constant) else ""
    optional = not_required or how == "one_of" or (how == "quantity" and len(read.args) > 2)
    field = fields.get(id(read)) or fields.get(id(helped)) or ""
    return Key(str(constants[0]), how, dimension, optional, field)


def _fields(function: ast.FunctionDef) -> dict[int, str]:
    """The argument of a constructor that each node of the syntax tree below it belongs to, by id.

    A value that is read into a local variable first belongs to the argument that the variable is given as.
    """
    from costing import hardware_reader

    found: dict[int, str] = {}
    local: dict[str, ast.expr] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            (target,), values = node.targets, [node.value]
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            if isinstance(node.value, ast.Tuple):
                values = node.value.elts
            local |= {ast.unparse(n): value for n, value in zip(names, values, strict=False)}
    for node in ast.walk(function):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        order = list(getattr(vars(hardware_reader).get(node.func.id), "__dataclass_fields__", ()))
        if not order:
            continue
        given = [
            *zip(order, node.args, strict=False),
            *((w.arg or "", w.value) for w in node.keywords),
        ]
        for name, value in given:
            for inner in ast.walk(value):
                found[id(inner)] = name
                if isinstance(inner, ast.Name) and inner.id in local:
                    found |= {id(deep): name for deep in ast.walk(local[inner.id])}
    return found
