"""`opbound hardware`: the shipped devices, and one device with the source of every figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from graph_ir.tensor_type import DType
from reports.quantities import bytes_text, plain_text, scaled_text

if TYPE_CHECKING:
    from costing.hardware import Hardware

# The dtypes whose peaks tell devices apart; a device without one shows a dash.
_SHOWN_DTYPES = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT8_E4M3)


def list_devices() -> str:
    """One line per shipped device or cluster."""
    from tabulate import tabulate

    from costing.hardware_file import list_hardware, load_hardware

    headers = ["name", "device", *(f"{dtype} FLOP/s" for dtype in _SHOWN_DTYPES)]
    headers += ["memory", "bandwidth", "links"]
    rows = [_summary(load_hardware(name)) for name in list_hardware()]
    table = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
    return f"{table}\n\n`opbound hardware NAME` shows one with its sources.\n"


def _summary(hardware: Hardware) -> list[str]:
    memory = hardware.main_memory
    links = [f"{link.name} {bytes_text(link.device_bytes_per_s)}/s" for link in hardware.links]
    return [
        hardware.name,
        hardware.title,
        *(_peak(hardware, dtype) for dtype in _SHOWN_DTYPES),
        bytes_text(memory.capacity_bytes),
        f"{bytes_text(memory.bandwidth_bytes_per_s)}/s",
        ", ".join(links) or "-",
    ]


def _peak(hardware: Hardware, dtype: DType) -> str:
    peaks = [engine.peak_flops.get(dtype.label, 0.0) for engine in hardware.engines]
    return scaled_text(max(peaks)).strip() if any(peaks) else "-"


def show_device(name_or_path: str) -> str:
    """Every figure of one device, as its file states it, with its source.

    Raises:
        HardwareError: if there is no such device, or its file is wrong.
    """
    from costing.hardware_file import load_hardware

    # Loading it first finds every mistake, so that the walk below meets only what is right.
    hardware = load_hardware(name_or_path)
    figures = list(device_figures(hardware))
    keys = max((len(path) for path, _, _ in figures), default=0)
    numbers: dict[str, int] = {}
    lines = [f"{hardware.name}: {plain_text(hardware.title)}", plain_text(hardware.path), ""]
    for path, value, source in figures:
        number = numbers.setdefault(source, len(numbers) + 1)
        lines.append(f"{plain_text(path):<{keys}}  {plain_text(value)} [{number}]")
    lines += ["", "Sources"]
    lines += [f"[{number}] {plain_text(source, 1000)}" for source, number in numbers.items()]
    return "\n".join(lines) + "\n"


def device_figures(hardware: Hardware) -> Iterator[tuple[str, str, str]]:
    """Every figure of a device: its key path, its value as the file states it, its source."""
    from costing.hardware_base import read_device
    from costing.hardware_file import SPECS
    from costing.hardware_reader import RUNTIMES

    data = read_device(Path(hardware.path), SPECS)
    for path, value in _figures(data, ""):
        yield path, value, hardware.sources.get(path, "not stated")
    if "energy" not in data:
        yield from _known_energy(hardware)
    if hardware.runtime is not None and isinstance(data.get("runtime"), str):
        named = read_device(RUNTIMES, SPECS)[data["runtime"]]
        for path, value in _figures(named, "runtime"):
            yield path, value, hardware.runtime.sources.get(path, "not stated")


def _known_energy(hardware: Hardware) -> Iterator[tuple[str, str, str]]:
    """What is known of a shipped device's power beside its file."""
    from costing.technology import build_of, memory

    build, energy = build_of(hardware.name), hardware.energy
    if build is None or energy is None:
        return
    yield "energy.power", f"{energy.watts:g} W", build.source
    yield "energy.idle", f"{energy.idle_watts:g} W", build.source
    each = f"{energy.memory_j_per_byte / 8e-12:.4g} pJ/bit"
    yield "energy.memory", each, memory(build.memory).source
    for name, joules in energy.links_j_per_byte.items():
        source = "costing/technology.yaml: the generation of its kind nearest in bandwidth"
        yield f"energy.links.{name}", f"{joules / 8e-12:.4g} pJ/bit", source


def _figures(data: object, path: str) -> Iterator[tuple[str, str]]:
    """Each `{value, source}` entry of the file, with its key path as the loader names it."""
    if isinstance(data, list):
        for index, entry in enumerate(data):
            name = entry.get("name", index) if isinstance(entry, dict) else index
            yield from _figures(entry, f"{path}[{name}]")
    elif isinstance(data, dict) and "value" in data and "source" in data:
        value = data["value"]
        yield path, " ".join(map(str, value)) if isinstance(value, list) else str(value)
    elif isinstance(data, dict):
        for key, entry in data.items():
            yield from _figures(entry, f"{path}.{key}" if path else str(key))
