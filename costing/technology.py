"""Process nodes, memories and links by generation, read from `technology.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from graph_ir.errors import HardwareError, did_you_mean

_FILE = Path(__file__).with_name("technology.yaml")
_SAME_NODE = {"n1": "a10", "n1.4": "a14", "n1.6": "a16", "n3e": "n3"}


@dataclass(frozen=True)
class Node:
    """A process node, relative to the first of the chain."""

    name: str
    density: float
    """Logic transistors per area."""
    speed: float
    """Clock at the same power."""
    power: float
    """Of the same circuit at the same clock."""
    sram_um2: float
    """Area of an SRAM bit."""
    source: str


@dataclass(frozen=True)
class Memory:
    """A generation of memory; figures are per stack, package or channel."""

    name: str
    family: str
    width_bits: int
    pin_bits_per_s: float
    capacity_bytes: float
    joules_per_byte: float
    source: str

    def bandwidth_bytes_per_s(self, stacks: int, pin_bits_per_s: float | None = None) -> float:
        """Of several stacks, at the standard's rate per pin or another one."""
        return stacks * self.width_bits * (pin_bits_per_s or self.pin_bits_per_s) / 8


@dataclass(frozen=True)
class LinkGeneration:
    """A generation of links."""

    name: str
    kind: str
    bandwidth_bytes_per_s: float
    """Per device and direction."""
    joules_per_byte: float
    source: str


@dataclass(frozen=True)
class Build:
    """How a device is built."""

    node: str
    memory: str
    stacks: int
    watts: float
    """What its power limit allows."""
    idle_watts: float
    """What it draws while it waits."""
    source: str


def node(name: str) -> Node:
    """The node of that name (n12 to a10; n1 is a10).

    Raises:
        HardwareError: if there is none.
    """
    table = _table()["nodes"]
    found = _entry("process node", "nodes", _SAME_NODE.get(name, name))
    step = Node(
        name,
        float(found["density"]),
        float(found["speed"]),
        float(found["power"]),
        float(found["sram"]),
        str(found["source"]),
    )
    while found["of"] is not None:
        # Each step is stated beside the one before it; the chain multiplies.
        found = table[found["of"]]
        step = Node(
            name,
            step.density * found["density"],
            step.speed * found["speed"],
            step.power * found["power"],
            step.sram_um2,
            step.source,
        )
    return step


def memory(name: str) -> Memory:
    """The memory generation of that name (gddr6 to hbm4).

    Raises:
        HardwareError: if there is none.
    """
    found = _entry("memory generation", "memories", name)
    return Memory(
        name,
        str(found["family"]),
        int(found["width"]),
        float(found["gbit_per_s"]) * 1e9,
        float(found["gigabytes"]) * 1e9,
        float(found["pj_per_bit"]) * 8e-12,
        str(found["source"]),
    )


def memory_energy(memory_name: str, node_name: str) -> float:
    """Joules per byte from a generation of memory into the registers of a device on a node."""
    way = float(_table()["across_chip"]["pj_per_bit"]) * 8e-12
    return memory(memory_name).joules_per_byte + way * node(node_name).power


def link(name: str) -> LinkGeneration:
    """The link generation of that name.

    Raises:
        HardwareError: if there is none.
    """
    found = _entry("link generation", "links", name)
    return LinkGeneration(
        name,
        str(found["kind"]),
        float(found["gigabytes_per_s"]) * 1e9,
        float(found["pj_per_bit"]) * 8e-12,
        str(found["source"]),
    )


def link_energy(kind: str, bandwidth_bytes_per_s: float) -> float | None:
    """Joules per byte of the generation of a kind whose bandwidth is nearest; None for other kinds."""
    same = [link(name) for name, found in _table()["links"].items() if found["kind"] == kind]
    if not same:
        return None

    def distance(generation: LinkGeneration) -> float:
        ratio = generation.bandwidth_bytes_per_s / bandwidth_bytes_per_s
        return max(ratio, 1 / ratio)

    return min(same, key=distance).joules_per_byte


def operation_energy(kind: str) -> Mapping[str, float]:
    """By dtype: energy of an operation beside a half-precision one of a matrix engine."""
    found: Mapping[str, float] = _table()["operations"][kind]
    return found


def build_of(device: str) -> Build | None:
    """How a shipped device is built; None for others."""
    found = _table()["devices"].get(device)
    return Build(**found) if found else None


def _entry(what: str, table: str, name: str) -> Any:
    known = _table()[table]
    if name not in known:
        raise HardwareError(f"there is no {what} {name!r}; {did_you_mean(name, known)}")
    return known[name]


@lru_cache(maxsize=1)
def _table() -> Any:
    import yaml

    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))
