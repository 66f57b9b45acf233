"""The device mesh: named axes with sizes, in their order over the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from graph_ir.errors import MeshError, did_you_mean

ORDER = ("auto", "tp", "tp_rows", "tp_depth", "cp", "ep", "dp", "pp")
"""Innermost first: neighbouring ranks share a node, so the axis that communicates most comes first
(Megatron-LM's default order, Narayanan et al. 2021, arXiv 2104.04473, section 3)."""


@dataclass(frozen=True)
class MeshAxis:
    """One axis: a rank's group along it is rank, rank + stride, rank + 2 stride, ..."""

    name: str
    size: int
    stride: int


@dataclass(frozen=True)
class Mesh:
    """Sizes of all axes."""

    sizes: Mapping[str, int]
    order: tuple[str, ...] = ()
    """Axes from neighbouring devices outwards; those not named keep their usual order behind them."""

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            if size < 1:
                raise MeshError(f"mesh axis {name} has size {size}; give a positive number")
        for name in self.order:
            if name not in (*ORDER, *self.sizes):
                raise MeshError(
                    f"--mesh-order: there is no axis {name!r}; {did_you_mean(name, ORDER)}"
                )

    @property
    def devices(self) -> int:
        """Number of devices."""
        return prod(self.sizes.values())

    def axis(self, name: str) -> MeshAxis:
        """The axis of that name; size 1 if the mesh does not have it."""
        stride = 1
        # An axis that a further strategy brings lies between replicas and pipeline stages.
        further = sorted(set(self.sizes) - set(ORDER))
        usual = (*ORDER[:-1], *further, ORDER[-1])
        for other in (*self.order, *(a for a in usual if a not in self.order)):
            if other == name:
                break
            stride *= self.sizes.get(other, 1)
        return MeshAxis(name, self.sizes.get(name, 1), stride)

    def __str__(self) -> str:
        given = [f"{n}={s}" for n, s in self.sizes.items() if s > 1]
        return ",".join(given) or "one device"
