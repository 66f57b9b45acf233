"""What became of each logical axis on the mesh axis `auto`."""

from __future__ import annotations

from dataclasses import replace

from opbound.analysis import Analysis
from reports.search_info import AxisRow, SearchInfo


def axes_only(analysis: Analysis) -> SearchInfo:
    """The search of one mesh axis, where the mesh is given."""
    return SearchInfo(
        devices=analysis.options.devices,
        candidates=1,
        priced=1,
        seconds=0.0,
        rows=(),
        left_out=(),
        axes=searched_axes(analysis),
    )


def searched_axes(analysis: Analysis) -> tuple[AxisRow, ...]:
    """What became of each logical axis on the mesh axis `auto`, and what the contrary would cost."""
    from graph_ir.fold import fold
    from opbound.pricing import executed_graph, step_graph, strategy_of
    from partitioner.strategies.searched import searched

    options = analysis.options
    if options.parallel.get("auto", 1) == 1 or options.mode == "generation":
        return ()
    analysis.progress("explaining the split of every axis")
    strategy = strategy_of(options, analysis.pricer, analysis.workload.microbatches)
    forward = analysis.imported(options.mode, options.sequence).graph
    plain = replace(options, recompute="none") if options.recompute == "fit" else options
    folded = fold(executed_graph(forward, options, analysis.progress))
    graph = step_graph(folded, plain, analysis.progress)
    if strategy.prices is None:
        return ()
    _, found = searched(graph, strategy.mesh.axis("auto"), strategy.prices, explain=True)
    return tuple(
        AxisRow(
            axis=f"{a.axis.size}, as in {a.example}",
            chosen=a.chosen,
            nodes=a.nodes,
            candidates=a.candidates,
            flops=a.flops,
            other_s=a.other_s,
            cost_s=found.cost_s,
        )
        for a in found.axes
    )
