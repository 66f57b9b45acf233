"""What PyTorch's caching allocator takes from the device for a set of blocks.

Sizes are rounded up to 512 bytes. Blocks of up to 1 MiB are cut from segments of 2 MiB, those below 10 MiB
from segments of 20 MiB, larger ones are segments of their own, rounded up to 2 MiB; a segment serves its own
pool only. Source: kMinBlockSize, kSmallSize, kSmallBuffer, kLargeBuffer, kMinLargeAlloc and kRoundLarge in
c10/cuda/CUDACachingAllocator.cpp, PyTorch 2.x with default settings.
"""

from __future__ import annotations

from collections.abc import Mapping

_MIB = 1 << 20
_BLOCK = 512
_SMALL, _MEDIUM = _MIB, 10 * _MIB
_SEGMENT = {"small": 2 * _MIB, "medium": 20 * _MIB, "large": 2 * _MIB}

POOLS = tuple(_SEGMENT)
"""Blocks that come from segments of one kind."""


def block(size_bytes: int) -> tuple[str, int]:
    """The pool that a block comes from, and the bytes that it takes there."""
    rounded = _up(size_bytes, _BLOCK)
    if rounded <= _SMALL:
        return "small", rounded
    return ("medium", rounded) if rounded < _MEDIUM else ("large", _up(rounded, _SEGMENT["large"]))


def reserved_bytes(peaks: Mapping[str, int]) -> int:
    """Bytes of all segments, where each pool has to serve that much at its own highest point.

    Pools reach it at different times and keep what they took. Gaps between blocks of one pool, which
    hang on the order of all calls, come on top.
    """
    return sum(_up(size, _SEGMENT[pool]) for pool, size in peaks.items())


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
