"""Reads quantities as people write them ('3.35 TB/s', '80 GB', '989 TFLOPS', '87 %')."""

from __future__ import annotations

import re
from fractions import Fraction

from graph_ir.errors import HardwareError, did_you_mean

_POWERS = {"": 0, "k": 3, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_DECIMAL = {prefix: Fraction(10**power) for prefix, power in _POWERS.items()}
_BINARY = {f"{p}i": Fraction(2 ** (10 * i)) for i, p in enumerate("KMGT", 1)}
_BYTES = {f"{p}B": f for p, f in (_DECIMAL | _BINARY).items()}
_BITS = {f"{p}bit": f / 8 for p, f in _DECIMAL.items()}

UNITS: dict[str, dict[str, Fraction]] = {
    "bytes": _BYTES,
    "bytes/s": {f"{u}/s": f for u, f in (_BYTES | _BITS).items()},
    "FLOP/s": {f"{p}{u}": f for p, f in _DECIMAL.items() for u in ("FLOPS", "FLOP/s", "OPS")},
    "seconds": {u: Fraction(1, 1000**i) for i, u in enumerate(("s", "ms", "us", "ns", "ps"))},
    "Hz": {f"{p}Hz": _DECIMAL[p] for p in ("", "k", "M", "G")},
    "watts": {"W": Fraction(1), "kW": Fraction(1000), "mW": Fraction(1, 1000)},
    "J/byte": {
        "pJ/bit": Fraction(8, 10**12),
        "pJ/B": Fraction(1, 10**12),
        "nJ/B": Fraction(1, 10**9),
    },
    "fraction": {"%": Fraction(1, 100), "fraction": Fraction(1)},
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
    # Exact until the end, so that "2.039 TB/s" is the float 2.039e12.
    number, unit = Fraction(found[1].replace("_", "")), found[2]
    if dimension == "count":
        if not re.fullmatch(r"[A-Za-z][A-Za-z ]*", unit) or number.denominator != 1 or number < 1:
            raise HardwareError(
                f"{where}: {text!r} is not a count with a name, such as '8 devices'"
            )
        return float(number)
    scale = UNITS[dimension].get(unit)
    if scale is None:
        hint = did_you_mean(unit, UNITS[dimension]) if unit else f"such as {_example(dimension)}"
        raise HardwareError(f"{where}: {text!r} needs a unit of {dimension}; {hint}")
    value = float(number * scale)
    if dimension == "fraction" and value > 1:
        raise HardwareError(f"{where}: {text!r} is more than 100 %")
    return value


def _example(dimension: str) -> str:
    examples = {"bytes": "GB", "bytes/s": "TB/s", "FLOP/s": "TFLOPS", "seconds": "us"}
    examples |= {"watts": "W", "J/byte": "pJ/bit", "Hz": "MHz"}
    return repr(examples.get(dimension, "%"))
