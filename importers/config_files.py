"""Reads a model's config.json, of whichever library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from graph_ir.errors import ModelFileError


def read_config_file(path: Path, key: str, advice: str) -> tuple[str, dict[str, Any], str]:
    """The config's name, its content and its SHA-256.

    Args:
        path: a JSON file.
        key: what the library's configs say their class or type by.
        advice: what to give instead of a file without it.

    Raises:
        ModelFileError: it is not JSON, or does not have the key.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get(key), str):
        raise ModelFileError(f"{path} has no key {key!r}: {advice}")
    name = path.stem if path.stem != "config" else path.resolve().parent.name
    return name, content, hashlib.sha256(raw).hexdigest()
