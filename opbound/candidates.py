"""The strategies that a search looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from opbound.options import Options


@dataclass(frozen=True)
class Candidate:
    """A mesh, and what goes with it."""

    options: Options
    bound_s: float
    level: int = 0
    """Index into the ways to save memory, from none on."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for candidates that differ in how they save memory."""
        o = self.options
        return (tuple(sorted(o.parallel.items())), o.sequence_parallel, o.microbatch)

    def text(self) -> str:
        """As the command line takes it."""
        o = self.options
        parts = [",".join(f"{a}={n}" for a, n in o.parallel.items() if n > 1) or "dp=1"]
        parts += ["--sequence-parallel"] if o.sequence_parallel else []
        parts += [f"--zero {o.zero}"] if o.zero else []
        parts += [f"--microbatch {o.microbatch}"] if o.microbatch else []
        parts += [f"--recompute {o.recompute}"] if o.recompute != "none" else []
        return " ".join(parts)


def splits(options: Options) -> tuple[object, ...]:
    """What decides how much is communicated within a layer."""
    size = options.parallel.get
    return (size("tp", 1), size("cp", 1), size("ep", 1), options.sequence_parallel)


def factorizations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as an ordered product of so many factors."""
    if parts == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in factorizations(number // first, parts - 1):
                yield (first, *rest)
