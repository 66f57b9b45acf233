"""From measured copies and products to the figures of a device: bandwidths, peaks, overheads.

A bandwidth is what the copies reached that fit a level and not the one before it. The overheads of
an engine's tiles are those with which the cost model comes nearest to the measured products, one
figure for all shapes and dtypes of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from costing.engine import MATRIX, Engine, Tile
from costing.gemm import gemm_cost
from costing.hardware import Hardware, Launch, MemoryLevel
from costing.kernel_cost import Array
from opbound.device.benchmarks import Copy, Product

_GRID: dict[str, tuple[float, ...]] = {
    "tile_overhead_s": (0.0, *(float(x) for x in np.geomspace(1e-8, 2e-5, 18))),
    "operand_cost": (0.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0),
    "unhidden": tuple(x / 10 for x in range(11)),
}
_EFFICIENCIES = tuple(x / 100 for x in range(50, 101, 2))
_ROUNDS = 3
_PART_OF_LEVEL = 0.7
"""A copy larger than this part of a cache shares it with too much else to be counted to it."""


@dataclass(frozen=True)
class Overheads:
    """What the products say about an engine."""

    efficiency: dict[str, float]
    """By dtype."""
    tile_overhead_s: float
    operand_cost: float
    unhidden: float
    mean_error: float
    """Mean of |predicted / measured - 1| over the products."""


def levels_of(
    copies: Sequence[Copy], caches: Sequence[tuple[str, int]], capacity_bytes: int, launch_s: float
) -> list[MemoryLevel]:
    """Memory levels, nearest first, with the bandwidth that copies reached.

    A cache so small that every copy within it is mostly launch is left out. A farther level is never
    faster than a nearer one: what looks so was noise.

    Args:
        copies: of growing size.
        caches: name and bytes of each cache.
        capacity_bytes: of main memory.
        launch_s: of a kernel, which is no part of the stream.
    """
    found: list[MemoryLevel] = []
    floor = 0.0
    for name, size in (*caches, ("dram", capacity_bytes)):
        main = name == "dram"
        # From twice the last cache on, nothing of a copy is still there when it starts again.
        least = 2 * floor if main else floor
        most = capacity_bytes if main else _PART_OF_LEVEL * size
        rates = [
            copy.moved_bytes / (copy.seconds - launch_s)
            for copy in copies
            if least < copy.moved_bytes <= most and copy.seconds > 2 * launch_s
        ]
        floor = size
        if not rates and not main:
            continue
        if not rates:
            largest = copies[-1]
            rates = [largest.moved_bytes / largest.seconds]
        best = max(rates)
        if found:
            best = min(best, found[-1].bandwidth_bytes_per_s)
        share = min(median(rates) / best, 1.0)
        found.append(MemoryLevel(name, size, best, share, latency_s=0.0))
    return _keeping(found, copies, launch_s)


def _keeping(
    levels: list[MemoryLevel], copies: Sequence[Copy], launch_s: float
) -> list[MemoryLevel]:
    """Says what the last cache keeps: the largest copy that ran nearer to its speed than to main memory's."""
    if len(levels) < 2:
        return levels
    cache, main = levels[-2], levels[-1]
    limit = (cache.sustained_bytes_per_s * main.sustained_bytes_per_s) ** 0.5
    kept = 0
    for copy in copies:
        if copy.seconds <= 2 * launch_s or copy.moved_bytes / (copy.seconds - launch_s) >= limit:
            kept = copy.moved_bytes
    kept = min(kept, int(cache.capacity_bytes))
    return [*levels[:-2], replace(cache, keeps_bytes=float(kept)), main]


def peaks_of(products: Sequence[Product]) -> dict[str, float]:
    """The highest rate per dtype."""
    peaks: dict[str, float] = {}
    for product in products:
        label = product.dtype.label
        peaks[label] = max(peaks.get(label, 0.0), product.flops_per_s)
    return peaks


def fit_overheads(
    products: Sequence[Product],
    processors: int,
    tiles: Sequence[Tile],
    memory: Sequence[MemoryLevel],
    launch_s: float,
) -> Overheads:
    """Finds the overheads nearest to the measured products, one after the other, three rounds.

    Args:
        products: measured.
        processors: of the engine.
        tiles: that its kernels are taken to use.
        memory: levels, nearest first.
        launch_s: fixed time of a kernel.
    """
    plain = Engine(
        "engine", (MATRIX,), processors, peaks_of(products), {"default": 1.0}, tiles=tuple(tiles)
    )
    launch = Launch(launch_s, launch_s, hidden=True)
    groups: dict[str, list[Product]] = {}
    for product in products:
        groups.setdefault(product.dtype.label, []).append(product)
    efficiency = dict.fromkeys(groups, 1.0)
    figures = {key: values[0] for key, values in _GRID.items()}

    def errors(labels: Iterable[str], sustained: dict[str, float], **changed: float) -> Array:
        shares = {"default": 1.0, **sustained}
        tried = {**figures, **changed}
        engine = replace(
            plain,
            efficiency=shares,
            tile_overhead_s=tried["tile_overhead_s"],
            operand_cost=tried["operand_cost"],
            unhidden=tried["unhidden"],
        )
        device = Hardware("device", "", (engine,), tuple(memory), (), launch)
        return np.concatenate([_ratios(device, groups[label]) for label in labels])

    def distance(ratios: Array) -> float:
        # In logarithms, so that twice too slow counts as much as twice too fast.
        return float(np.abs(np.log(ratios)).mean())

    for _ in range(_ROUNDS):
        for label in groups:
            efficiency[label] = min(
                _EFFICIENCIES,
                key=lambda v, label=label: distance(errors([label], {label: v})),  # type: ignore[misc]
            )
        for key, values in _GRID.items():
            figures[key] = min(
                values,
                key=lambda v, key=key: distance(errors(groups, efficiency, **{key: v})),  # type: ignore[misc]
            )
    error = float(np.abs(errors(groups, efficiency) - 1).mean())
    return Overheads(efficiency, **figures, mean_error=error)


def _ratios(device: Hardware, products: Sequence[Product]) -> Array:
    """Predicted over measured."""
    shapes = np.array([(p.m, p.n, p.k) for p in products], dtype=float).T
    predicted_s = gemm_cost(device, products[0].dtype, *shapes).time_s
    ratios: Array = predicted_s / np.array([p.seconds for p in products])
    return ratios
