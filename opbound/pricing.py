"""From an imported graph to a priced step: fold, train, partition, price."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from opbound.options import Options
from opbound.priced_nodes import costed_node
from opbound.workload import Workload

if TYPE_CHECKING:
    from costing.hardware import Hardware
    from costing.node_cost import NodePricer
    from costing.schedule import Schedule
    from costing.step import StepCost
    from graph_ir.graph import Graph, Node
    from graph_ir.partitioned import PartitionedGraph
    from partitioner.pipeline_plan import PipelinePlan
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
                rows.append(costed_node(node, part.costs[node], times=runs, phase=phase))
        return rows


def price_step(
    forward: Graph,
    options: Options,
    workload: Workload,
    hardware: Hardware,
    pricer: NodePricer,
    progress: Callable[[str], None],
) -> PricedStep:
    """Prices a step of the whole system.

    Args:
        forward: imported graph of one micro-batch of all data-parallel replicas together.
        options: mode, strategy and execution.
        workload: how often a replica runs the graph in a step.
        hardware: the device and its links.
        pricer: keeps prices between calls.
        progress: is told what is being done.

    Raises:
        OpboundError: if the strategy cannot be applied, or the device cannot run a node.
    """
    from costing.step import step_cost
    from graph_ir.fold import fold

    executed = executed_graph(forward, options, progress)
    progress("finding repeated layers")
    folded = fold(executed)
    schedule = pipeline_schedule(options)
    runs = workload.microbatches

    def price(partitioned: PartitionedGraph, node_pricer: NodePricer) -> StepCost:
        return step_cost(
            [stage.graph for stage in partitioned.stages],
            hardware,
            schedule,
            runs,
            kernels_of(options.execution),
            node_pricer,
        )

    recompute: tuple[str, ...] = ()
    if options.recompute == "fit" and options.mode == "training":
        graph, partitioned, recompute = _fitted(
            folded, options, pricer, progress, runs, lambda p: price(p, pricer)
        )
    else:
        graph, partitioned = split_step(folded, options, pricer, progress, runs)
    progress("pricing every operator")
    return PricedStep(
        folded,
        price(partitioned, pricer),
        runs,
        _needed_flops(graph) * runs,
        pricer,
        lambda other: price(partitioned, other),
        recompute or (options.recompute,) * len(partitioned.stages),
    )


def _fitted(
    folded: Graph,
    options: Options,
    pricer: NodePricer,
    progress: Callable[[str], None],
    microbatches: int,
    price: Callable[[PartitionedGraph], StepCost],
) -> tuple[Graph, PartitionedGraph, tuple[str, ...]]:
    """The step with as little recomputation on each rank as its memory allows."""
    from opbound.recompute_fit import POLICIES, fitted

    graphs: list[Graph] = []
    parts: list[PartitionedGraph] = []
    for policy in POLICIES:
        bounds = parts[0].bounds if parts else ()
        one = replace(options, recompute=policy)
        graph, partitioned = split_step(folded, one, pricer, progress, microbatches, bounds)
        graphs.append(graph)
        parts.append(partitioned)
    layout = pipeline_schedule(options).layout(options.parallel.get("pp", 1))
    capacity = pricer.hardware.main_memory.capacity_bytes
    return graphs[0], *fitted(parts, price, layout, capacity)


def pipeline_schedule(options: Options) -> Schedule:
    """The schedule that is asked for; without a pipeline, one micro-batch after the other."""
    from costing.schedule import Schedule

    return Schedule.parse(options.schedule if options.parallel.get("pp", 1) > 1 else "1f1b")


def _pipeline_plan(
    options: Options, microbatches: int, hardware: Hardware, bounds: tuple[int, ...]
) -> PipelinePlan:
    from costing.pipeline_timeline import in_flight
    from partitioner.pipeline_plan import PipelinePlan

    schedule = pipeline_schedule(options)
    ranks = options.parallel.get("pp", 1)
    training = options.mode == "training"
    if ranks > 1 and training:
        schedule.check(ranks, microbatches)
    return PipelinePlan(
        layout=schedule.layout(ranks),
        layers=tuple(options.stages),
        balance=options.balance,
        in_flight=in_flight(schedule, ranks, microbatches) if ranks > 1 and training else (),
        capacity_bytes=hardware.main_memory.capacity_bytes,
        bounds=bounds,
    )


def executed_graph(forward: Graph, options: Options, progress: Callable[[str], None]) -> Graph:
    """The graph that runs: eager as written; fused without what nothing reads, and with what was written
    out as one operator.
    """
    if options.execution != "fused":
        return forward
    from graph_ir.canonicalize import canonicalize
    from graph_ir.unread import without_unread

    progress("recognising operators that were written out")
    return canonicalize(without_unread(forward), training=options.mode == "training")


def split_step(
    forward: Graph,
    options: Options,
    pricer: NodePricer,
    progress: Callable[[str], None],
    microbatches: int = 1,
    bounds: tuple[int, ...] = (),
) -> tuple[Graph, PartitionedGraph]:
    """The graph of one micro-batch, in training with its backward pass, and its parts.

    Args:
        forward: imported graph of one micro-batch, folded or not.
        options: mode and strategy.
        pricer: balances the stages of a pipeline.
        progress: is told what is being done.
        microbatches: per step, for which a pipeline is balanced.
        bounds: where an earlier pipeline was cut, to cut there again.

    Raises:
        OpboundError: if the strategy cannot be applied.
    """
    from partitioner.mesh import Mesh
    from partitioner.partition import partition
    from partitioner.strategy import Prices, Strategy

    graph = step_graph(forward, options, progress)
    progress("splitting the model over the devices")
    # The searched axis splits the whole model, before the other axes do.
    others = prod(options.parallel.get(axis, 1) for axis in ("tp", "ep", "pp"))
    room_bytes = pricer.hardware.main_memory.capacity_bytes * others
    prices = Prices(
        lambda node: pricer.cost(node).time_s, 1 / microbatches, STORED_SHARE * room_bytes
    )
    strategy = Strategy(
        Mesh(dict(options.parallel)),
        options.sequence_parallel,
        options.zero,
        expert_imbalance=options.expert_imbalance,
        pipeline=_pipeline_plan(options, microbatches, pricer.hardware, bounds),
        prices=prices,
    )
    return graph, partition(graph, strategy, lambda node: pricer.cost(node).time_s)


def step_graph(forward: Graph, options: Options, progress: Callable[[str], None]) -> Graph:
    """The graph of one micro-batch: in training with backward pass and update."""
    if options.mode != "training":
        return forward
    from graph_ir.training import training_graph

    if options.recompute == "fit":
        raise OpboundError("--recompute fit is chosen by prices: here give none, selective or full")
    progress("deriving the backward pass")
    optimizer = options.optimizer or "adamw"
    return training_graph(forward, optimizer=optimizer, recompute=options.recompute)


def kernels_of(execution: str) -> Callable[[Graph], list[list[Node]]]:
    """Says which nodes of a graph run as one kernel."""
    if execution == "fused":
        from graph_ir.fusion import fusion_groups

        return fusion_groups
    from costing.kernels import eager_groups

    return lambda graph: [list(group) for group in eager_groups(graph)]


def _needed_flops(graph: Graph) -> int:
    return sum(n.flops * n.count for n in graph.nodes if n.phase in ("forward", "backward"))
