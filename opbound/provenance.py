"""Where a report's figures come from: the model, the machine, the strategy, and what is covered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graph_ir.tensor_type import DType
from opbound.options import DEFAULT_NEW_TOKENS, DEFAULT_PROMPT_TOKENS, Options
from reports import (
    Ceiling,
    CostedNode,
    Coverage,
    HardwareInfo,
    ModelInfo,
    StrategyInfo,
    TensorInfo,
)

if TYPE_CHECKING:
    from costing.hardware import Hardware
    from graph_ir.graph import Graph, Node, Value
    from importers import ImportedModel


def model_info(model: ImportedModel, options: Options, microbatches: int = 1) -> ModelInfo:
    """What was analysed, at which sizes; `model` is one micro-batch of all replicas."""
    generation = options.mode == "generation"
    traced = model.batch * microbatches if model.batch else None
    return ModelInfo(
        name=model.name,
        source=model.source,
        sha256=model.sha256,
        importer=model.importer,
        dtype=model_dtype(model.graph).label,
        batch=options.batch or traced,
        sequence=model.sequence if model.sequence is not None else options.sequence,
        prompt_tokens=(options.prompt_tokens or DEFAULT_PROMPT_TOKENS) if generation else None,
        new_tokens=(options.new_tokens or DEFAULT_NEW_TOKENS) if generation else None,
        file_bytes=_file_bytes(model.source),
        dims=dict(model.dims),
        inputs=_tensors(value for value in model.graph.inputs if value.kind == "input"),
        outputs=_tensors(model.graph.outputs),
        notes=tuple(model.notes),
    )


def _tensors(values: Iterable[Value]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=value.name, dtype=value.type.dtype.label, shape=value.type.shape)
        for value in values
    )


def _file_bytes(source: str) -> int | None:
    path = Path(source)
    return path.stat().st_size if path.suffix in (".onnx", ".pt2") and path.is_file() else None


def model_dtype(graph: Graph) -> DType:
    """The float dtype in which the model computes: that of most bytes of its weights.

    A model without float weights is taken at its inputs' dtype, at last at float32.
    """
    held: dict[DType, int] = {}
    for kinds in (("parameter",), ("input", "buffer", "constant")):
        for value in graph.inputs:
            if value.kind in kinds and value.type.dtype.is_float:
                dtype = value.type.dtype
                held[dtype] = held.get(dtype, 0) + value.type.bytes * value.count
        if held:
            return max(held, key=lambda dtype: held[dtype])
    return DType.FLOAT32


def parameter_count(graph: Graph) -> int:
    """Elements in all parameters of the model."""
    return sum(value.type.elements * value.count for value in graph.parameters)


def peak_flops_per_s(hardware: Hardware, graph: Graph) -> float:
    """The device's peak for the model's products: the rate at which each would run at its dtype's peak.

    A quantised model's products run in integers, beside others that stay in floats.
    """
    work: dict[DType, int] = {}
    for node in graph.nodes:
        if node.definition.kind in ("contraction", "attention"):
            dtype = max((v.type.dtype for v in node.inputs), key=lambda d: d.bits)
            work[dtype] = work.get(dtype, 0) + node.flops * node.count
    if not sum(work.values()):
        work = {model_dtype(graph): 1}
    ideal_s = sum(f / hardware.engine_for("matrix", d).peak(d) for d, f in work.items())
    return sum(work.values()) / ideal_s


def ceilings_of(hardware: Hardware, rows: Sequence[CostedNode]) -> list[Ceiling]:
    """What bounds the rows from above: the engines they use at their dtypes, all memories, all links."""
    ceilings: dict[str, Ceiling] = {}
    for engine in hardware.engines:
        labels = dict.fromkeys(d for row in rows if row.engine == engine.name for d in row.dtypes)
        for dtype in map(DType.parse, labels):
            if engine.supports(dtype) and dtype.is_float:
                name = f"{engine.name} {dtype.label}"
                ceilings[name] = Ceiling(name=name, kind="compute", per_s=engine.sustained(dtype))
    for level in hardware.memory:
        per_s = level.sustained_bytes_per_s
        ceilings[level.name] = Ceiling(name=level.name, kind="memory", per_s=per_s)
    if any(row.bytes_communicated for row in rows):
        for link in hardware.links:
            per_s = link.device_bytes_per_s * max(p.efficiency for p in link.protocols)
            ceilings[link.name] = Ceiling(name=link.name, kind="network", per_s=per_s)
    return list(ceilings.values())


def hardware_info(
    hardware: Hardware, graph: Graph, rows: Sequence[CostedNode] = ()
) -> HardwareInfo:
    """The machine, with the hash of the very file that was read and the ceilings of `rows`."""
    path = Path(hardware.path)
    shipped = path.parent.name == "hardware_specs"
    return HardwareInfo(
        name=hardware.name,
        file=path.name if shipped else str(path),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        peak_flops_per_s=peak_flops_per_s(hardware, graph),
        ceilings=tuple(ceilings_of(hardware, rows)),
        idle_watts=hardware.energy.idle_watts if hardware.energy else None,
    )


def strategy_info(
    options: Options, microbatches: int = 1, *, replayed: bool = True
) -> StrategyInfo:
    """How the step is split and run."""
    training = options.mode == "training"
    return StrategyInfo(
        devices=options.devices,
        parallel=dict(options.parallel),
        sequence_parallel=options.sequence_parallel,
        zero=options.zero,
        microbatch=options.microbatch,
        microbatches=microbatches,
        schedule=options.schedule if options.parallel.get("pp", 1) > 1 else None,
        recompute=options.recompute,
        optimizer=(options.optimizer or "adamw") if training else None,
        execution=options.execution,
        launches="replayed" if replayed else "issued",
    )


def coverage_of(nodes: Iterable[Node]) -> Coverage:
    """Shares of the nodes and of the bytes they move that have an operator record."""
    count = known_count = moved_bytes = known_bytes = 0
    for node in nodes:
        node_bytes = (node.bytes_read + node.bytes_written) * node.count
        count += node.count
        moved_bytes += node_bytes
        if node.op != "unknown":
            known_count += node.count
            known_bytes += node_bytes
    return Coverage(
        nodes=known_count / count if count else 1.0,
        bytes=known_bytes / moved_bytes if moved_bytes else 1.0,
    )
