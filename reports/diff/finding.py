"""One thing that happened between two reports, named and told in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from reports.diff.difference import Change
from reports.quantities import bytes_text, plain_text, scaled_text, time_text


class Finding(NamedTuple):
    """What happened."""

    kind: str
    """`lost-fusion`, `wider`, `dynamic-dim`, ...: stable, for programs."""
    text: str
    """The same as a sentence, safe to print."""

    def __str__(self) -> str:
        return self.text


def operators(changes: Iterable[Change]) -> str:
    """How many operators: `3 operators`."""
    count = sum(change.count for change in changes)
    return "1 operator" if count == 1 else f"{count} operators"


def first(changes: Sequence[Change]) -> str:
    """The change that costs most, by name, and how many operators besides."""
    most = max(changes, key=lambda change: abs(change.change("time_s")))
    rest = sum(change.count for change in changes) - most.count
    return plain_text(most.name) + (f" and {rest} more" if rest else "")


def cost(changes: Iterable[Change]) -> str:
    """What changes cost in FLOPs, bytes and time, where they do."""
    changes = list(changes)
    flops = sum(change.change("flops") for change in changes)
    moved = sum(change.change("bytes_read", "bytes_written") for change in changes)
    time_s = sum(change.change("time_s") for change in changes)
    parts = [
        f"{signed(flops)} FLOPs" if flops else "",
        f"{_sign(moved)}{bytes_text(abs(moved))} moved" if moved else "",
        f"{_sign(time_s)}{time_text(abs(time_s))}" if time_s else "",
    ]
    return ", ".join(filter(None, parts)) or "at the same cost"


def listed(ops: Sequence[str], limit: int = 6) -> str:
    """Operators as a list, each once with how often: `add x3, sqrt`."""
    counts = {op: ops.count(op) for op in ops}
    texts = [plain_text(op) + (f" x{n}" if n > 1 else "") for op, n in counts.items()]
    more = f" and {len(texts) - limit} more kinds" if len(texts) > limit else ""
    return (", ".join(texts[:limit]) or "nothing") + more


def signed(value: float) -> str:
    """A count with its sign."""
    return _sign(value) + scaled_text(abs(value))


def _sign(value: float) -> str:
    return "+" if value >= 0 else "-"
