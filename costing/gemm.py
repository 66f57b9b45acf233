"""Time of C[m, n] = A[m, k] B[k, n] from tiles, waves and traffic, for a million shapes at once.

A library is assumed to choose well: every tile of the engine, whole or split along k, is priced and
the fastest taken. What is easily got wrong: a tile that hangs over the edge of C costs as much as
a full one, and a last wave that fills three processors takes as long as a full one.

Source: traffic into a level follows the tile that fits the level above (Kundu et al., arXiv
2407.14645; DeepFlow, arXiv 2211.03309); split-k and stream-k as in CUTLASS (Osama et al., arXiv
2301.03598).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from costing.engine import MATRIX, Engine
from costing.hardware import Hardware, MemoryLevel
from costing.kernel_cost import Array, KernelCost
from graph_ir.tensor_type import DType

_CHUNK = 1 << 12
"""Shapes per pass, for all tiles: the pass's dozens of temporaries then stay in the processor's cache."""

_ACCUMULATOR_BYTES = 4.0
"""Partial sums of a split contraction are kept in 32 bits."""


def gemm_cost(
    hardware: Hardware,
    dtype: DType,
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    batch: ArrayLike = 1,
    out_dtype: DType | None = None,
    a_bytes: ArrayLike | None = None,
    b_bytes: ArrayLike | None = None,
    splits: bool = True,
) -> KernelCost:
    """Prices `batch` products of [m, k] by [k, n].

    Shapes: m, n, k, batch broadcast against each other; the results are flat.

    Args:
        hardware: the device.
        dtype: of both operands; `out_dtype` of the result (the same by default).
        m: rows of the result.
        n: columns of the result.
        k: the contracted dim.
        batch: independent products.
        out_dtype: dtype of the result.
        a_bytes: bytes of A that main memory really holds, if fewer than batch * m * k elements (a
            convolution's input, a broadcast operand).
        b_bytes: the same for B.
        splits: whether the library's kernels may split the contraction; those of a convolution's
            forward pass do not.
    """
    arrays = [np.asarray(x, dtype=np.float64) for x in (m, n, k, batch)]
    size = dtype.bits / 8
    out = (out_dtype or dtype).bits / 8
    a = arrays[3] * arrays[0] * arrays[2] * size if a_bytes is None else np.asarray(a_bytes, float)
    b = arrays[3] * arrays[1] * arrays[2] * size if b_bytes is None else np.asarray(b_bytes, float)
    flat = [x.ravel() for x in np.broadcast_arrays(*arrays, a, b)]
    engine = hardware.engine_for(MATRIX, dtype)
    rate = engine.sustained(dtype)
    count = flat[0].size
    busy = np.empty(count)
    traffic = np.empty((len(hardware.memory), count))
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        m_, n_, k_, batch_, a_, b_ = (x[part] for x in flat)
        shape = _Shape(m_, n_, k_, batch_, a_, b_, size, out, splits)
        busy[part], traffic[:, part] = _best(hardware, engine, rate, shape)
    first_byte = hardware.main_memory.latency_s
    terms = {"compute": first_byte + 2 * flat[0] * flat[1] * flat[2] * flat[3] / rate}
    for level, moved in zip(hardware.memory, traffic, strict=True):
        terms[f"memory:{level.name}"] = first_byte + moved / level.sustained_bytes_per_s
    return KernelCost(
        time_s=hardware.launch.device_latency_s + first_byte + busy,
        terms=terms,
        traffic_bytes={lv.name: traffic[i] for i, lv in enumerate(hardware.memory)},
    )


@dataclass(frozen=True)
class _Shape:
    m: Array
    n: Array
    k: Array
    batch: Array
    a_bytes: Array
    b_bytes: Array
    size: float
    """Bytes of one element of A and B."""
    out_size: float
    """Bytes of one element of C."""
    splits: bool
    """Whether the contraction may be split."""


def _best(hardware: Hardware, engine: Engine, rate: float, s: _Shape) -> tuple[Array, Array]:
    """Busy time [shapes] and traffic [levels, shapes] of the fastest candidate."""
    found = list(_candidates(hardware, engine, rate, s))
    busy = np.stack([time for time, _ in found], axis=1).reshape(-1, s.m.size)
    fastest = busy.argmin(axis=0)[None]
    best = np.take_along_axis(busy, fastest, axis=0)[0]
    traffic = []
    for level in range(len(hardware.memory)):
        moved = np.stack([t[level] for _, t in found], axis=1).reshape(-1, s.m.size)
        traffic.append(np.take_along_axis(moved, fastest, axis=0)[0])
    flops = 2 * s.m * s.n * s.k * s.batch
    return _throttled(engine, rate, flops, best), np.stack(traffic)


def _candidates(
    hardware: Hardware, engine: Engine, rate: float, s: _Shape
) -> Iterator[tuple[Array, list[Array]]]:
    """Every tile [tiles, shapes], whole and with the contraction split (stream-k, or in equal parts)."""
    processors = engine.processors
    tile = _Tiles(
        np.array([[t.m] for t in engine.tiles], dtype=np.float64),
        np.array([[t.n] for t in engine.tiles], dtype=np.float64),
    )
    tiles = s.batch * np.ceil(s.m / tile.m) * np.ceil(s.n / tile.n)
    waves = np.ceil(tiles / processors)
    yield _terms(hardware, engine, rate, s, tile, _Runs(tiles, waves, waves))
    if not engine.split_depth_bytes or not s.splits:
        return
    most = np.maximum(s.k * s.size / engine.split_depth_bytes, 1.0)
    if engine.split_evenly:
        runs = tiles / np.minimum(tiles * most, processors)
        # Every processor leaves at most two tiles unfinished.
        unfinished = 2 * processors * tile.m * tile.n * _ACCUMULATOR_BYTES
        split = _Runs(tiles, runs, np.maximum(runs, 1.0), unfinished, engine.split_latency_s)
        yield _terms(hardware, engine, rate, s, tile, split)
        return
    # As many parts as fill one wave, or a few parts that fill the last of several waves.
    result = 2 * s.batch * s.m * s.n * _ACCUMULATOR_BYTES
    for wanted in (np.floor(processors / tiles), 2.0, 3.0):
        parts = np.clip(wanted, 1.0, most)
        finished = np.ceil(tiles * parts / processors)
        partial = np.where(parts > 1, parts * result, 0.0)
        summed_s = partial / hardware.memory[0].sustained_bytes_per_s
        extra_s = np.where(parts > 1, engine.split_latency_s + summed_s, 0.0)
        split = _Runs(tiles, finished / parts, finished, partial, extra_s)
        yield _terms(hardware, engine, rate, s, tile, split)


@dataclass(frozen=True)
class _Tiles:
    """Sides of all tiles [tiles, 1]."""

    m: Array
    n: Array


@dataclass(frozen=True)
class _Runs:
    """How the tiles of a result are shared out over the processors."""

    tiles: Array
    """That cover the result."""
    runs: Array
    """Full-depth tiles that the busiest processor computes, one after another."""
    finished: Array
    """Tiles and parts of tiles that it starts and ends."""
    partial: Array | float = 0.0
    """Bytes of partial sums, written and read."""
    extra_s: Array | float = 0.0
    """Time of summing them up."""


def _terms(
    hardware: Hardware, engine: Engine, rate: float, s: _Shape, tile: _Tiles, shared: _Runs
) -> tuple[Array, list[Array]]:
    """Busy time and traffic per level of every tile shape.

    Args:
        hardware: the device.
        engine: the engine that multiplies.
        rate: its sustained FLOP/s.
        s: the shapes.
        tile: the tiles.
        shared: how the result's tiles are shared out.
    """
    per_processor = rate * (1 + engine.clock_headroom) / engine.processors
    area = tile.m * tile.n
    # Large tiles read an operand from on-chip memory for more products each.
    least = ((tile.m + tile.n) / area).min()
    area_as_fed = area + engine.operand_cost * (tile.m + tile.n - least * area)
    fetched = (tile.m + tile.n) * s.size * s.k
    share = hardware.main_memory.sustained_bytes_per_s / engine.processors
    drain_s = engine.drain_exposed * area * s.out_size / share
    compute = shared.runs * s.k * (2 * area_as_fed / per_processor)
    compute += shared.finished * (engine.tile_overhead_s + drain_s)
    traffic = []
    fetch = np.zeros_like(shared.tiles)
    result = s.batch * s.m * s.n * s.out_size
    for level in hardware.memory:
        if level is hardware.main_memory:
            traffic.append(_main_memory_bytes(hardware, engine, s, tile, result))
        else:
            traffic.append(shared.tiles * fetched + shared.partial + result)
        fetch = np.maximum(fetch, _flow_s(level, traffic[-1], shared.runs * fetched))
    busy = np.maximum(compute, fetch) + engine.unhidden * np.minimum(compute, fetch)
    return busy + shared.extra_s, traffic


def _throttled(engine: Engine, rate: float, flops: Array, busy: Array) -> Array:
    """Busy time at the clock that power allows.

    Power grows with the work per clock and, as voltage follows the clock, with the clock's square:
    above the utilisation that power allows at the full clock, time grows with the root of the
    excess. `rate` is what full utilisation comes down to.
    """
    if not engine.clock_headroom:
        return busy
    allowed = rate / (1 + engine.clock_headroom)
    slowed: Array = np.sqrt(flops * busy / allowed)
    return np.maximum(busy, slowed)


def _flow_s(level: MemoryLevel, traffic: Array, drawn: Array) -> Array:
    """Time of a stream from `level`; the busiest processor draws `drawn` bytes of it itself."""
    flow: Array = traffic / level.sustained_bytes_per_s
    if level.processor_bytes_per_s is not None:
        flow = np.maximum(flow, drawn / level.processor_bytes_per_s)
    return flow


def _main_memory_bytes(
    hardware: Hardware, engine: Engine, s: _Shape, tile: _Tiles, result: Array
) -> Array:
    """Least traffic, plus what is read again when a wave's rows and columns outgrow the caches.

    The processors of one wave cover about sqrt(P) x sqrt(P) tiles. Operand A is read once per
    column of such blocks, B once per row, unless the whole operand stays in the last cache.
    """
    cache = hardware.memory[-2].capacity_bytes if len(hardware.memory) > 1 else 0.0
    side = engine.processors**0.5
    again_a = np.where(s.a_bytes <= cache, 1.0, np.maximum(s.n / (side * tile.n), 1.0))
    again_b = np.where(s.b_bytes <= cache, 1.0, np.maximum(s.m / (side * tile.m), 1.0))
    keeps = max((level.keeps_bytes for level in hardware.memory[:-1]), default=0.0)
    if not keeps:
        return s.a_bytes * again_a + s.b_bytes * again_b + result
    # Activations that the kernel before left in a cache; weights come from memory once per step.
    kept = s.a_bytes + result <= keeps
    return s.b_bytes * again_b + np.where(kept, 0.0, s.a_bytes * again_a + result)
