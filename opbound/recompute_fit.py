"""Recomputation as needed: every pipeline rank computes again as little as its memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from costing.schedule import Layout
    from costing.step import StepCost
    from graph_ir.partitioned import PartitionedGraph

POLICIES = ("none", "selective", "full")
"""From the fastest to the one that keeps least."""


def fitted(
    partitions: Sequence[PartitionedGraph],
    price: Callable[[PartitionedGraph], StepCost],
    layout: Layout,
    capacity_bytes: float,
) -> tuple[PartitionedGraph, tuple[str, ...]]:
    """Puts a pipeline together from stages that recompute by different policies.

    Ranks do not share memory, so each can be judged by a pipeline in which all follow one policy.

    Args:
        partitions: the same cut of the model with each of `POLICIES`.
        price: prices a partitioned step.
        layout: which stages each rank holds.
        capacity_bytes: of one device.

    Returns:
        The pipeline, and the policy of each stage.
    """
    chosen = [len(POLICIES) - 1] * len(layout)
    for policy in reversed(range(len(POLICIES))):
        for rank, use in enumerate(price(partitions[policy]).memory):
            if use.peak_bytes <= capacity_bytes:
                chosen[rank] = policy
    stages = list(partitions[0].stages)
    names = [POLICIES[0]] * len(stages)
    for row in layout:
        for stage in row:
            # A stage that two ranks hold follows the one that has less room.
            policy = max(chosen[r] for r, other in enumerate(layout) if stage in other)
            stages[stage] = partitions[policy].stages[stage]
            names[stage] = POLICIES[policy]
    return replace(partitions[0], stages=tuple(stages)), tuple(names)
