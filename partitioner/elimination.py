"""The least sum of many small tables: exact by eliminating one unknown after the other.

Every table gives a cost for each combination of a few unknowns' choices. An unknown is eliminated by adding
up the tables that mention it and keeping the least over its choices; the result is a table over its
neighbours (Dechter 1999, doi 10.1016/S0004-3702(99)00059-4, bucket elimination). Where such a table would
become too large, its parts are kept apart: the sum of their least is then a lower bound, and the choices
read off are good but perhaps not the best (Dechter and Rish 2003, doi 10.1145/636865.636866, mini-buckets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_ENTRIES = 1 << 21
"""Largest table, in entries: 16 MB."""


@dataclass(frozen=True)
class Table:
    """Costs over some unknowns, one array axis each."""

    over: tuple[int, ...]
    """Unknowns, ascending."""
    cost: Array


@dataclass(frozen=True)
class Least:
    """What was found."""

    choice: tuple[int, ...]
    """Of each unknown."""
    cost: float
    bound: float
    """No combination costs less. Equal to `cost` where every table was small enough."""


def least(sizes: Sequence[int], tables: Sequence[Table], limit: int = MAX_ENTRIES) -> Least:
    """The choices with the least sum.

    Args:
        sizes: number of choices of each unknown.
        tables: costs; infinity forbids a combination.
        limit: entries of the largest table that is made.
    """
    pool: dict[int, Table] = {}
    of: list[set[int]] = [set() for _ in sizes]
    bound = 0.0
    made = 0

    def put(table: Table) -> None:
        nonlocal made, bound
        if not table.over:
            bound += float(table.cost)
            return
        pool[made] = table
        for unknown in table.over:
            of[unknown].add(made)
        made += 1

    for table in tables:
        put(table)
    buckets: list[tuple[int, list[Table]]] = []
    left = set(range(len(sizes)))
    while left:
        unknown = min(left, key=lambda u: (_width(u, of, pool, sizes), u))
        left.remove(unknown)
        names = sorted(of[unknown])
        bucket = [pool.pop(name) for name in names]
        for name, table in zip(names, bucket, strict=True):
            for other in table.over:
                of[other].discard(name)
        buckets.append((unknown, bucket))
        for group in _parts(unknown, bucket, sizes, limit):
            whole = _sum(group, sizes)
            at = whole.over.index(unknown)
            rest = tuple(u for u in whole.over if u != unknown)
            put(Table(rest, np.asarray(whole.cost.min(axis=at))))
    choice = [0] * len(sizes)
    for unknown, bucket in reversed(buckets):
        line = np.zeros(sizes[unknown])
        for table in bucket:
            index = tuple(slice(None) if u == unknown else choice[u] for u in table.over)
            line = line + table.cost[index]
        choice[unknown] = int(np.argmin(line))
    cost = sum(float(t.cost[tuple(choice[u] for u in t.over)]) for t in tables)
    return Least(tuple(choice), cost, min(bound, cost))


def _width(unknown: int, of: list[set[int]], pool: dict[int, Table], sizes: Sequence[int]) -> int:
    """Entries of the table that eliminating an unknown leaves."""
    near = {u for name in of[unknown] for u in pool[name].over}
    return prod(sizes[u] for u in near if u != unknown)


def _parts(
    unknown: int, bucket: Sequence[Table], sizes: Sequence[int], limit: int
) -> list[list[Table]]:
    """The tables of a bucket, in as few groups as the limit allows."""
    groups: list[tuple[set[int], list[Table]]] = []
    for table in sorted(bucket, key=lambda t: -t.cost.size):
        for near, group in groups:
            if prod(sizes[u] for u in near | set(table.over)) <= limit:
                near.update(table.over)
                group.append(table)
                break
        else:
            groups.append(({unknown, *table.over}, [table]))
    return [group for _, group in groups] or [[Table((unknown,), np.zeros(sizes[unknown]))]]


def _sum(tables: Sequence[Table], sizes: Sequence[int]) -> Table:
    over = tuple(sorted({u for t in tables for u in t.over}))
    total = np.zeros([sizes[u] for u in over])
    for table in tables:
        shape = [sizes[u] if u in table.over else 1 for u in over]
        total = total + table.cost.reshape(shape)
    return Table(over, total)
