"""Where a report goes: standard output, or a file that is either whole or not there."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from graph_ir.errors import OpboundError

if TYPE_CHECKING:
    from reports import Report
    from reports.view import View


class Output:
    """Writes to `path`, or to standard output without one.

    A file is written under another name beside its place and moved there at the end, so that a
    failure leaves what was there before. Entering the context finds out whether it can be written.

    Raises:
        OpboundError: on entering, if the file cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        # A link is followed: what it points to is replaced, not the link.
        self._target = Path(path).resolve() if path is not None else None
        self._name = path
        self._temporary: Path | None = None
        self._stream: TextIO = sys.stdout

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads along."""
        return self._target is None and sys.stdout.isatty()

    def __enter__(self) -> Output:
        target = self._target
        if target is None:
            return self
        if not self._name:
            raise OpboundError("the output file's name is empty: give one with -o")
        try:
            if target.is_dir():
                raise IsADirectoryError("it is a folder")
            if target.exists() and not os.access(target, os.W_OK):
                raise PermissionError("it is write-protected")
            if target.exists() and not stat.S_ISREG(target.stat().st_mode):
                # A device or a pipe cannot be replaced; it is written as it is.
                self._stream = target.open("w", encoding="utf-8")
                return self
            self._temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            self._stream = self._temporary.open("x", encoding="utf-8")
        except OSError as error:
            self._temporary = None
            raise self._error(error) from None
        return self

    def write(self, text: str) -> None:
        """Writes a part of the report."""
        try:
            self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._error(error) from None

    def write_bytes(self, data: bytes) -> None:
        """Writes a part of a file that is no text."""
        try:
            self._stream.buffer.write(data)
        except OSError as error:
            raise self._error(error) from None

    def show_table(self, report: Report, view: View) -> None:
        """Shows the table on the terminal, in colour and at its width."""
        from rich.console import Console

        from reports.table import render_rich

        console = Console()
        console.print(
            render_rich(report, width=console.width, view=view), soft_wrap=True, highlight=False
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._target is None:
            return
        try:
            self._stream.close()
            if self._temporary is not None and kind is None:
                self._temporary.replace(self._target)
        except OSError as failure:
            raise self._error(failure) from None
        finally:
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)

    def _error(self, error: OSError) -> OpboundError:
        why = error.strerror or str(error)
        where = self._name if self._target is not None else "standard output"
        return OpboundError(f"cannot write {where}: {why}; give another place with -o")
