"""Rows in and out of groups: repeated layers folded to one row, or one row per node."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from reports.figures import Instance, OpRow

# A path part that is only a number is the index of a repeated layer: layers.3.mlp, /h.0/attn. A
# folded graph writes a range of them: layers.[0-31].mlp.
_INDEX = re.compile(r"(?<![^./])(\d+|\[\d+-\d+\])(?![^./])")


def layer_pattern(path: str) -> str:
    """The path with every layer index replaced by `*`: 'h.0.attn' and 'h.[1-9].attn' are one."""
    return _INDEX.sub("*", path)


def fold_rows(rows: Iterable[OpRow]) -> tuple[OpRow, ...]:
    """Merges rows that are the same operator at the same place of a repeated layer.

    Rows merge when they differ only in layer indices and have the same op, phase, shapes, dtypes,
    engine and bound, so a group never hides two answers behind one.
    """
    groups: dict[tuple[object, ...], list[OpRow]] = {}
    for row in rows:
        key = (
            layer_pattern(row.module),
            layer_pattern(row.name),
            row.op,
            row.phase,
            row.attributes,
            row.shapes,
            row.dtypes,
            row.engine,
            row.bound,
            row.axis,
            row.sharding,
        )
        groups.setdefault(key, []).append(row)
    return tuple(_merge(group) for group in groups.values())


def _merge(group: Sequence[OpRow]) -> OpRow:
    """One row that stands for all of `group`, which is not empty."""
    first = group[0]
    if len(group) == 1:
        return first
    from graph_ir.fold import name_pattern

    instances = tuple(one for row in group for one in _instances(row))
    time_s = sum(row.time_s for row in group)
    terms: dict[str, float] = {}
    for row in group:
        for bound, term_s in row.terms_s.items():
            terms[bound] = terms.get(bound, 0.0) + term_s
    # Utilisation is weighted by time: it is the use of the resource while these nodes run.
    busy_s = sum(row.utilization * row.time_s for row in group)
    flops = sum(row.flops for row in group)
    read = sum(row.bytes_read for row in group)
    written = sum(row.bytes_written for row in group)
    return replace(
        first,
        name=name_pattern([one.name for one in instances]),
        module=name_pattern([one.module for one in instances]),
        count=sum(row.count for row in group),
        flops=flops,
        bytes_read=read,
        bytes_written=written,
        bytes_communicated=sum(row.bytes_communicated for row in group),
        arithmetic_intensity=intensity(flops, read + written),
        time_s=time_s,
        share=sum(row.share for row in group),
        utilization=busy_s / time_s if time_s else first.utilization,
        terms_s=terms,
        energy_j=_energy(group),
        instances=instances,
    )


def _energy(group: Sequence[OpRow]) -> float | None:
    known = [row.energy_j for row in group if row.energy_j is not None]
    return sum(known) if known else None


def _instances(row: OpRow) -> tuple[Instance, ...]:
    return row.instances or (Instance(row.name, row.module),)


def expand_rows(rows: Iterable[OpRow]) -> tuple[OpRow, ...]:
    """One row per node: the opposite of folding. The sums over all rows stay what they were."""
    return tuple(single for row in rows for single in _expand(row))


def _expand(row: OpRow) -> list[OpRow]:
    parts = len(row.instances)
    if not parts:
        return [row]
    counts = _split(row.count, parts)
    flops = _split(row.flops, parts)
    read = _split(row.bytes_read, parts)
    written = _split(row.bytes_written, parts)
    communicated = _split(row.bytes_communicated, parts)
    terms = {bound: term_s / parts for bound, term_s in row.terms_s.items()}
    return [
        replace(
            row,
            name=instance.name,
            module=instance.module,
            count=counts[index],
            flops=flops[index],
            bytes_read=read[index],
            bytes_written=written[index],
            bytes_communicated=communicated[index],
            time_s=row.time_s / parts,
            share=row.share / parts,
            terms_s=terms,
            energy_j=None if row.energy_j is None else row.energy_j / parts,
            instances=(),
        )
        for index, instance in enumerate(row.instances)
    ]


def _split(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers as equal as can be; nodes of a group are equal anyway."""
    share, rest = divmod(total, parts)
    return [share + (index < rest) for index in range(parts)]


def intensity(flops: float, moved_bytes: float) -> float | None:
    """FLOPs per byte; 0 where nothing is computed, None where nothing moves."""
    if flops == 0:
        return 0.0
    return flops / moved_bytes if moved_bytes else None


def worth_showing(row: OpRow) -> bool:
    """Whether a reader learns something: a view that moves and computes nothing is left out."""
    moves = row.flops or row.bytes_read or row.bytes_written or row.bytes_communicated
    return bool(row.time_s or moves)


def busiest_first(rows: Iterable[OpRow], top: int | None = None) -> list[OpRow]:
    """The rows worth showing by falling time, the first `top` of them.

    Equal times keep the model's order.
    """
    return sorted(filter(worth_showing, rows), key=lambda row: -row.time_s)[:top]
