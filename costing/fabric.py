"""Which links a group of devices spans, and how fast one of its members gets over each of them.

Ranks lie densely on the machine, and all groups of a mesh axis work at the same time: of a group with
stride s there are s side by side. So what else crosses a link follows from the group's stride and the
link's build, and nothing has to be told about the other groups:

- a *switch* gives every device a port; where several devices share one (`shared_by`: fewer adapters
  than devices, a trunk between switches) each gets its part of it;
- devices joined *directly*, each with each, have only the wires to the other members of the group;
- in a *grid* (a mesh, or a torus where rows wrap around) a group uses one wire of each dim that it
  spans, both ways around where the row wraps; groups that interleave in a row share its wires.

Source: mesh and torus collectives over all dims at once: Sack and Gropp, "Collective algorithms for
multiported torus networks" (ACM TOPC 2015); their use on wafers: FRED, arXiv 2406.19580.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil

from costing.hardware import Hardware
from costing.link import DIRECT, GRID, Link
from graph_ir.errors import HardwareError


@dataclass(frozen=True)
class Row:
    """What a group uses of one dim of a grid."""

    members: int
    wraps: bool
    bytes_per_s: float
    """Of one wire and direction, with what the groups that interleave here leave of it."""

    @property
    def around_bytes_per_s(self) -> float:
        """Of rings: two on a row that wraps around; on a line one, that comes back on the other side."""
        return self.bytes_per_s * (2 if self.wraps and self.members > 2 else 1)

    @property
    def exchange_s_per_byte(self) -> float:
        """Seconds for each byte of a rank's buffer that all exchange with all, by the shortest way."""
        n = self.members
        hops = n * n // 4 / n
        return hops / (2 if self.wraps and n > 2 else 1) / self.bytes_per_s


@dataclass(frozen=True)
class Span:
    """A level of the group: how many peers it joins by one link."""

    link: Link
    peers: int
    stride: int = 1
    """Ranks between neighbours of the group."""
    inner: int = 1
    """Devices in one member of this level: a device, or the domain of the link below."""

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The dims of a grid that the group spans, innermost first."""
        found = []
        left, pitch = self.peers, max(self.stride // self.inner, 1)
        for extent in self.link.dims:
            if pitch >= extent:
                pitch = ceil(pitch / extent)
                continue
            members = min(left, extent // pitch)
            if members > 1:
                around = self.link.wraps is not None and members * pitch % self.link.wraps == 0
                found.append(Row(members, around, self.link.bandwidth_bytes_per_s / pitch))
            left, pitch = ceil(left / members), 1
            if left == 1:
                break
        # A group that no row holds: its rings share one wire with all that lie between its members.
        rate = self.link.bandwidth_bytes_per_s / pitch
        return tuple(found) or (Row(self.peers, False, rate),)

    def bytes_per_s(self, op: str) -> float:
        """What one rank gets of the link, one way, while all groups like its own work."""
        link = self.link
        lone = op in ("send", "recv", "collective_permute")
        # Of ranks that each send to a neighbour, the last `stride` of a domain leave it.
        sharers = min(link.shared_by, self.stride) if lone else link.shared_by
        if link.topology == GRID:
            return self._grid_bytes_per_s(op, lone) / sharers
        if link.topology == DIRECT and link.devices is not None:
            others = max(link.devices // self.inner - 1, 1)
            wires = 1 if lone else min(self.peers - 1, others)
            return link.bandwidth_bytes_per_s * wires / others / sharers
        return link.bandwidth_bytes_per_s / sharers

    def _grid_bytes_per_s(self, op: str, lone: bool) -> float:
        if lone:
            # The way to the neighbour: one wire, of the last row that it leads through.
            return self.rows[-1].bytes_per_s
        if op == "all_to_all":
            # A rank's own part stays; each dim carries all that changes its place along it.
            share = (self.peers - 1) / self.peers
            return share / max(row.exchange_s_per_byte for row in self.rows)
        return sum(row.around_bytes_per_s for row in self.rows)


def spans(hardware: Hardware, size: int, stride: int = 1) -> list[Span]:
    """The links that a group crosses, innermost first; empty for a group of one.

    Raises:
        HardwareError: if the hardware has no link, or not enough devices on it.
    """
    if size <= 1:
        return []
    if not hardware.links:
        raise HardwareError(
            f"{hardware.name} has no links, so it cannot work in a group of {size} devices; "
            "add a link to its file or choose a cluster"
        )
    levels: list[Span] = []
    left, step, inner = size, stride, 1
    for link in hardware.links:
        peers = left if link.devices is None else min(left, max(link.devices // step, 1))
        if peers > 1:
            levels.append(Span(link, peers, stride, inner))
            left = ceil(left / peers)
        if link.devices is not None:
            # Seen from the next link, one domain of this one is a single member.
            step, inner = max(step, link.devices), link.devices
        if left == 1:
            return levels
    outer = hardware.links[-1]
    raise HardwareError(
        f"{hardware.name}: a group of {size} devices with stride {stride} does not fit: "
        f"{outer.name} joins only {outer.devices} devices"
    )
