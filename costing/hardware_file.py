"""Finds a device's YAML file and reads it into `Hardware`. A file may name another one as its `base`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from costing.hardware import Hardware
from costing.hardware_base import read_device
from costing.hardware_reader import read_hardware
from costing.hardware_section import Section
from graph_ir.errors import HardwareError, did_you_mean

SPECS = Path(__file__).parent / "hardware_specs"


def list_hardware() -> list[str]:
    """Names of the devices that are shipped."""
    return sorted(path.stem for path in SPECS.glob("*.yaml"))


def load_hardware(name_or_path: str) -> Hardware:
    """The device of that name, or the one a YAML file describes.

    Raises:
        HardwareError: if there is no such device or file, or the file is wrong; the message names
            the file, the key, and the nearest right one.
    """
    text = str(name_or_path)
    if text in list_hardware():
        return _load(SPECS / f"{text}.yaml")
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise HardwareError(f"hardware file {text!r} does not exist")
        return parse_hardware(path)
    raise HardwareError(f"unknown hardware {text!r}; {did_you_mean(text, list_hardware())}")


@lru_cache(maxsize=32)
def _load(path: Path) -> Hardware:
    return parse_hardware(path)


def parse_hardware(path: Path) -> Hardware:
    """Reads one file.

    Raises:
        HardwareError: if it is not YAML, or a key or value in it is wrong.
    """
    return read_hardware(Section(read_device(path, SPECS), str(path), ""))
