"""Reads `.pt2` archives without running code from them.

torch.export.load trusts its file: it unpickles tensors and objects that the archive marks so, evaluates
the text of symbolic sizes, and opens compiled libraries. So the archive is looked through first, and refused
if it holds anything of the kind that is more than data.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graph_ir.errors import ModelFileError

_PLAIN = re.compile(r"(^|/)(archive_format|archive_version|byteorder|version|\.data/.*|extra/.*)$")
# The words of sizes such as `Max(1, 2*s0 // 3)` or `Symbol('s0', integer=True)`.
_WORD = re.compile(
    r"[su]\d+|zuf?\d+|zf\d+|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|CeilToInt|FloorToInt|TruncToInt"
    r"|IntTrueDiv|FloatTrueDiv|ToFloat|PowByNatural|ModularIndexing|Where|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not"
    r"|Symbol|Integer|Rational|Float|Add|Mul|Pow|positive|nonnegative|integer|real|precision"
    r"|True|False|int_oo|oo|Abs"
)
_TOKEN = re.compile(r"\s+|\d+(?:\.\d+)?|[A-Za-z_]\w*|'[\w.]+'|//|\*\*|[-+*/(),<>=!&|~]")
_TARGET = re.compile(
    r"(torch\.ops\.(?!.*from_file)|_operator\.|math\.|torch\.(_?sym_)\w+$)[\w.]+|torch\.sym_\w+"
)


def load_archive(torch: Any, path: Path) -> tuple[Any, str]:
    """The exported program in a `.pt2` file, and the file's SHA-256.

    Raises:
        ModelFileError: the file is missing, broken, of another kind, or holds more than data.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror or error}") from error
    logging_before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        _check(torch, raw, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(io.BytesIO(raw)), hashlib.sha256(raw).hexdigest()
    except ModelFileError:
        raise
    except Exception as error:  # on a broken file torch raises anything, C++ errors included
        raise ModelFileError(
            f"{path} is not an exported program that torch {torch.__version__} can load: "
            f"{type(error).__name__}"
        ) from error
    finally:
        logging.disable(logging_before)


def _check(torch: Any, raw: bytes, path: Path) -> None:
    """Raises ModelFileError if the archive holds more than data."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise ModelFileError(f"{path} holds two files of one name: export the program again")
        documents = {n: json.loads(archive.read(n)) for n in names if n.endswith(".json")}
        plain = {n for n in names if _PLAIN.search(n)} | set(documents)
        for name, document in documents.items():
            _check_document(document, path)
            plain |= _raw_tensors(name, document)
        for name in names:
            if "/aotinductor/" in name:
                raise ModelFileError(
                    f"{path} holds compiled code ({name}), which opbound does not run"
                )
            if name not in plain and not name.endswith("/"):
                _check_pickle(torch, archive.read(name), name, path)


def _raw_tensors(name: str, document: Any) -> set[str]:
    """Files that a tensor table lists as bare bytes."""
    table = document.get("config") if isinstance(document, dict) else None
    folder = name.rpartition("/")[0]
    entries = table.values() if isinstance(table, dict) else ()
    return {f"{folder}/{e['path_name']}" for e in entries if not e.get("use_pickle", True)}


def _check_pickle(torch: Any, content: bytes, name: str, path: Path) -> None:
    """A pickled part must be tensors and plain containers: what torch's restricted unpickler accepts."""
    try:
        torch.load(io.BytesIO(content), weights_only=True, map_location="meta")
    except Exception as error:  # whatever a hostile or broken pickle provokes
        raise ModelFileError(
            f"{path} holds an object that is more than tensors ({name}): loading it could run code; "
            f"export the program without custom objects"
        ) from error


def _check_document(document: Any, path: Path) -> None:
    for key, value in _walk(document):
        if key == "expr_str" and not _is_size(value):
            raise ModelFileError(f"{path} holds a size that is no arithmetic: {str(value)[:60]!r}")
        if key == "target" and isinstance(value, str) and not _TARGET.fullmatch(value):
            raise ModelFileError(f"{path} calls {value[:60]!r}, which is no torch operator")


def _is_size(text: Any) -> bool:
    """Whether a text consists of numbers, operators, symbols and known functions only."""
    position = 0
    while isinstance(text, str) and position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or (token[0][0].isalpha() and not _WORD.fullmatch(token[0])):
            return False
        if token[0].startswith("_"):
            return False
        position = token.end()
    return isinstance(text, str)


def _walk(document: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) pairs of nested JSON."""
    pending = [document]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield from part.items()
            pending += part.values()
        elif isinstance(part, list):
            pending += part
