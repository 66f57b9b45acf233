"""Energy of an operator: arithmetic, main memory and links; the device's idle power is the step's.

    E = FLOPs executed * e(engine kind, dtype) + bytes of main memory * e(memory) + bytes sent * e(link)

A device runs large half-precision products at its power limit, which is why clocks fall under them.
So one such FLOP takes (limit - idle) / rate, caches, registers and instructions included, and
other types and plain vector instructions are in proportion to what their circuits take
(`technology.yaml`: Horowitz, ISSCC 2014; Dally, Hot Chips 2023). It is an estimate: 30 % off is no
surprise, and small operators, whose clocks and leakage idle power stands for, are further off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from costing.op_cost import COMPUTE
from costing.technology import operation_energy
from graph_ir.tensor_type import DType

if TYPE_CHECKING:
    from costing.engine import Engine
    from costing.hardware import Hardware
    from costing.op_cost import OpCost

_MATRIX = "matrix"
_HALF = (DType.BFLOAT16, DType.FLOAT16)


@dataclass(frozen=True)
class Energy:
    """What a device's file says of its power."""

    watts: float
    """The power limit, at which large products run."""
    idle_watts: float
    memory_j_per_byte: float
    """Of main memory."""
    links_j_per_byte: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """By link name; a link that is not in it takes none that is known."""


def operator_energy(hardware: Hardware, cost: OpCost, dtypes: Sequence[DType]) -> float | None:
    """Joules of one operator beyond the device's idle power; None where the device's file is silent.

    Args:
        hardware: the device.
        cost: of one application.
        dtypes: of its operands and results; the widest float says how it computes.
    """
    energy = hardware.energy
    if energy is None:
        return None
    joules = (cost.bytes_read + cost.bytes_written) * energy.memory_j_per_byte
    for name, each in energy.links_j_per_byte.items():
        joules += cost.link_bytes.get(name, 0.0) * each
    engine = next((e for e in hardware.engines if e.name == cost.engine), None)
    if engine is None or COMPUTE not in cost.terms:
        return joules
    floats = [dtype for dtype in dtypes if dtype.is_float] or list(dtypes)
    supported = [dtype for dtype in floats if engine.supports(dtype)]
    if not supported:
        return joules
    dtype = max(supported, key=lambda d: d.bits)
    busy_s = max(cost.terms[COMPUTE] - hardware.main_memory.latency_s, 0.0)
    flops = busy_s * engine.sustained(dtype)
    return joules + flops * _flop_energy(hardware, energy, engine, dtype)


def _flop_energy(hardware: Hardware, energy: Energy, engine: Engine, dtype: DType) -> float:
    """Joules of one FLOP, in proportion to a half-precision one of the device's fastest engine."""
    half = next((d for d in _HALF if any(e.supports(d) for e in hardware.engines)), DType.FLOAT32)
    best = hardware.engine_for(_MATRIX, half)
    anchor = (energy.watts - energy.idle_watts) / best.sustained(half)
    return anchor * _weight(engine, dtype) / _weight(best, half)


def _weight(engine: Engine, dtype: DType) -> float:
    """Energy of an operation beside a half-precision one of a matrix engine; by width if unknown."""
    weights = operation_energy(_MATRIX if _MATRIX in engine.kinds else "vector")
    known = weights.get(dtype.label)
    return float(weights["float16"] * dtype.bits / 16 if known is None else known)
