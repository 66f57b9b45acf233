"""One import for many strategies: the graph of any micro-batch is cut out of that of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graph_ir.errors import MeshError
from opbound.analysis import Analysis, Progress
from opbound.options import Options

if TYPE_CHECKING:
    from costing.node_cost import NodePricer
    from graph_ir.graph import Graph
    from importers import ImportedModel


@dataclass(frozen=True)
class Measured:
    """What a strategy takes."""

    step_time_s: float
    peak_bytes: int
    """Of the tensors."""
    needed_bytes: int
    """What has to fit a device."""


class Bench:
    """Analyses of one model that share its import and its prices.

    Args:
        model: what `importers.load` takes.
        options: of the analysis without a strategy; with the global batch.
        example_inputs: arguments to trace a live module with.
        progress: is told what is being done.
    """

    def __init__(
        self, model: object, options: Options, example_inputs: object, progress: Progress
    ) -> None:
        self.options = options
        self.whole = Analysis(model, options, example_inputs, progress)
        self.pricer: NodePricer = self.whole.pricer
        self._known: dict[tuple[object, ...], ImportedModel] = {}

    def analysis(self, options: Options) -> _Shared:
        """An analysis with another strategy."""
        return _Shared(self, options)

    def measure(self, options: Options) -> Measured:
        """Prices a strategy.

        Raises:
            OpboundError: if it cannot be applied.
        """
        return self.analysis(options).measure()

    def imported(
        self, traced: int | None, mode: str, sequence: int | None, past_tokens: int | None
    ) -> ImportedModel:
        """The folded forward graph of a micro-batch of `traced` samples."""
        key = (traced, mode, sequence, past_tokens)
        if key not in self._known:
            whole = self._whole(mode, sequence, past_tokens)
            self._known[key] = whole
            if traced is not None and whole.batch and traced != whole.batch:
                self._known[key] = self._cut(whole, traced, mode, sequence, past_tokens)
        return self._known[key]

    def _whole(self, mode: str, sequence: int | None, past_tokens: int | None) -> ImportedModel:
        from graph_ir.fold import fold
        from opbound.pricing import executed_graph

        key = ("whole", mode, sequence, past_tokens)
        if key not in self._known:
            found = self.whole.imported(mode, sequence, past_tokens)
            executed = executed_graph(found.graph, self.options, self.whole.progress)
            self._known[key] = replace(found, graph=fold(executed))
        return self._known[key]

    def _cut(
        self,
        whole: ImportedModel,
        traced: int,
        mode: str,
        sequence: int | None,
        past_tokens: int | None,
    ) -> ImportedModel:
        batch = whole.batch or 1
        if batch % traced == 0:
            graph = _share(whole.graph, batch // traced)
            if graph is not None:
                return replace(whole, graph=graph, batch=traced)
        # Samples that are no independent parts of the batch: the model is read again at this size.
        options = replace(self.options, batch=traced)
        again = Analysis(self.whole.model, options, self.whole.example_inputs, self.whole.progress)
        return again.imported(mode, sequence, past_tokens)


def _share(graph: Graph, parts: int) -> Graph | None:
    """One of several equal parts of the batch, or None if the samples are not independent."""
    from partitioner.mesh import Mesh
    from partitioner.strategies.data import apply
    from partitioner.strategy import Strategy

    try:
        share = apply(graph, Strategy(Mesh({"dp": parts})))
    except MeshError:
        return None
    return None if any(n.phase == "communication" for n in share.nodes) else share


class _Shared(Analysis):
    """An analysis on a bench."""

    def __init__(self, bench: Bench, options: Options) -> None:
        whole = bench.whole
        super().__init__(
            whole.model, options, whole.example_inputs, whole.progress, hardware=whole.hardware
        )
        self.pricer = bench.pricer
        self.work = whole.work
        self.bench = bench

    def imported(
        self, mode: str, sequence: int | None, past_tokens: int | None = None
    ) -> ImportedModel:
        return self.bench.imported(self.workload.traced, mode, sequence, past_tokens)

    def measure(self) -> Measured:
        """The time of what is asked for, and the memory it takes."""
        options = self.options
        if options.mode != "generation":
            step = self.price(self.imported(options.mode, options.sequence))
            peak_bytes = sum(step.memory_by_kind_bytes.values())
            return Measured(step.cost.step_time_s, peak_bytes, step.needed_bytes)
        prompt, new, past = self.generated_tokens()
        first = self.price(self.imported("prefill", prompt))
        each = self.price(self.imported("decode", prompt, past))
        time_s = first.cost.step_time_s + new * each.cost.step_time_s
        most = max((first, each), key=lambda step: step.needed_bytes)
        return Measured(time_s, sum(most.memory_by_kind_bytes.values()), most.needed_bytes)
