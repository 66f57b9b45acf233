"""Names what bounds a kernel, and prices those that stream their operands once.

t = launch latency + first byte + max(FLOPs / engine, bytes / each level passed). A GEMM or a fused
attention reuses data on chip and is priced in its own module, then classified here.

Source: Williams, Waterman, Patterson 2009 (roofline); latency and bandwidth per level as in Kundu
et al., arXiv 2407.14645.
"""

from __future__ import annotations

from collections.abc import Mapping

from costing.engine import VECTOR, Engine
from costing.hardware import Hardware
from costing.kernel_cost import KernelCost
from costing.op_cost import COMPUTE, LATENCY, OpCost, largest, memory_bound
from graph_ir.tensor_type import DType


def classify(
    hardware: Hardware,
    engine: Engine,
    dtype: DType,
    *,
    flops: float,
    executed_flops: float,
    bytes_read: float,
    bytes_written: float,
    terms: Mapping[str, float],
    traffic_bytes: Mapping[str, float],
    time_s: float,
) -> OpCost:
    """Finds the bound of a priced kernel and how well it uses that resource.

    Args:
        hardware: the device.
        engine: the engine that ran it, on `dtype`.
        dtype: of its operands.
        flops: that the operator's record counts.
        executed_flops: that the engine really performs.
        bytes_read: least bytes read.
        bytes_written: least bytes written.
        terms: 'compute' and 'memory:LEVEL' in seconds; launch latency is added here.
        traffic_bytes: bytes that cross each memory level.
        time_s: of the kernel when it runs again and again, launch included.
    """
    launch = hardware.launch.least_s
    time_s = max(time_s + hardware.launch.switch_s, launch)
    every = {**terms, LATENCY: launch}
    bound = largest(every)
    if bound == LATENCY:
        ideal_s = launch
    elif bound == COMPUTE:
        ideal_s = executed_flops / engine.peak(dtype)
    else:
        level = hardware.level(bound.removeprefix("memory:"))
        ideal_s = traffic_bytes[level.name] / level.bandwidth_bytes_per_s
    return OpCost(
        flops=round(flops),
        bytes_read=round(bytes_read),
        bytes_written=round(bytes_written),
        time_s=time_s,
        bound=bound,
        engine=engine.name,
        utilization=min(ideal_s / time_s, 1.0) if time_s > 0 else 0.0,
        terms=every,
    )


def streaming_cost(
    hardware: Hardware,
    dtype: DType,
    flops: float,
    bytes_read: float,
    bytes_written: float,
    *,
    kind: str = VECTOR,
    executed_flops: float | None = None,
) -> OpCost:
    """Prices one kernel that reads and writes every byte once: no tiles, no reuse.

    Args:
        hardware: the device.
        dtype: in which it computes.
        flops: that the operator's record counts; `executed_flops` if the engine performs others.
        bytes_read: from main memory.
        bytes_written: to main memory.
        kind: of engine: 'vector' or 'matrix'.
        executed_flops: see `flops`.
    """
    engine = hardware.engine_for(kind, dtype)
    executed = flops if executed_flops is None else executed_flops
    first_byte = hardware.main_memory.latency_s
    moved = bytes_read + bytes_written
    terms = {COMPUTE: first_byte + executed / engine.sustained(dtype)}
    for level in hardware.memory:
        terms[memory_bound(level.name)] = first_byte + moved / level.sustained_bytes_per_s
        if moved <= level.keeps_bytes:
            # The operands are still there: no farther level is asked.
            break
    return classify(
        hardware,
        engine,
        dtype,
        flops=flops,
        executed_flops=executed,
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        terms=terms,
        traffic_bytes={level.name: moved for level in hardware.memory},
        time_s=hardware.launch.device_latency_s + max(terms.values()),
    )


def kernel_op_cost(
    hardware: Hardware,
    engine: Engine,
    dtype: DType,
    kernel: KernelCost,
    *,
    flops: float,
    executed_flops: float,
    bytes_read: float,
    bytes_written: float,
    index: int = 0,
) -> OpCost:
    """Classifies shape `index` of a tiled kernel that `gemm` or `attention` priced."""
    return classify(
        hardware,
        engine,
        dtype,
        flops=flops,
        executed_flops=executed_flops,
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        terms={name: float(seconds[index]) for name, seconds in kernel.terms.items()},
        traffic_bytes={name: float(moved[index]) for name, moved in kernel.traffic_bytes.items()},
        time_s=float(kernel.time_s[index]),
    )
