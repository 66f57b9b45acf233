"""From an imported graph to a priced step: fold, train, partition, price."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from opbound.fitting import Fitting
from opbound.options import Options
from opbound.priced_nodes import costed_node
from opbound.shared_work import SharedWork
from opbound.workload import Workload

if TYPE_CHECKING:
    from costing.hardware import Hardware
    from costing.node_cost import NodePricer
    from costing.schedule import Schedule
    from costing.step import StepCost
    from graph_ir.graph import Graph, Node
    from graph_ir.partitioned import PartitionedGraph
    from partitioner.pipeline_plan import PipelinePlan
    from partitioner.strategy import Strategy
    from reports import CostedNode


STORED_SHARE = 0.75
"""Part of a device's memory that the axis `auto` may fill with weights and states; the rest is for what a
step makes."""


@dataclass(frozen=True, slots=True)
class PricedStep:
    """A step, priced."""

    forward: Graph
    """The folded forward graph of one micro-batch, before it is split."""
    cost: StepCost
    microbatches: int
    model_flops: int
    """FLOPs of the whole step over all devices, without recomputation and update."""
    pricer: NodePricer
    price: Callable[[NodePricer], StepCost] = field(repr=False)
    """Prices the same partitioned step with another pricer."""
    recompute: tuple[str, ...] = ()
    """The policy of each pipeline stage."""

    def time_without(self, bound: str) -> float:
        """Seconds that the step takes where one bound's term is gone, simulated anew."""
        from opbound.lifted_pricer import LiftedPricer

        return self.price(LiftedPricer(self.pricer, bound)).step_time_s

    @property
    def memory_by_kind_bytes(self) -> dict[str, int]:
        """Memory of the fullest rank at its peak."""
        return dict(self.cost.memory[self.cost.fullest].by_kind_bytes)

    @property
    def overhead_bytes(self) -> dict[str, int]:
        """What no tensor takes of the fullest rank's memory, by kind."""
        return dict(self.cost.memory[self.cost.fullest].overhead_bytes)

    @property
    def needed_bytes(self) -> int:
        """What has to fit a device: tensors and overhead."""
        return max(use.total_bytes for use in self.cost.memory)

    def rows(self, times: int = 1, phase: str | None = None) -> list[CostedNode]:
        """The nodes of the busiest rank, each with all its executions.

        Args:
            times: how often the step is done (decode steps).
            phase: takes the place of `forward` (prefill, decode).
        """
        rows = []
        for part in self.cost.stages[self.cost.busiest]:
            once = part.times.once
            for node in part.graph.nodes:
                runs = times * (1 if node in once else part.runs)
                cost, device = part.costs[node], self.pricer.hardware
                rows.append(costed_node(node, cost, times=runs, phase=phase, hardware=device))
        return rows


def price_step(
    forward: Graph,
    options: Options,
    workload: Workload,
    hardware: Hardware,
    pricer: NodePricer,
    progress: Callable[[str], None],
    work: SharedWork | None = None,
) -> PricedStep:
    """Prices a step of the whole system.

    Args:
        forward: imported graph of one micro-batch of all data-parallel replicas together.
        options: mode, strategy and execution.
        workload: how often a replica runs the graph in a step.
        hardware: the device and its links.
        pricer: keeps prices between calls.
        progress: is told what is being done.
        work: what other strategies on the same model have in common with this one.

    Raises:
        OpboundError: if the strategy cannot be applied, or the device cannot run a node.
    """
    work = work or SharedWork(progress)
    folded = work.folded(forward, options)
    runs = workload.microbatches

    def price(partitioned: PartitionedGraph, node_pricer: NodePricer) -> StepCost:
        return step_cost_of(partitioned, options, runs, node_pricer)

    fitting = Fitting(
        options,
        lambda one, bounds, slack: split_step(
            folded, one, pricer, progress, runs, bounds, slack, work
        ),
        lambda partitioned: price(partitioned, pricer),
        pipeline_schedule(options).layout(options.parallel.get("pp", 1)),
        hardware.main_memory.capacity_bytes,
    )
    chosen = fitting.chosen()
    progress("pricing every operator")
    return PricedStep(
        folded,
        price(chosen.partitioned, pricer),
        runs,
        _needed_flops(chosen.graph) * runs,
        pricer,
        lambda other: price(chosen.partitioned, other),
        chosen.recompute,
    )


def step_cost_of(
    partitioned: PartitionedGraph, options: Options, microbatches: int, pricer: NodePricer
) -> StepCost:
    """Prices a step that is partitioned already."""
    from costing.step import step_cost

    return step_cost(
        [stage.graph for stage in partitioned.stages],
        pricer.hardware,
        pipeline_schedule(options),
        microbatches,
        kernels_of(options.execution),
        pricer,
        options.overlap,
    )


def pipeline_schedule(options: Options) -> Schedule:
    """The schedule that is asked for; without a pipeline, one micro-batch after the other."""
    from costing.schedule import Schedule

    return Schedule.parse(options.schedule if options.parallel.get("pp", 1) > 1 else "1f1b")


