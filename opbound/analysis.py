"""The way through the house: import, price, report."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from opbound._version import __version__
from opbound.experts import routing_notes
from opbound.memory_line import memory_profile
from opbound.options import DEFAULT_NEW_TOKENS, DEFAULT_PROMPT_TOKENS, Options
from opbound.pipeline_ranks import pipeline_ranks
from opbound.pricing import PricedStep, price_step
from opbound.shared_work import SharedWork
from opbound.timeline_events import timeline_events
from opbound.workload import workload_of
from reports import CostedNode, MemoryProfile, Report, StepTimes, TimelineEvent, build_report

if TYPE_CHECKING:
    from costing.hardware import Hardware
    from importers import ImportedModel

Progress = Callable[[str], None]


def run(
    model: object,
    options: Options,
    *,
    example_inputs: object = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Analyses one model.

    Args:
        model: what `importers.load` takes.
        options: what is asked for.
        example_inputs: arguments to trace a live module with.
        progress: is told what is being done.

    Raises:
        OpboundError: if the model, the hardware or an option cannot be used.
    """
    if options.auto is not None:
        from opbound.auto import AutoSearch

        plain = replace(options, auto=None)
        return AutoSearch(model, plain, options.auto, example_inputs, progress).run()
    analysis = Analysis(model, options, example_inputs, progress)
    report = analysis.report()
    if options.parallel.get("auto", 1) > 1:
        from opbound.searched_axes import axes_only

        report = replace(report, search=axes_only(analysis))
    return report


