"""What joins devices: a link, how it is built, and the protocols on it."""

from __future__ import annotations

from dataclasses import dataclass

SWITCH = "switch"
UPLINK = "uplink"
DIRECT = "direct"
GRID = "grid"


@dataclass(frozen=True)
class Protocol:
    """A way to move a message over a link: trades latency for bandwidth."""

    name: str
    efficiency: float
    """Fraction of the link's bandwidth that a long message reaches."""
    base_latency_s: float
    """Once per collective: start, synchronisation, teardown."""
    step_latency_s: float
    """Per step of the algorithm (one hop of a ring, one level of a tree)."""
    algorithms: tuple[str, ...] = ("ring", "tree")
    """The algorithms that can use it."""


@dataclass(frozen=True)
class Link:
    """A network that joins devices, from the innermost (a node) to the outermost (a cluster)."""

    name: str
    kind: str
    devices: int | None
    """How many devices one domain of it joins; None when there is no such limit."""
    bandwidth_bytes_per_s: float
    """One way: of a port to the switch, of all wires of a device together, of one wire of a grid."""
    algorithms: tuple[str, ...]
    """Collective algorithms available on it: 'ring', 'tree', 'in_network', 'nvls', 'pairwise'."""
    protocols: tuple[Protocol, ...]
    local_bytes_per_s: float | None = None
    """Rate at which a collective's kernel passes the message through the device itself, which does
    not overlap with the wire; None when that is not a limit."""
    processor_share: float = 0.0
    """Share of the device's processors that a collective's kernel occupies while it moves data."""
    topology: str = SWITCH
    """'switch': a port for each device; 'uplink': it joins the switches of the link below, so that what
    crosses it passes that one too; 'direct': a wire to each other device; 'grid': one to each neighbour
    in `dims`."""
    shared_by: int = 1
    """Devices that share one port."""
    dims: tuple[int, ...] = ()
    """Sides of a grid, innermost first, in devices or domains of the link below."""
    wraps: int | None = None
    """Of a grid: runs of a multiple of this many close to a ring; None: they never do."""

    @property
    def device_bytes_per_s(self) -> float:
        """Nominal bandwidth of all that one device has of the link while all of them use it."""
        wires = 2 * len(self.dims) if self.dims else 1
        return self.bandwidth_bytes_per_s * wires / self.shared_by
