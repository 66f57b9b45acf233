"""Making a pipeline fit: recompute, or move layers, no more than the memory of a device asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graph_ir.errors import MeshError
from opbound.options import Options

if TYPE_CHECKING:
    from costing.schedule import Layout
    from costing.step import StepCost
    from graph_ir.graph import Graph
    from graph_ir.partitioned import PartitionedGraph

POLICIES = ("none", "selective", "full")
"""Recomputation, from the fastest to the one that keeps least."""

SLACKS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Where between the cut that balances time (1) and the one that balances memory (0) one is tried."""


@dataclass(frozen=True)
class Chosen:
    """A step that was split so that it fits."""

    graph: Graph
    """Of one micro-batch, before it was split."""
    partitioned: PartitionedGraph
    recompute: tuple[str, ...]
    """The policy of each pipeline stage."""


@dataclass(frozen=True)
class Fitting:
    """What can be tried."""

    options: Options
    split: Callable[[Options, tuple[int, ...], float | None], tuple[Graph, PartitionedGraph]]
    """Splits a step by options, where an earlier one was cut, and by `SLACKS`."""
    price: Callable[[PartitionedGraph], StepCost]
    layout: Layout
    capacity_bytes: float

    def chosen(self) -> Chosen:
        """The step as the options ask for it.

        Raises:
            MeshError: if it has to fit and cannot.
        """
        options = self.options
        if options.recompute == "fit" and options.mode == "training":
            return self._recomputed()
        if options.balance == "fit":
            return self._balanced()
        graph, partitioned = self.split(options, (), None)
        return Chosen(graph, partitioned, (options.recompute,) * len(partitioned.stages))

    def _balanced(self) -> Chosen:
        """The first cut that fits, from the fastest on."""
        least = 0
        for slack in SLACKS:
            graph, partitioned = self.split(self.options, (), slack)
            least = max(use.total_bytes for use in self.price(partitioned).memory)
            if least <= self.capacity_bytes:
                names = (self.options.recompute,) * len(partitioned.stages)
                return Chosen(graph, partitioned, names)
        raise MeshError(
            f"balance=fit: however the model is cut, a rank needs {least / 1e9:.3g} GB, but the device "
            f"has {self.capacity_bytes / 1e9:.3g} GB: use more ranks or recomputation"
        )

    def _recomputed(self) -> Chosen:
        """Every rank follows the first policy by which it fits.

        Ranks do not share memory, so each can be judged by a pipeline in which all follow one policy.
        """
        graphs: list[Graph] = []
        parts: list[PartitionedGraph] = []
        for policy in POLICIES:
            bounds = parts[0].bounds if parts else ()
            graph, partitioned = self.split(replace(self.options, recompute=policy), bounds, None)
            graphs.append(graph)
            parts.append(partitioned)
        followed = [len(POLICIES) - 1] * len(self.layout)
        for policy_index in reversed(range(len(POLICIES))):
            for rank, use in enumerate(self.price(parts[policy_index]).memory):
                if use.total_bytes <= self.capacity_bytes:
                    followed[rank] = policy_index
        stages = list(parts[0].stages)
        names = [POLICIES[0]] * len(stages)
        for stage in range(len(stages)):
            # A stage that two ranks hold follows the one that has less room.
            policy_index = max(followed[r] for r, row in enumerate(self.layout) if stage in row)
            stages[stage] = parts[policy_index].stages[stage]
            names[stage] = POLICIES[policy_index]
        return Chosen(graphs[0], replace(parts[0], stages=tuple(stages)), tuple(names))
