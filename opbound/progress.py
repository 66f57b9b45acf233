"""Progress on standard error, for a person only: a log or a pipe gets nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Gives a function that says what is being done at the moment."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    from reports.quantities import plain_text

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(plain_text(text).replace("[", r"\["))
