"""Runs the stages of a pipeline one beside the other, on one micro-batch, in numpy.

Every stage is one rank here, whichever rank the schedule puts it on; stages only see what they are sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ranks import Array, StageRun

from graph_ir.graph import Graph, Node, Value
from graph_ir.partitioned import Stage


class OneWay:
    """A copy of a stage that another rank holds for the other way sees no micro-batch here."""

    def collective(
        self, node: Node, operands: Mapping[int, Sequence[Array]]
    ) -> dict[int, list[Array]]:
        return {rank: list(arrays) for rank, arrays in operands.items()}


class StagesRun:
    """All stages of a pipeline.

    Args:
        whole: the graph before it was cut.
        stages: the graphs of the stages, in model order.
        given: arrays of every input of the whole graph, one per layer.
    """

    def __init__(
        self, whole: Graph, stages: Sequence[Stage], given: Mapping[Value, Sequence[Array]]
    ) -> None:
        self.graphs = [stage.graph for stage in stages]
        self.by_name = {value.name: value for value in given}
        self.given = given
        held: dict[str, int] = {}
        self.offsets: list[dict[str, int]] = []
        for graph in self.graphs:
            self.offsets.append(dict(held))
            for value in graph.inputs:
                if self.by_name[value.name].count > 1:
                    held[value.name] = held.get(value.name, 0) + value.count
        self.runs = [
            StageRun(graph, [0], lambda value, i=i: self._layers(value, i), OneWay())
            for i, graph in enumerate(self.graphs)
        ]
        self.received_bytes = 0
        self._run()

    def _layers(self, value: Value, stage: int) -> Sequence[Array]:
        first = self.offsets[stage].get(value.name, 0)
        return self.given[self.by_name[value.name]][first : first + value.count]

    def _run(self) -> None:
        working = {i: run.run() for i, run in enumerate(self.runs)}
        waits = {i: name for i, gen in working.items() if (name := next(gen, None)) is not None}
        while waits:
            answers = {i: found for i, name in waits.items() if (found := self._answer(i, name))}
            assert answers, f"stages wait for {waits}"
            for i, arrays in answers.items():
                try:
                    waits[i] = working[i].send(arrays)
                except StopIteration:
                    del waits[i]

    def _answer(self, stage: int, name: str) -> dict[int, object] | None:
        node = next(n for n in self.graphs[stage].nodes if n.name == name)
        if node.op == "recv":
            sender = self._sender(stage, node)
            if sender is None:
                return None
            array = self.runs[sender].sent[name.removesuffix(".recv")][0]
            self.received_bytes += array.nbytes
            return {0: array}
        others = node.attrs.get("stages", (stage,))
        posted = [self.runs[i].posted.get(name) for i in others]
        if any(p is None for p in posted):
            return None
        return {0: [np.sum([p[0][k] for p in posted], axis=0) for k in range(len(node.outputs))]}

    def _sender(self, stage: int, node: Node) -> int | None:
        """The nearest stage, upstream if there is one, that sends the value; None while it has not."""
        name = node.name.removesuffix(".recv")
        senders = [
            i
            for i, graph in enumerate(self.graphs)
            if i != stage and any(n.name == f"{name}.send" for n in graph.nodes)
        ]
        upstream = [i for i in senders if (i < stage) == (node.during == "forward")]
        nearest = min(upstream or senders, key=lambda i: abs(i - stage))
        return nearest if name in self.runs[nearest].sent else None

    def result(self, stage: int, value: Value, whole: Value) -> tuple[int, list[Array]]:
        """The first layer that a stage holds of an updated weight, and its layers' arrays."""
        first = 0
        if whole.count > 1:
            producer = self.graphs[stage].producers[value]
            first = self.offsets[stage].get(producer.inputs[0].name, 0)
        return first, [a for a in self.runs[stage].values[value][0] if a is not None]
