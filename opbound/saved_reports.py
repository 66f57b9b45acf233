"""Reports read back from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError

if TYPE_CHECKING:
    from reports import Report

_HEAD_BYTES = 4096


def saved_report(path: str) -> Report | None:
    """The report in a file of `opbound analyze --format json`; None if the path is no such file.

    Raises:
        OpboundError: if it is a report that cannot be read.
    """
    from reports import Report

    file = Path(path)
    try:
        if file.suffix != ".json" or not file.is_file():
            return None
        with file.open(encoding="utf-8", errors="replace") as stream:
            # A model's config is JSON too, but not of a schema.
            if '"schema_version"' not in stream.read(_HEAD_BYTES):
                return None
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OpboundError(f"cannot read {path}: {error}") from None
    try:
        return Report.from_json(text)
    except OpboundError as error:
        raise OpboundError(f"{path}: {error}") from None
