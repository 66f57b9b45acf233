"""Which stage of a pipeline sends a value to which."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graph_ir.graph import Value
from partitioner.stage_part import StagePart, Wanted


@dataclass(frozen=True, eq=False)
class Transfer:
    """A value that one stage sends to another."""

    value: Value
    during: str
    source: int
    target: int
    group: dict[str, Any]
    """Mesh axis, size and stride; of size 1 where both stages lie on the same rank."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for transfers that look the same from one of their stages."""
        return (self.value, self.during, *self.group.values())


def sources(parts: Sequence[StagePart]) -> dict[tuple[Wanted, int], int]:
    """Where each stage gets what it wants: from the nearest stage upstream that has it.

    A stage that receives a value passes it on to the next one that wants it.

    Args:
        parts: of all stages, in model order.

    Returns:
        (what, target) -> source.
    """
    readers: dict[Wanted, list[int]] = {}
    for stage, part in enumerate(parts):
        for key in part.wanted:
            readers.setdefault(key, []).append(stage)
    found: dict[tuple[Wanted, int], int] = {}
    for key, stages in readers.items():
        value, during = key
        forward = during == "forward"
        have = [i for i, part in enumerate(parts) if value in part.made]
        for stage in stages if forward else reversed(stages):
            place = bisect_left(have, stage)
            before = have[:place][-1:]
            behind = [i for i in have[place : place + 2] if i != stage][:1]
            upstream = before if forward else behind
            others = upstream or [*before, *behind]
            found[key, stage] = min(others, key=lambda i: abs(i - stage))
            insort(have, stage)
    return found