def _pipeline_plan(
    options: Options, microbatches: int, bounds: tuple[int, ...], slack: float | None
) -> PipelinePlan:
    if slack is None:
        if options.balance == "fit":
            raise OpboundError("--balance fit is chosen by prices: here give time or memory")
        slack = 1.0 if options.balance == "time" else 0.0
    from costing.pipeline_timeline import in_flight
    from partitioner.pipeline_plan import PipelinePlan

    schedule = pipeline_schedule(options)
    ranks = options.parallel.get("pp", 1)
    training = options.mode == "training"
    if ranks > 1 and training:
        schedule.check(ranks, microbatches)
    by_memory = ranks > 1 and training and slack < 1
    return PipelinePlan(
        layout=schedule.layout(ranks),
        layers=tuple(options.stages),
        slack=slack,
        in_flight=in_flight(schedule, ranks, microbatches) if by_memory else (),
        bounds=bounds,
    )


def executed_graph(forward: Graph, options: Options, progress: Callable[[str], None]) -> Graph:
    """The graph that runs: eager as written.

    Fused: without what nothing reads, and with what was written out as one operator.
    """
    if options.execution != "fused":
        return forward
    from graph_ir.canonicalize import canonicalize

    progress("recognising operators that were written out")
    return canonicalize(forward, training=options.mode == "training")


def split_step(
    forward: Graph,
    options: Options,
    pricer: NodePricer,
    progress: Callable[[str], None],
    microbatches: int = 1,
    bounds: tuple[int, ...] = (),
    slack: float | None = None,
    work: SharedWork | None = None,
) -> tuple[Graph, PartitionedGraph]:
    """The graph of one micro-batch, in training with its backward pass, and its parts.

    Args:
        forward: imported graph of one micro-batch, folded or not.
        options: mode and strategy.
        pricer: balances the stages of a pipeline.
        progress: is told what is being done.
        microbatches: per step, for which a pipeline is balanced.
        bounds: where an earlier pipeline was cut, to cut there again.
        slack: where between memory (0) and time (1) a pipeline is balanced; None as `options` say.
        work: what other strategies on the same model have in common with this one.

    Raises:
        OpboundError: if the strategy cannot be applied.
    """
    from partitioner.partition import partition

    work = work or SharedWork(progress)
    graph = work.step_graph(forward, options)
    progress("splitting the model over the devices")
    strategy = strategy_of(options, pricer, microbatches, bounds, slack)
    return graph, partition(
        graph, strategy, lambda node: pricer.cost(node).time_s, shared=work.passes
    )


def strategy_of(
    options: Options,
    pricer: NodePricer,
    microbatches: int = 1,
    bounds: tuple[int, ...] = (),
    slack: float | None = None,
) -> Strategy:
    """The strategy that the options ask for; the arguments are those of `split_step`."""
    from partitioner.mesh import Mesh
    from partitioner.strategy import Prices, Strategy

    # The searched axis splits the whole model, before the other axes do.
    others = prod(options.parallel.get(axis, 1) for axis in ("tp", "tp_rows", "ep", "pp"))
    room_bytes = pricer.hardware.main_memory.capacity_bytes * others
    return Strategy(
        Mesh(dict(options.parallel), tuple(options.mesh_order)),
        options.sequence_parallel,
        options.zero,
        shard_group=options.shard_group,
        prefetch=options.prefetch,
        context_parallel=options.context_parallel,
        async_tp=options.async_tp,
        tensor_grid=options.tensor_grid,
        expert_imbalance=options.expert_imbalance,
        pipeline=_pipeline_plan(options, microbatches, bounds, slack),
        prices=Prices(
            lambda node: pricer.cost(node).time_s, 1 / microbatches, STORED_SHARE * room_bytes
        ),
    )


def step_graph(forward: Graph, options: Options, progress: Callable[[str], None]) -> Graph:
    """The graph of one micro-batch: in training with backward pass and update."""
    if options.mode != "training":
        return forward
    from graph_ir.training import training_graph

    if options.recompute == "fit":
        raise OpboundError("--recompute fit is chosen by prices: here give none, selective or full")
    progress("deriving the backward pass")
    optimizer = options.optimizer or "adamw"
    graph = training_graph(forward, optimizer=optimizer, recompute=options.recompute)
    if options.gradient_dtype is None:
        return graph
    from graph_ir.gradient_dtype import with_gradient_dtype
    from graph_ir.tensor_type import DType

    return with_gradient_dtype(graph, DType.parse(options.gradient_dtype))


def kernels_of(execution: str) -> Callable[[Graph], list[list[Node]]]:
    """Says which nodes of a graph run as one kernel."""
    if execution == "fused":
        from graph_ir.fusion import fusion_groups

        return fusion_groups
    from costing.kernels import eager_groups, pointwise_groups

    grouped = pointwise_groups if execution == "pointwise" else eager_groups
    return lambda graph: [list(group) for group in grouped(graph)]


def _needed_flops(graph: Graph) -> int:
    return sum(n.flops * n.count for n in graph.nodes if n.phase in ("forward", "backward"))
