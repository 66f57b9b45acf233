"""Operators by module path, with subtotals: where in the model the time goes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from reports.figures import OpRow
from reports.layout import Cells
from reports.quantities import bytes_text, percent_text, plain_text, ratio, scaled_text, time_text
from reports.rows import worth_showing

# Dots and slashes part a path, but not those inside a range of layers.
_SEPARATOR = re.compile(r"[./](?![^\[]*\])")


@dataclass
class Module:
    """A module with everything in it, or one operator."""

    name: str
    op: str = ""
    """The operator of a leaf; empty for a module."""
    count: int = 0
    flops: int = 0
    moved_bytes: int = 0
    time_s: float = 0.0
    bounds: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Module] = field(default_factory=dict)

    def add(self, row: OpRow) -> None:
        """Adds a row's quantities."""
        self.count += row.count
        self.flops += row.flops
        self.moved_bytes += row.bytes_read + row.bytes_written
        self.time_s += row.time_s
        self.bounds[row.bound] = self.bounds.get(row.bound, 0.0) + row.time_s


def module_tree(rows: Iterable[OpRow]) -> Module:
    """The tree of all rows; each module's quantities are the sums over its parts."""
    root = Module("")
    for row in filter(worth_showing, rows):
        place = root
        place.add(row)
        for part in [p for p in _SEPARATOR.split(row.module) if p]:
            place = place.parts.setdefault(part, Module(part))
            place.add(row)
        leaf = row.name.removeprefix(row.module).lstrip("./ ") or row.op
        key = f"{leaf} {row.op} {row.phase}"
        place = place.parts.setdefault(key, Module(leaf, op=row.op))
        place.add(row)
    return root


def tree_cells(rows: Sequence[OpRow], step_time_s: float, depth: int | None = None) -> Cells:
    """The tree as a table.

    Args:
        rows: the operators.
        step_time_s: what shares are shares of.
        depth: levels of modules to show; None shows all of them and the operators.
    """
    headers = ["module", "op", "count", "FLOPs", "bytes", "time", "share", "bound"]
    right = [header in ("count", "FLOPs", "bytes", "time", "share") for header in headers]
    lines = [
        [
            "│ " * level + plain_text(module.name or "(all)"),
            plain_text(module.op),
            str(module.count),
            scaled_text(module.flops),
            bytes_text(module.moved_bytes),
            time_text(module.time_s),
            percent_text(ratio(module.time_s, step_time_s)),
            plain_text(max(module.bounds, key=lambda bound: module.bounds[bound])),
        ]
        for level, module in _walk(module_tree(rows), depth)
    ]
    return Cells(headers, right, lines)


def _walk(root: Module, depth: int | None) -> Iterator[tuple[int, Module]]:
    waiting = [(0, root)]
    while waiting:
        level, module = waiting.pop()
        yield level, module
        if depth is None or level < depth:
            waiting += [(level + 1, part) for part in reversed(module.parts.values())]
