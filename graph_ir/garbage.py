"""Keeps Python's cyclic garbage collector from walking graphs that only grow."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """The collector is off inside, and as it was before outside; also a decorator.

    It looks through all objects again and again while there are more and more of them. Graphs hold no
    cycles worth that: counting references frees them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
