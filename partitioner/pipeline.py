"""Pipeline parallelism: where the graph is cut into stages, and what they hand to each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node, Value
from graph_ir.partitioned import Stage
from partitioner.balance import Load, balanced_cuts
from partitioner.cell_memory import Shares, room_besides, saved_bytes, standing_bytes
from partitioner.cells import Cells, Group
from partitioner.mesh import MeshAxis
from partitioner.mirror import mirrored
from partitioner.pipeline_plan import PipelinePlan
from partitioner.shared_weights import spread, weights_with_sums
from partitioner.stage_graph import StageBuilder
from partitioner.stage_part import Exchange, Held, StagePart, Wanted
from partitioner.transfers import Transfer, sources

NodeTime = Callable[[Node], float]


class Cutter:
    """Cuts a graph between cells.

    Args:
        graph: one rank's graph, split over all other mesh axes.
        node_time: seconds of one application of a node.
        mesh_axis: the pipeline axis.
        layout: which stages each rank along the axis holds; empty for one each.
    """

    def __init__(
        self,
        graph: Graph,
        node_time: NodeTime,
        mesh_axis: MeshAxis,
        layout: Sequence[Sequence[int]] = (),
    ) -> None:
        self.graph = graph
        self.node_time = node_time
        self.mesh_axis = mesh_axis
        self.layout = layout or [(rank,) for rank in range(mesh_axis.size)]
        self.cells = Cells(graph)
        self.stages = 1 + max(stage for row in self.layout for stage in row)
        # A stage that exists twice (DualPipe) lies for each way on its own row of neighbours; the
        # first of them stands for both.
        self.rank_of: dict[int, int] = {}
        for column in itertools.zip_longest(*self.layout):
            for rank, stage in enumerate(column):
                if stage is not None:
                    self.rank_of.setdefault(stage, rank)
        self.local: set[Value] = set()
        """Terms of gradients that are summed up within a rank."""

    def time_load(self) -> Load:
        """Seconds of each cell, and what a cut there sends forward and back.

        The optimizer is left out: it does not run per micro-batch.
        """
        seconds = self.cells.per_cell(
            lambda n: 0.0 if n.phase == "optimizer" else self.node_time(n)
        )
        return Load(seconds, border=self._border_seconds())

    def _border_seconds(self) -> list[float]:
        crossing = self.cells.crossing_bytes()
        values = {v.type.bytes: v for n in self.graph.nodes for v in n.outputs if v.type.elements}
        some = next(iter(values.values()))
        known: dict[int, float] = {0: 0.0}
        training = any(n.phase == "optimizer" for n in self.graph.nodes)
        for size in set(crossing) - {0}:
            elements = max(size * 8 // some.type.dtype.bits, 1)
            message = replace(some, type=some.type.with_shape((elements,)))
            node = Node(
                "border", "send", (message,), (), {**self._group(2, 1), "during": "forward"}
            )
            known[size] = self.node_time(node) * (2 if training else 1)
        return [known[size] for size in crossing]

    def bounds(self, plan: PipelinePlan, shares: Shares = (1.0, 1.0, 1.0)) -> tuple[int, ...]:
        """The first cell of every stage, and the number of cells.

        Args:
            plan: what is asked for.
            shares: part of parameters, gradients and states that a rank stores.

        Raises:
            MeshError: if there are too few places to cut.
        """
        if plan.bounds:
            return plan.bounds
        if plan.layers:
            return self.given_bounds(plan.layers)
        self.check(self.cells.count)
        loads = [self.time_load()]
        cuts = balanced_cuts(loads, self.stages)
        if plan.slack < 1 and cuts is not None:
            memory = self.memory_load(plan.in_flight, shares)
            least = balanced_cuts([memory], self.stages)
            low, high = (memory.worst(c, self.stages) for c in (least or cuts, cuts))
            limit = low + plan.slack * max(high - low, 0.0)
            cuts = balanced_cuts([*loads, replace(memory, limit=limit)], self.stages)
        if cuts is None:
            raise MeshError(f"{self.graph.name or 'the graph'} cannot be cut")
        return (0, *cuts, self.cells.count)

    def memory_load(self, in_flight: Sequence[float], shares: Shares) -> Load:
        """Bytes of each cell: activations for every micro-batch in flight, and what always stands."""
        standing = zip(standing_bytes(self.cells, shares), room_besides(self.cells), strict=True)
        return Load(saved_bytes(self.cells), [a + b for a, b in standing], weights=in_flight)

    def check(self, cells: int) -> None:
        """Raises MeshError if there are more stages than cells."""
        if self.stages > cells:
            per_rank = self.stages // self.mesh_axis.size
            raise MeshError(
                f"{self.mesh_axis.name}={self.mesh_axis.size}"
                + (f" with {per_rank} stages per rank" if per_rank > 1 else "")
                + f": {self.graph.name or 'the graph'} can be cut into at most {cells} stages; "
                f"the nearest that works is {self.mesh_axis.name}={max(cells // per_rank, 1)}"
            )

    def given_bounds(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Bounds from the number of layers of each stage.

        What stands before the repeated layers goes to the first stage that has layers, what stands behind
        to the last; in a graph without repeated layers every operator counts.

        Raises:
            MeshError: if the numbers do not fit.
        """
        if len(counts) != self.stages:
            raise MeshError(
                f"--stages names {len(counts)} stages, but the pipeline has {self.stages}"
            )
        blocks = [g for g in self.cells.groups if g.block is not None]
        starts = [g.first_cell + i for g in blocks for i in range(g.count)]
        what = "repeated layers"
        if not starts:
            starts, what = list(range(self.cells.count)), "operators"
        if sum(counts) != len(starts) or 0 in counts:
            raise MeshError(
                f"--stages {','.join(map(str, counts))}: the stages have to share out "
                f"{len(starts)} {what}, at least one each, not {sum(counts)}"
            )
        firsts = list(itertools.accumulate(counts[:-1]))
        return (0, *(starts[i] for i in firsts), self.cells.count)

    def cut(self, bounds: Sequence[int]) -> list[Stage]:
        """The graph of each stage, in model order.

        Args:
            bounds: the first cell of every stage, and the number of cells.
        """
        held = [
            {g: h for g in self.cells.groups if (h := _held(g, low, high)).count}
            for low, high in itertools.pairwise(bounds)
        ]
        parts = self._parts(held)
        found = sources(parts)
        received = [
            [self._transfer(key, found[key, i], i) for key in part.wanted]
            for i, part in enumerate(parts)
        ]
        sent: list[list[Transfer]] = [[] for _ in parts]
        for transfer in (t for row in received for t in row):
            sent[transfer.source].append(transfer)
        known: dict[tuple[object, ...], Stage] = {}
        result = []
        for i, part in enumerate(parts):
            ranks = self._ranks(i)
            key = (
                part,
                tuple(t.key for t in received[i]),
                tuple(t.key for t in sent[i]),
                ranks if len(ranks) > 1 else None,
            )
            if key not in known:
                label = f"cells {bounds[i]}-{bounds[i + 1] - 1}"
                graph = StageBuilder(part, held[i]).build(received[i], sent[i])
                known[key] = Stage(self._summed_over_copies(graph, i), label)
            result.append(known[key])
        return result

    def _parts(self, held: Sequence[dict[Group, Held]]) -> list[StagePart]:
        """What each stage holds; stages that hold the same share it."""
        exchanges = self._exchanges(held)
        known: dict[tuple[object, ...], StagePart] = {}
        result = []
        for i, own in enumerate(held):
            takes_part = [i in stages for stages in exchanges.values()]
            elsewhere = self._elsewhere(held, i)
            key = (*own.items(), *takes_part, elsewhere)
            if key not in known:
                pairs = zip(exchanges, takes_part, strict=True)
                known[key] = StagePart(self.cells, own, pairs, elsewhere)
            result.append(known[key])
        return result

    def _summed_over_copies(self, graph: Graph, stage: int) -> Graph:
        """Lets the ranks that hold a stage each for one way sum up its gradients."""
        ranks = sorted(self._ranks(stage))
        if len(ranks) == 1:
            return graph
        return mirrored(graph, self._group(len(ranks), ranks[-1] - ranks[0]))

    def _exchanges(self, held: Sequence[dict[Group, Held]]) -> dict[Exchange, tuple[int, ...]]:
        """The weights that several ranks hold, with the stages that do."""

        def holders(term: Value) -> list[int]:
            producer = self.graph.producers.get(term)
            group = self.cells.group_of[producer] if producer is not None else None
            return [i for i, own in enumerate(held) if group in own]

        found = {}
        for weight, stages in spread(weights_with_sums(self.graph), holders).items():
            if len({self._ranks(stage) for stage in stages}) == 1:
                self.local.update(weight.terms, (v for n in weight.sums for v in n.outputs))
                continue
            ranks = sorted({self.rank_of[stage] for stage in stages})
            distance = max((ranks[-1] - ranks[0]) // (len(ranks) - 1), 1)
            group = {**self._group(len(ranks), distance), "stages": stages}
            found[Exchange(weight, group)] = stages
        return found

    def _ranks(self, stage: int) -> frozenset[int]:
        return frozenset(rank for rank, row in enumerate(self.layout) if stage in row)

    def _group(self, size: int, distance: int) -> dict[str, Any]:
        axis = self.mesh_axis
        return {"axis": axis.name, "group_size": size, "group_stride": axis.stride * distance}

    def _elsewhere(self, held: Sequence[dict[Group, Held]], stage: int) -> frozenset[Value]:
        """Weights of a stage that its rank already holds for a stage before it."""
        others = {s for row in self.layout if stage in row for s in row if s < stage}
        if not others:
            return frozenset()
        groups = {g for other in others for g in held[other]}
        return frozenset(
            value
            for value, readers in self.readers.items()
            if readers & held[stage].keys() and readers & groups
        )

    @cached_property
    def readers(self) -> dict[Value, set[Group]]:
        """Groups of the nodes that read each weight or constant which repeated layers do not stack."""
        found: dict[Value, set[Group]] = {
            v: set()
            for v in self.graph.inputs
            if v.count == 1 and v.kind in ("parameter", "buffer", "constant")
        }
        for node in self.graph.nodes:
            for value in node.inputs:
                if value in found and node.during == "forward":
                    found[value].add(self.cells.group_of[node])
        return found

    def _transfer(self, key: Wanted, source: int, target: int) -> Transfer:
        value, during = key
        distance = abs(self.rank_of[source] - self.rank_of[target])
        if value in self.local and self._ranks(source) == self._ranks(target):
            distance = 0
        group = self._group(2 if distance else 1, distance or 1)
        return Transfer(value, during, source, target, group)


def _held(group: Group, low: int, high: int) -> Held:
    first, stop = group.first_cell, group.first_cell + group.count
    a, b = max(first, low), min(stop, high)
    return Held(max(0, b - a), a == first, b == stop, a - first)
