"""The operators of a report one by one, in the order of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.figures import OpRow
from reports.rows import expand_rows


def in_model_order(rows: Sequence[OpRow]) -> list[OpRow]:
    """One row per node, layer after layer.

    A report has each operator of a repeated layer once, with all its instances: one after the other they
    would stand as no model has them, and a model with one layer that differs could not be compared.
    """
    return [row for run in _runs(rows) for row in _unrolled(run)]


def _runs(rows: Sequence[OpRow]) -> Iterator[list[OpRow]]:
    """Neighbouring rows that repeat equally often, or one a multiple of the other: a layer."""
    run: list[OpRow] = []
    layers = 1
    for row in rows:
        repeats = _repeats(row)
        if run and not _together(repeats, layers):
            yield run
            run = []
        layers = min(layers, repeats) if run else repeats
        run.append(row)
    if run:
        yield run


def _together(a: int, b: int) -> bool:
    less, more = sorted((a, b))
    return (less == 1) == (more == 1) and more % less == 0


def _repeats(row: OpRow) -> int:
    return len(row.instances) or 1


def _unrolled(run: Sequence[OpRow]) -> list[OpRow]:
    layers = min(map(_repeats, run))
    placed = [
        (k * layers // _repeats(row), place, one)
        for place, row in enumerate(run)
        for k, one in enumerate(expand_rows([row]))
    ]
    return [one for _, _, one in sorted(placed, key=lambda entry: entry[:2])]
