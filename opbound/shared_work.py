"""What strategies on one model have in common: its graph, the backward pass, the splits that agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opbound.options import Options

if TYPE_CHECKING:
    from graph_ir.graph import Graph
    from partitioner.shared_passes import SharedPasses


_OF_A_STEP = ("mode", "optimizer", "recompute", "gradient_dtype")
"""Options that the backward pass and the update depend on."""


class SharedWork:
    """Does once what depends on no more than a few options.

    Args:
        progress: is told what is being done.
    """

    def __init__(self, progress: Callable[[str], None] = lambda _: None) -> None:
        from partitioner.shared_passes import SharedPasses

        self.passes: SharedPasses = SharedPasses()
        self.progress = progress
        self._folded: dict[tuple[Graph, str, str], Graph] = {}
        self._steps: dict[tuple[object, ...], Graph] = {}

    def folded(self, forward: Graph, options: Options) -> Graph:
        """The graph that runs, each repeated layer once.

        Args:
            forward: imported graph of one micro-batch.
            options: mode and execution.
        """
        key = (forward, options.execution, options.mode)
        if key not in self._folded:
            from graph_ir.fold import fold
            from opbound.pricing import executed_graph

            executed = executed_graph(forward, options, self.progress)
            self.progress("finding repeated layers")
            self._folded[key] = fold(executed)
        return self._folded[key]

    def step_graph(self, folded: Graph, options: Options) -> Graph:
        """The graph of one micro-batch: in training with backward pass and update.

        Args:
            folded: the forward graph.
            options: mode, optimizer, recomputation and the gradients' dtype.
        """
        key = (folded, *(getattr(options, name) for name in _OF_A_STEP))
        if key not in self._steps:
            from opbound.pricing import step_graph

            self._steps[key] = step_graph(folded, options, self.progress)
        return self._steps[key]
