"""What every part of a report is: a dataclass that also reads like its JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any


class Record:
    """A dataclass that also reads like the JSON object it is written as."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        """The value of one key; KeyError if there is none of that name."""
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> tuple[str, ...]:
        """The record's keys, in the order in which they are written."""
        return tuple(entry.name for entry in fields(self))  # type: ignore[arg-type]
