"""What a family of kernels costs: the result of every shape-level cost function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class KernelCost:
    """Time of each shape, and what it is made of. All arrays have one entry per shape."""

    time_s: Array
    """Launch and first-byte latency + the slowest of engine and levels, with all quantisation."""
    terms: dict[str, Array]
    """What each resource needs for the useful work at its sustained rate, first byte included:
    'compute' and 'memory:LEVEL', in seconds. `time_s` is above each of them by what tiles, waves
    and idle processors lose."""
    traffic_bytes: dict[str, Array]
    """Bytes that cross each level, by level name."""
