"""What would change the step time: each change made to the device or the options, and priced anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from opbound.analysis import Analysis
from opbound.options import Options

if TYPE_CHECKING:
    from costing.hardware import Hardware
    from importers import ImportedModel
    from reports import Report

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Variant:
    """One change."""

    name: str
    options: Options
    hardware: Hardware


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change makes of the step."""

    name: str
    report: Report | None
    """None where the change cannot be made."""
    problem: str = ""
    """Why not."""

    def time_s(self, base: Report) -> float | None:
        """Seconds for the work of the base's step: a step on half the batch is done twice."""
        if self.report is None:
            return None
        samples = (base.model.batch or 1) / (self.report.model.batch or 1)
        return self.report.totals.step_time_s * samples


def what_if(
    model: object, options: Options, progress: Progress = lambda _: None
) -> tuple[Report, list[Outcome]]:
    """The report of a model, and what each of the usual changes would make of it.

    The model is imported once for each batch and dtype. Nothing is derived from the report: every
    variant is split and priced as the report was.

    Args:
        model: what `importers.load` takes.
        options: the analysis to vary.
        progress: is told what is being done.

    Raises:
        OpboundError: if the model cannot be analysed as it is. A variant that cannot be made says why.
    """
    imports: dict[Hashable, ImportedModel] = {}
    analysis = Analysis(model, options, progress=progress, imports=imports)
    base = analysis.report()
    outcomes = []
    for variant in variants(options, analysis.hardware, base):
        progress(f"what if: {variant.name}")
        try:
            varied = Analysis(model, variant.options, hardware=variant.hardware, imports=imports)
            outcomes.append(Outcome(variant.name, varied.report()))
        except OpboundError as error:
            outcomes.append(Outcome(variant.name, None, str(error)))
    return base, outcomes


def variants(options: Options, hardware: Hardware, base: Report) -> Iterator[Variant]:
    """The changes worth asking for: one resource doubled, one cost gone, or one option changed."""
    for level in hardware.memory:
        name = f"2x {level.name} bandwidth"
        yield Variant(name, options, _with_level(hardware, level.name, 2.0))
    yield Variant("2x compute", options, _with_compute(hardware, 2.0))
    if base.totals.bytes_communicated:
        yield Variant("2x network bandwidth", options, _with_network(hardware, 2.0))
    idle = replace(hardware.launch, device_latency_s=0.0, host_s=0.0, switch_s=0.0)
    yield Variant("no launch latency", options, replace(hardware, launch=idle))
    if not hardware.launch.hidden:
        yield Variant("launches replayed", replace(options, launches="replayed"), hardware)
    if options.execution == "eager":
        yield Variant("fused execution", replace(options, execution="fused"), hardware)
    if base.model.batch and base.model.batch > 1:
        # Micro-batches stay: where they do not divide the half, the variant says so.
        yield Variant("half the batch", replace(options, batch=base.model.batch // 2), hardware)
    if base.model.batch:
        yield Variant("twice the batch", replace(options, batch=base.model.batch * 2), hardware)
    if base.model.dtype in ("float32", "bfloat16", "float16"):
        narrow = "bf16" if base.model.dtype == "float32" else "float8_e4m3"
        yield Variant(f"dtype {narrow}", replace(options, dtype=narrow), hardware)
    width = options.parallel.get("tp", 1) * 2
    parallel = {**options.parallel, "tp": width}
    yield Variant(
        f"tensor parallelism x2 (tp={width})", replace(options, parallel=parallel), hardware
    )
    if options.recompute != "none":
        yield Variant("no recomputation", replace(options, recompute="none"), hardware)


def _with_level(hardware: Hardware, name: str, factor: float) -> Hardware:
    def faster(value: float | None) -> float | None:
        return None if value is None else value * factor

    memory = tuple(
        replace(
            level,
            bandwidth_bytes_per_s=level.bandwidth_bytes_per_s * factor,
            processor_bytes_per_s=faster(level.processor_bytes_per_s),
        )
        if level.name == name
        else level
        for level in hardware.memory
    )
    return replace(hardware, memory=memory)


def _with_compute(hardware: Hardware, factor: float) -> Hardware:
    engines = tuple(
        replace(e, peak_flops={dtype: peak * factor for dtype, peak in e.peak_flops.items()})
        for e in hardware.engines
    )
    return replace(hardware, engines=engines)


def _with_network(hardware: Hardware, factor: float) -> Hardware:
    links = tuple(
        replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * factor)
        for link in hardware.links
    )
    return replace(hardware, links=links)
