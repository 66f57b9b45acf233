"""What one operator costs: quantities, time, and what bounds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

COMPUTE = "compute"
LATENCY = "latency"
HOST = "host"
UNKNOWN = "unknown"


def memory_bound(level: str) -> str:
    """The name of the bound that a memory level sets."""
    return f"memory:{level}"


def network_bound(link: str) -> str:
    """The name of the bound that a link sets."""
    return f"network:{link}"


@dataclass(frozen=True)
class OpCost:
    """Cost of an operator, or the sum over several."""

    flops: int = 0
    """One multiply-add is 2; what the operator's record counts, a causal mask not halved."""
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_communicated: int = 0
    time_s: float = 0.0
    """Never below `terms`: latency comes first, then the largest of the others and its losses."""
    bound: str = LATENCY
    """The largest term."""
    engine: str = "none"
    utilization: float = 0.0
    """Fraction of the limiting resource's nominal peak that the operator gets during `time_s`."""
    terms: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Seconds that each resource needs at its sustained rate, by bound."""
    processors_taken: float = 0.0
    """Of a collective: the share of the processors that its own kernel keeps from those beside it."""
    link_bytes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Of a collective: what a rank sends over each link, by its name, by the algorithm that is taken."""

    @property
    def arithmetic_intensity(self) -> float:
        """FLOPs per byte of main memory traffic; infinite for an operator that moves nothing."""
        moved = self.bytes_read + self.bytes_written
        return self.flops / moved if moved else float("inf") if self.flops else 0.0

    def __add__(self, other: OpCost) -> OpCost:
        """Both, one after the other. The bound is that of the summed terms."""
        terms = _sums(self.terms, other.terms)
        time_s = self.time_s + other.time_s
        used = self.utilization * self.time_s + other.utilization * other.time_s
        return OpCost(
            flops=self.flops + other.flops,
            bytes_read=self.bytes_read + other.bytes_read,
            bytes_written=self.bytes_written + other.bytes_written,
            bytes_communicated=self.bytes_communicated + other.bytes_communicated,
            time_s=time_s,
            bound=largest(terms) if terms else self.bound,
            engine=self.engine if other.engine in (self.engine, "none") else other.engine,
            utilization=used / time_s if time_s else 0.0,
            terms=terms,
            link_bytes=_sums(self.link_bytes, other.link_bytes),
        )

    def __mul__(self, times: int) -> OpCost:
        """The same operator `times` times, one after the other."""
        return replace(
            self,
            flops=self.flops * times,
            bytes_read=self.bytes_read * times,
            bytes_written=self.bytes_written * times,
            bytes_communicated=self.bytes_communicated * times,
            time_s=self.time_s * times,
            terms={name: seconds * times for name, seconds in self.terms.items()},
            link_bytes={name: moved * times for name, moved in self.link_bytes.items()},
        )

    __rmul__ = __mul__


def _sums(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return dict(one) | {name: one.get(name, 0.0) + part for name, part in other.items()}


def largest(terms: Mapping[str, float]) -> str:
    """The bound: the largest term. Of equal ones the first, so that compute wins at the ridge."""
    return max(terms, key=lambda name: terms[name])