class Analysis:
    """One analysis of one model.

    Args:
        model: what `importers.load` takes.
        options: what is asked for.
        example_inputs: arguments to trace a live module with.
        progress: is told what is being done.
        hardware: a device in place of the one that `options` names.
        imports: what was imported before; analyses of one model share it.

    Raises:
        OpboundError: if the hardware does not exist, or the batch cannot be divided.
    """

    def __init__(
        self,
        model: object,
        options: Options,
        example_inputs: object = None,
        progress: Progress = lambda _: None,
        *,
        hardware: Hardware | None = None,
        imports: dict[Hashable, ImportedModel] | None = None,
    ) -> None:
        from costing.hardware_file import load_hardware
        from costing.node_cost import NodePricer

        if options.auto is not None:
            raise OpboundError("--parallel auto only goes with analyze: name the mesh axes here")
        # The cheap input first: a misspelt device is found before a model is traced.
        device = hardware or load_hardware(options.hardware)
        if options.launches is not None:
            device = device.with_launches(replayed=options.launches == "replayed")
        self.hardware = device
        self.imports = {} if imports is None else imports
        self.pricer = NodePricer(self.hardware, options.execution == "eager")
        self.work = SharedWork(progress)
        self.workload = workload_of(options)
        self.model = model
        self.options = options
        self.example_inputs = example_inputs
        self.progress = progress

    def report(self) -> Report:
        """The report of what is asked for."""
        return self.generation() if self.options.mode == "generation" else self.step()

    def step(self) -> Report:
        """One step of inference or training."""
        imported = self.imported(self.options.mode, self.options.sequence)
        step = self.price(imported)
        times = StepTimes(
            step_time_s=step.cost.step_time_s,
            exposed_communication_s=step.cost.exposed_communication_s,
            bubble_fraction=step.cost.bubble_fraction,
        )
        memory = step.memory_by_kind_bytes
        events = timeline_events(step.cost)
        report = self._report(
            replace(imported, graph=step.forward),
            step.rows(),
            times,
            (memory, step.overhead_bytes),
            step.model_flops,
            events,
            step.time_without,
            memory_profile(step.cost),
        )
        return replace(report, pipeline=pipeline_ranks(step))

    def generation(self) -> Report:
        """One prefill, then decode steps."""
        prompt, new, past = self.generated_tokens()
        imported = self.imported("prefill", prompt)
        prefill = self.price(imported)
        decode = self.price(self.imported("decode", prompt, past))
        times = _generation_times(prefill, decode, new)
        # The cache is allocated for all tokens at the start, as inference servers do: the middle
        # step's, stretched to that length.
        last = decode.memory_by_kind_bytes
        last["kv_cache"] = round(last["kv_cache"] * (prompt + new) / (past + 1))
        first = prefill.memory_by_kind_bytes | {"kv_cache": last["kv_cache"]}
        note = f"the {new} decode steps are priced with {past} tokens in the KV cache, their mean"
        return self._report(
            replace(imported, graph=prefill.forward, notes=(*imported.notes, note)),
            [*prefill.rows(phase="prefill"), *decode.rows(new, "decode")],
            times,
            max(
                (first, prefill.overhead_bytes),
                (last, decode.overhead_bytes),
                key=lambda parts: sum(size for kinds in parts for size in kinds.values()),
            ),
            prefill.model_flops + decode.model_flops * new,
            [],
            lambda bound: prefill.time_without(bound) + decode.time_without(bound) * new,
        )

    def generated_tokens(self) -> tuple[int, int, int]:
        """Tokens of the prompt, decode steps, and tokens in the cache of the step for all."""
        prompt = self.options.prompt_tokens or DEFAULT_PROMPT_TOKENS
        new = self.options.new_tokens or DEFAULT_NEW_TOKENS
        # Step i finds prompt + i tokens in the cache. Its cost grows linearly with them, so the
        # step in the middle stands for all.
        return prompt, new, prompt + new // 2

    def imported(
        self, mode: str, sequence: int | None, past_tokens: int | None = None
    ) -> ImportedModel:
        """The model's forward graph of one micro-batch."""
        from importers import load

        key = (mode, sequence, past_tokens, self.workload.traced, self.options.dtype)
        if key in self.imports:
            return self.imports[key]
        self.progress(f"importing the model for {mode}")
        found = load(
            self.model,
            batch=self.workload.traced,
            sequence=sequence,
            dims=self.options.dims,
            trip_counts=self.options.trip_counts,
            branches=self.options.branches,
            values=self.options.values,
            input_shapes=self.options.input_shapes,
            dtype=self.options.dtype,
            mode=mode,
            past_tokens=past_tokens,
            allow_unknown=self.options.allow_unknown,
            example_inputs=self.example_inputs,
        )
        found = replace(found, notes=(*found.notes, *routing_notes(found.graph, self.options)))
        self.imports[key] = found
        return found

    def price(self, imported: ImportedModel) -> PricedStep:
        """Prices one step of an imported model."""
        return price_step(
            imported.graph,
            self.options,
            self.workload,
            self.hardware,
            self.pricer,
            self.progress,
            self.work,
        )

    def _report(
        self,
        imported: ImportedModel,
        rows: list[CostedNode],
        times: StepTimes,
        memory: tuple[dict[str, int], dict[str, int]],
        model_flops: int,
        events: list[TimelineEvent],
        reprice: Callable[[str], float],
        profile: MemoryProfile | None = None,
    ) -> Report:
        from opbound.provenance import (
            coverage_of,
            hardware_info,
            model_info,
            parameter_count,
            strategy_info,
        )

        microbatches = self.workload.microbatches
        return build_report(
            rows,
            opbound_version=__version__,
            model=model_info(imported, self.options, microbatches),
            hardware=hardware_info(self.hardware, imported.graph, rows),
            strategy=strategy_info(
                self.options, microbatches, replayed=self.hardware.launch.hidden
            ),
            mode=self.options.mode,
            coverage=coverage_of(imported.graph.nodes),
            times=times,
            parameters=parameter_count(imported.graph),
            capacity_bytes=round(self.hardware.main_memory.capacity_bytes),
            memory_by_kind_bytes=memory[0],
            overhead_bytes=memory[1],
            memory_profile=profile,
            model_flops=model_flops,
            timeline=events,
            options=self.options.to_plain(),
            reprice=reprice,
        )


def _generation_times(prefill: PricedStep, decode: PricedStep, new_tokens: int) -> StepTimes:
    first, each = prefill.cost, decode.cost
    decode_s = each.step_time_s * new_tokens
    step_s = first.step_time_s + decode_s
    waiting_s = first.bubble_fraction * first.step_time_s + each.bubble_fraction * decode_s
    exposed_s = first.exposed_communication_s + each.exposed_communication_s * new_tokens
    return StepTimes(
        step_time_s=step_s,
        exposed_communication_s=exposed_s,
        bubble_fraction=waiting_s / step_s if step_s > 0 else 0.0,
        prefill_time_s=first.step_time_s,
        decode_time_s=decode_s,
        time_per_token_s=each.step_time_s,
    )
