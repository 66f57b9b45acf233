"""Writes what was measured as a hardware file, every figure with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from costing.engine import Tile
from costing.hardware import MemoryLevel
from costing.link import Link
from opbound.device.engine_fit import Overheads


def figure(value: object, source: str) -> dict[str, object]:
    """One entry of a hardware file."""
    return {"value": value, "source": source}


def rate(flops_per_s: float) -> str:
    """FLOP/s as a hardware file has it."""
    return (
        f"{flops_per_s / 1e12:.4g} TFLOPS"
        if flops_per_s >= 1e12
        else f"{flops_per_s / 1e9:.4g} GFLOPS"
    )


def bandwidth(bytes_per_s: float) -> str:
    """Bytes per second as a hardware file has them."""
    return (
        f"{bytes_per_s / 1e12:.4g} TB/s" if bytes_per_s >= 1e12 else f"{bytes_per_s / 1e9:.4g} GB/s"
    )


def duration(seconds: float) -> str:
    """Seconds as a hardware file has them."""
    return f"{seconds * 1e6:.3f} us"


def share(fraction: float) -> str:
    """A fraction of 1 as a hardware file has it."""
    return f"{100 * fraction:.1f} %"


def matrix_engine(
    name: str,
    kinds: Sequence[str],
    processors: str,
    peaks: Mapping[str, float],
    tiles: Sequence[Tile],
    overheads: Overheads,
) -> dict[str, Any]:
    """An engine whose products were measured."""
    entry = {
        "name": name,
        "kinds": list(kinds),
        "processors": figure(processors, "system"),
        "peak": {label: figure(rate(value), "products") for label, value in peaks.items()},
        "efficiency": {
            **{label: figure(share(part), "fit") for label, part in overheads.efficiency.items()},
            "default": figure(share(min(overheads.efficiency.values())), "fit"),
        },
        "tiles": figure([f"{tile.m}x{tile.n}" for tile in tiles], "tiles"),
        "tile_overhead": figure(duration(overheads.tile_overhead_s), "fit"),
        "unhidden": figure(share(overheads.unhidden), "fit"),
    }
    if overheads.operand_cost:
        entry["operand_cost"] = figure(f"{overheads.operand_cost:.0f} products", "fit")
    return entry


def vector_engine(name: str, processors: str, flops_per_s: float) -> dict[str, Any]:
    """An engine whose elementwise functions were measured."""
    return {
        "name": name,
        "kinds": ["vector"],
        "processors": figure(processors, "system"),
        "peak": {"float32": figure(rate(flops_per_s), "elementwise")},
        "efficiency": {"default": figure("100 %", "elementwise")},
    }


def memory_entry(level: MemoryLevel) -> dict[str, Any]:
    """A memory level whose copies were measured."""
    keeps = figure(f"{level.keeps_bytes:.0f} B", "keeps")
    return {
        "name": level.name,
        "capacity": figure(f"{level.capacity_bytes:.0f} B", "system"),
        "bandwidth": figure(bandwidth(level.bandwidth_bytes_per_s), "copies"),
        "efficiency": figure(share(level.efficiency), "copies"),
        "latency": figure("0 us", "launch"),
        **({"keeps": keeps} if level.keeps_bytes else {}),
    }


def link_entry(link: Link) -> dict[str, Any]:
    """A link whose collectives were measured."""
    return {
        "name": link.name,
        "kind": link.kind,
        "devices": figure(f"{link.devices} devices", "system"),
        "bandwidth": figure(bandwidth(link.bandwidth_bytes_per_s), "collectives"),
        "algorithms": list(link.algorithms),
        "protocols": [
            {
                "name": protocol.name,
                "algorithms": list(protocol.algorithms),
                "efficiency": figure(share(protocol.efficiency), "collectives"),
                "base_latency": figure(duration(protocol.base_latency_s), "collectives"),
                "step_latency": figure(duration(protocol.step_latency_s), "collectives"),
            }
            for protocol in link.protocols
        ],
    }


MEASURED = "# Measured by opbound calibrate: see `sources` for when, where and how.\n"


def file_text(content: Mapping[str, Any], head: str = MEASURED) -> str:
    """The YAML text of a hardware file, after a comment."""
    import yaml

    def dumped(part: Mapping[str, Any], flow: bool | None) -> str:
        text: str = yaml.safe_dump(
            dict(part), sort_keys=False, default_flow_style=flow, width=1000, allow_unicode=True
        )
        return text

    figures = {key: value for key, value in content.items() if key != "sources"}
    # One line per source, whatever its length.
    sources = {"sources": content["sources"]} if "sources" in content else {}
    return head + dumped(figures, None) + (dumped(sources, False) if sources else "")
