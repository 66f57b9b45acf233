"""`opbound graph`: the operator graph that is priced, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graph_ir.text_format import graph_text
from opbound.analysis import Analysis, Progress
from opbound.options import Options
from opbound.pricing import executed_graph, split_step

if TYPE_CHECKING:
    from graph_ir.graph import Graph
    from graph_ir.partitioned import PartitionedGraph


def graph_page(model: object, options: Options, *, every_node: bool, progress: Progress) -> str:
    """The graph of one micro-batch; with several devices that of one rank per pipeline stage.

    Args:
        model: what `importers.load` takes.
        options: what is asked for.
        every_node: write every repetition out in place of one with a count.
        progress: is told what is being done.

    Raises:
        OpboundError: if the model, the hardware or an option cannot be used.
    """
    analysis = Analysis(model, options, progress=progress)
    pages = []
    for title, forward in _forward_graphs(analysis):
        graph = executed_graph(forward, options, progress)
        if not every_node:
            from graph_ir.fold import fold

            graph = fold(graph)
        _, parts = split_step(
            graph, options, analysis.pricer, progress, analysis.workload.microbatches
        )
        pages += [f"{title}{page}" for page in _stage_pages(parts)]
    return "\n\n".join(pages) + "\n"


def _forward_graphs(analysis: Analysis) -> Iterator[tuple[str, Graph]]:
    options = analysis.options
    if options.mode != "generation":
        yield "", analysis.imported(options.mode, options.sequence).graph
        return
    prompt, _, past = analysis.generated_tokens()
    yield f"prefill of {prompt} tokens\n", analysis.imported("prefill", prompt).graph
    yield (
        f"decode step with {past} tokens in the cache\n",
        analysis.imported("decode", prompt, past).graph,
    )


def _stage_pages(parts: PartitionedGraph) -> Iterator[str]:
    """One page per stage; neighbours that run the same graph share one."""
    if parts.devices == 1:
        yield graph_text(parts.stages[0].graph)
        return
    first = 0
    for index, stage in enumerate(parts.stages):
        last = index + 1 == len(parts.stages)
        if not last and parts.stages[index + 1].graph is stage.graph:
            continue
        which = f"stage {first}" if first == index else f"stages {first} to {index}"
        total = len(parts.stages)
        where = f"{which} of {total}" if total > 1 else "every rank"
        yield f"one rank of {parts.devices}, {where}\n{graph_text(stage.graph)}"
        first = index + 1
