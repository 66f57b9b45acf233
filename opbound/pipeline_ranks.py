"""The ranks along a pipeline as the report wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports import PipelineRank

if TYPE_CHECKING:
    from opbound.pricing import PricedStep


def pipeline_ranks(step: PricedStep) -> tuple[PipelineRank, ...] | None:
    """One row per rank; None without a pipeline."""
    cost = step.cost
    if len(cost.stages) == 1:
        return None
    training = any(part.times.backward.time_s > 0 for row in cost.stages for part in row)
    capacity = step.pricer.hardware.main_memory.capacity_bytes
    found = []
    for rank, parts in enumerate(cost.stages):
        stages = cost.pipeline.layout[rank]
        use = cost.memory[rank]
        update_s = sum(part.times.optimizer.time_s for part in parts) + parts[0].times.tail_s
        policies = dict.fromkeys(step.recompute[stage] for stage in stages)
        found.append(
            PipelineRank(
                rank=rank,
                stages=stages,
                layers=sum(
                    block.count
                    for part in parts
                    for block in part.graph.blocks
                    if part.graph.nodes[block.start].during == "forward"
                ),
                forward_s=sum(part.times.forward.time_s for part in parts),
                backward_s=sum(part.times.backward.time_s for part in parts),
                waiting_s=max(cost.step_time_s - cost.pipeline.busy_s[rank] - update_s, 0.0),
                in_flight=sum(cost.pipeline.in_flight[rank]) if training else 0,
                peak_bytes=use.peak_bytes,
                fits=use.total_bytes <= capacity,
                by_kind_bytes=dict(use.by_kind_bytes),
                recompute=", ".join(policies),
                overhead_bytes=sum(use.overhead_bytes.values()),
            )
        )
    return tuple(found)
