"""How long a piece of work takes on a device: warmed up, repeated, the lower quartile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

LEAST_SAMPLE_S = 1e-3
"""A sample repeats the work until it takes this long, so that the clock's own time does not count."""
_MOST_REPEATS = 20_000


class Clock(Protocol):
    """Marks a begin and an end on the device's own time line."""

    def begin(self) -> None:
        """All earlier work has ended; the time starts."""

    def end(self) -> float:
        """Waits until all work has ended and returns the seconds since `begin`."""


class HostClock:
    """For devices that have done the work when the call returns."""

    def begin(self) -> None:
        """Starts the time."""
        self._start_s = time.perf_counter()

    def end(self) -> float:
        """Seconds since `begin`."""
        return time.perf_counter() - self._start_s


class ThreadClock:
    """For one thread of a CPU: its own processor time, so that what others take does not count."""

    def begin(self) -> None:
        """Starts the time."""
        self._start_s = time.thread_time()

    def end(self) -> float:
        """Processor seconds of this thread since `begin`."""
        return time.thread_time() - self._start_s


class EventClock:
    """For CUDA: events on the device's stream, so that what the host does beside does not count.

    Args:
        cuda: `torch.cuda`.
        device: whose current stream is timed.
    """

    def __init__(self, cuda: Any, device: Any) -> None:
        self._cuda, self._device = cuda, device
        self._events = [cuda.Event(enable_timing=True) for _ in range(2)]

    def begin(self) -> None:
        """Waits for the device, then records the first event."""
        self._cuda.synchronize(self._device)
        self._events[0].record()

    def end(self) -> float:
        """Records the second event, waits for it, and returns what lies between (ms on the device)."""
        self._events[1].record()
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1e3


def typical_s(
    clock: Clock,
    work: Callable[[], object],
    *,
    budget_s: float = 0.5,
    samples: int = 15,
    least_sample_s: float = LEAST_SAMPLE_S,
) -> float:
    """Seconds of one call of `work`, over samples each of which repeats it.

    Args:
        clock: of the device that works.
        work: what is timed; it only has to be issued when it returns.
        budget_s: after this long no further sample begins; three are always taken.
        samples: how many are taken at most.
        least_sample_s: how long a sample is at least, unless that takes thousands of calls.
    """
    # The first call pays for code loading, memory and choosing of algorithms.
    once_s = LEAST_SAMPLE_S
    for _ in range(2):
        clock.begin()
        work()
        once_s = clock.end()
    repeats = max(1, min(_MOST_REPEATS, round(least_sample_s / max(once_s, 1e-9))))
    found: list[float] = []
    spent_s = 0.0
    while len(found) < samples and (len(found) < 3 or spent_s < budget_s):
        clock.begin()
        for _ in range(repeats):
            work()
        sample_s = clock.end()
        spent_s += sample_s
        found.append(sample_s / repeats)
    return typical(found)


def typical(seconds: Sequence[float]) -> float:
    """The lower quartile of several measurements of the same.

    Other programs only ever add time, so the lower half is nearer to the truth than the upper one;
    the least is luck (a clock that was boosted, a cache that was warm).
    """
    return sorted(seconds)[(len(seconds) - 1) // 4]
