"""A device's file that names another one as its `base` and says only what differs.

Mappings merge key by key, and `null` removes a key. A list names all entries that the device has; an
entry of the base's name takes over what it does not say itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graph_ir.errors import HardwareError, did_you_mean

Data = dict[str, Any]
_DEEPEST = 8
"""Files on files beyond which a circle is assumed."""


def read_device(path: Path, shipped: Path, depth: int = 0) -> Data:
    """The content of a device's file, with what it takes over from its base.

    Args:
        path: the file.
        shipped: folder of the devices that `base` may name; else it is a path beside the file.
        depth: files that were followed to get here.

    Raises:
        HardwareError: if a file is missing or not YAML, or files are based on each other.
    """
    data = _load(path)
    if not isinstance(data, dict) or "base" not in data:
        return data
    name = str(data.pop("base"))
    source = shipped / f"{name}.yaml"
    if not source.is_file():
        source = path.parent / name
    if not source.is_file():
        known = did_you_mean(name, [p.stem for p in shipped.glob("*.yaml")])
        raise HardwareError(f"{path}: base: there is no device or file {name!r}; {known}")
    if depth > _DEEPEST:
        raise HardwareError(f"{path}: base: the files are based on each other")
    below = read_device(source, shipped, depth + 1)
    if not isinstance(below, dict):
        raise HardwareError(f"{source}: expected keys, found {below!r}")
    texts = below.pop("sources", None) or {}
    merged = _merged(_attributed(below, texts, source.stem), data)
    return dict(merged)


def _load(path: Path) -> Any:
    import yaml

    try:
        # The C parser is ten times as fast, but not every build of PyYAML has it.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise HardwareError(f"{path} is not a YAML file: {line}") from error
    except OSError as error:
        raise HardwareError(f"{path} cannot be read: {error.strerror}") from error


def _attributed(node: Any, texts: Data, name: str) -> Any:
    """The base's figures, each saying that it is the base's."""
    if isinstance(node, list):
        return [_attributed(item, texts, name) for item in node]
    if not isinstance(node, dict):
        return node
    if set(node) == {"value", "source"}:
        source = str(texts.get(node["source"], node["source"]))
        # The first device that a figure was measured or assumed on stays named.
        return {**node, "source": source if source.startswith("as ") else f"as {name}: {source}"}
    return {key: _attributed(value, texts, name) for key, value in node.items()}


def _merged(base: Any, own: Any) -> Any:
    if isinstance(base, dict) and isinstance(own, dict) and "value" not in own:
        kept = {k: v for k, v in base.items() if k not in own}
        said = {k: _merged(base.get(k), v) for k, v in own.items() if v is not None}
        return kept | said
    if isinstance(base, list) and isinstance(own, list) and all(isinstance(i, dict) for i in own):
        entries = {item.get("name"): item for item in base if isinstance(item, dict)}
        return [_merged(entries.get(item.get("name")), item) for item in own]
    if isinstance(own, dict) and "value" not in own:
        return {key: value for key, value in own.items() if value is not None}
    return own
