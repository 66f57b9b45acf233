"""Reads quantities as people write them ('3.35 TB/s', '80 GB', '989 TFLOPS', '87 %')."""

from __future__ import annotations

import re

from graph_ir.errors import HardwareError, did_you_mean

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_BYTES = {f"{p}B": f for p, f in (_DECIMAL | _BINARY).items()}
_BITS = {f"{p}bit": f / 8 for p, f in _DECIMAL.items()}

UNITS: dict[str, dict[str, float]] = {
    "bytes": _BYTES,
    "bytes/s": {f"{u}/s": f for u, f in (_BYTES | _BITS).items()},
    "FLOP/s": {f"{p}{u}": f for p, f in _DECIMAL.items() for u in ("FLOPS", "FLOP/s", "OPS")},
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "ps": 1e-12},
    "fraction": {"%": 0.01, "fraction": 1.0},
}
"""For each dimension, the units that may be written and their size in the base unit."""

_NUMBER = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*$")


def parse_quantity(text: object, dimension: str, where: str) -> float:
    """Reads a number with a unit.

    Args:
        text: as written, e.g. '3.35 TB/s'.
        dimension: a key of `UNITS`, or 'count', whose unit is any word ('108 SMs').
        where: file and key path, for the message.

    Returns:
        The value in base units: bytes, bytes/s, FLOP/s, seconds, a fraction of 1, or a count.

    Raises:
        HardwareError: if there is no number, no unit, or a unit of another dimension.

    >>> parse_quantity("400 Gbit/s", "bytes/s", "x.yaml: links")
    50000000000.0
    """
    found = _NUMBER.match(text) if isinstance(text, str) else None
    if found is None:
        raise HardwareError(f"{where}: {text!r} is not a number with a unit of {dimension}")
    number, unit = float(found[1].replace("_", "")), found[2]
    if dimension == "count":
        if not re.fullmatch(r"[A-Za-z][A-Za-z ]*", unit) or number != int(number) or number < 1:
            raise HardwareError(
                f"{where}: {text!r} is not a count with a name, such as '8 devices'"
            )
        return number
    scale = UNITS[dimension].get(unit)
    if scale is None:
        hint = did_you_mean(unit, UNITS[dimension]) if unit else f"such as {_example(dimension)}"
        raise HardwareError(f"{where}: {text!r} needs a unit of {dimension}; {hint}")
    value = number * scale
    if dimension == "fraction" and value > 1:
        raise HardwareError(f"{where}: {text!r} is more than 100 %")
    return value


def _example(dimension: str) -> str:
    examples = {"bytes": "GB", "bytes/s": "TB/s", "FLOP/s": "TFLOPS", "seconds": "us"}
    return repr(examples.get(dimension, "%"))
