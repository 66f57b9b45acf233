"""Memory of the fullest device over the time of one micro-batch, for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports import MemoryProfile

if TYPE_CHECKING:
    from costing.step import PartCost, StepCost


def memory_profile(step: StepCost) -> MemoryProfile | None:
    """The line of the fullest stage; its highest point is the report's peak.

    What other micro-batches hold is added to the activations throughout.
    """
    use = step.memory[step.fullest]
    parts = step.stages[step.fullest]
    part = next((p for p in parts if p.memory.lines_bytes is use.lines_bytes), None)
    if part is None or not use.lines_bytes:
        return None
    lines, kinds = use.lines_bytes, use.by_kind_bytes
    passing = max(map(sum, zip(*lines.values(), strict=True)))
    waiting = sum(kinds[kind] for kind in lines) - round(passing)
    points = _points(part)
    return MemoryProfile(
        time_s=tuple(time_s for time_s, _ in points),
        by_kind_bytes={
            kind: tuple(
                round(line[place]) + (waiting if kind == "activations" else 0)
                for _, place in points
            )
            for kind, line in lines.items()
        },
    )


def _points(part: PartCost) -> list[tuple[float, int]]:
    """(seconds, place) of each node's start and end; a repeated block is a slope and one repetition."""
    nodes = part.graph.nodes
    seconds = [0.0 if node.phase == "communication" else part.costs[node].time_s for node in nodes]
    blocks = {block.start: block for block in part.graph.blocks}
    points: list[tuple[float, int]] = []
    now = 0.0
    index = 0
    while index < len(nodes):
        block = blocks.get(index)
        stop = index + 1 if block is None else block.stop
        others_s = sum(seconds[index:stop]) * (block.count - 1) if block else 0.0
        # The profile shows the last repetition of the forward pass and the first of the backward one:
        # the others are the slope before it or after it.
        if nodes[index].during == "forward":
            now += others_s
            others_s = 0.0
        for place in range(index, stop):
            points.append((now, place))
            now += seconds[place]
            points.append((now, place))
        now += others_s
        index = stop
    return points
