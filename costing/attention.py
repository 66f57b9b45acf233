"""Time of fused attention: scores stay on chip, so main memory sees only Q, K, V and the output.

The work is cut into blocks of (batch, head, some queries). With a causal mask the blocks are of
unequal length; with one query per sequence (decoding) there are too few, so the keys are split too.

Source: FlashAttention-2 (Dao 2023, arXiv 2307.08691) for the blocks and the five products of the
backward pass; FlashDecoding for the split over cached tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from costing.engine import MATRIX, VECTOR
from costing.hardware import Hardware
from costing.kernel_cost import Array, KernelCost
from graph_ir.tensor_type import DType


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of attention calls; arrays of equal length, or numbers."""

    batch: ArrayLike
    heads: ArrayLike
    kv_heads: ArrayLike
    queries: ArrayLike
    keys: ArrayLike
    """Keys that exist, cached ones included; the last query attends to all of them."""
    head_dim: ArrayLike
    value_dim: ArrayLike | None = None


def attention_cost(
    hardware: Hardware,
    dtype: DType,
    shape: AttentionShape,
    causal: bool = True,
    backward: bool = False,
) -> KernelCost:
    """Prices fused attention for each shape.

    Args:
        hardware: the device.
        dtype: of queries, keys and values.
        shape: sizes.
        causal: whether a query attends only to keys up to its own position.
        backward: price the backward pass, which multiplies five times instead of twice.
    """
    value = shape.head_dim if shape.value_dim is None else shape.value_dim
    raw = (
        shape.batch,
        shape.heads,
        shape.kv_heads,
        shape.queries,
        shape.keys,
        shape.head_dim,
        value,
    )
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in raw))
    b, h, g, s, t, d, e = arrays
    engine = hardware.engine_for(MATRIX, dtype)
    vector = hardware.engine_for(VECTOR, DType.FLOAT32)
    kernel = engine.attention
    slots = engine.processors * kernel.blocks_per_processor

    # Seconds that one slot needs per score.
    score_products, value_products = (3, 2) if backward else (1, 1)
    efficiency = kernel.backward_efficiency if backward else kernel.efficiency
    rate = engine.sustained(dtype) * efficiency
    flops = 2 * (score_products * d + value_products * e)
    per_score = slots * (flops / rate + kernel.softmax_flops / vector.sustained(DType.FLOAT32))

    # Queries that share keys are packed into one block, so a GQA group decodes as one.
    packs = s == 1 if kernel.copies_groups else s < kernel.rows
    packed = np.where(packs, np.minimum(h / g, np.maximum(kernel.rows / s, 1.0)), 1.0)
    rows = np.minimum(np.ceil(s * packed / 16) * 16, kernel.rows)
    blocks = b * h / packed * np.ceil(s * packed / kernel.rows)
    seen = _mean_keys(s, t, kernel.rows) if causal else t
    # The keys of blocks that leave processors idle are split, if that beats the summing up after.
    few = (s * packed <= kernel.rows) & (kernel.splits_ungrouped | (h > g))
    most = np.where(few, t / kernel.split_tokens, 1.0)
    split = np.clip(np.floor(slots / blocks), 1.0, np.maximum(most, 1.0))
    ideal_s = b * h * s * (_mean_keys(s, t, 1) if causal else t) * per_score / slots

    size = dtype.bits / 8
    operands = b * (h * s * (d + e) + g * t * (d + e)) * size
    read_back = 2.0 if backward else 1.0
    moved = operands * read_back + b * h * s * 4.0
    terms, traffic = {}, {}
    first_byte = hardware.main_memory.latency_s
    terms["compute"] = first_byte + ideal_s
    flows: list[tuple[Array, float | None]] = []
    for level in hardware.memory:
        # Every block streams the keys it sees through the inner levels.
        inner = blocks * seen * (d + e) * size * read_back + moved
        traffic[level.name] = moved if level is hardware.main_memory else inner
        flows.append(
            (traffic[level.name] / level.sustained_bytes_per_s, level.processor_bytes_per_s)
        )
        terms[f"memory:{level.name}"] = first_byte + flows[-1][0]

    def busy_s(parts: Array) -> Array:
        """Time with the keys of every block split into `parts`."""
        unit_s = t / parts * rows * per_score + kernel.block_latency_s
        waiting_s = blocks * parts / slots * kernel.block_latency_s
        total_s = blocks * seen * rows * per_score / slots + waiting_s
        # List scheduling: no block ends later than an even share plus part of the longest block.
        tail_s = np.where(blocks * parts > slots, 0.5 * unit_s * (seen / t), 0.0)
        longest: Array = np.maximum(total_s + tail_s, unit_s)
        active = np.minimum(blocks * parts, engine.processors)
        fetch = np.zeros_like(longest)
        for flow_s, draw in flows:
            fetch = np.maximum(fetch, flow_s)
            if draw is not None:
                fetch = np.maximum(fetch, moved / (active * draw))
        shorter: Array = np.minimum(longest, fetch)
        return np.maximum(longest, fetch) + kernel.unhidden * shorter

    apart_s = busy_s(split) + np.where(split > 1, kernel.split_latency_s, 0.0)
    busy = np.minimum(busy_s(np.ones_like(split)), apart_s)
    if kernel.copies_groups:
        apart = (s == 1) & (h > g) & (g > 1) & (b > 1)
        copied = 2 * b * h * (d + e) * size
        start_s = hardware.launch.device_latency_s + first_byte
        copies_s = 2 * start_s + copied / hardware.main_memory.sustained_bytes_per_s
        busy = busy + np.where(apart, copies_s, 0.0)
    fixed = hardware.launch.device_latency_s + kernel.latency_s + first_byte
    return KernelCost(fixed + busy, terms, traffic)


def _mean_keys(s: Array, t: Array, rows: int) -> Array:
    """Keys that a block of `rows` queries sees on average under a causal mask.

    Block i of n sees the cached keys and (i + 1) * rows new ones: (n + 1) / 2 * rows on average.
    """
    new = np.minimum(s, t)
    return np.minimum(t - new + (np.ceil(new / rows) + 1) / 2 * np.minimum(rows, new), t)
