"""Simulates one rank's micro-batch on its streams: computation, and communication over each link.

The streams take the graph's nodes in order; a node starts when its stream is free and its operands
are there. A collective needs every link that its group spans; those of other mesh axes over other
links run beside it. A collective that the next product waits for is exposed; the reduction of a
weight's gradient, which only the optimizer waits for, hides behind the rest of the backward pass.
Nothing marks a node as "overlapping": it follows from who reads what. Without overlap, all of them
take turns. A repeated block is simulated until
two repetitions take equally long, then extrapolated. What is sent to and received from other stages
is left to the pipeline's schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from costing.lifetimes import backward_start
from costing.op_cost import COMPUTE, OpCost, network_bound
from graph_ir.graph import Block, Graph, Node, Value

_STEADY = 1e-9
"""Relative change between two repetitions below which the next ones are taken to be the same."""

_NETWORK = network_bound("")


@dataclass(frozen=True)
class Span:
    """A node on a stream, in the first repetition of its block."""

    node: Node
    stream: str
    """COMPUTE, or the bound of the link that a collective needs most."""
    start_s: float
    end_s: float


@dataclass(frozen=True)
class PassTime:
    """How long a part of the graph takes."""

    time_s: float
    compute_s: float
    """Time that the compute stream's work takes with the processors to itself."""
    spans: tuple[Span, ...] = ()
    communication_s: float = 0.0
    """Time in which the busiest link works."""

    @property
    def exposed_s(self) -> float:
        """What communication adds: time in which the compute stream waits, or works beside it and slower."""
        return max(self.time_s - self.compute_s, 0.0)


@dataclass(frozen=True)
class StageTimes:
    """How long one stage's parts take."""

    forward: PassTime
    """One micro-batch."""
    backward: PassTime
    """One micro-batch, recomputation included, without what is done once per step."""
    gradients: PassTime
    """The last micro-batch's backward pass, with the reduction of the gradients."""
    optimizer: PassTime
    """The update, with what is communicated after it."""
    once: frozenset[Node]
    """Nodes that run once per step, not once per micro-batch."""
    apart: tuple[PassTime, PassTime] | None = None
    """The backward pass in two, where the schedule parts them: what the stage before waits for, and the
    gradients of weights."""

    @property
    def tail_s(self) -> float:
        """What the reduction of gradients adds to the end of the step."""
        return max(self.gradients.time_s - self.backward.time_s, 0.0)


def stage_times(
    graph: Graph,
    costs: Mapping[Node, OpCost],
    late_sends: frozenset[str] = frozenset(),
    weights: frozenset[Node] = frozenset(),
    overlap: bool = True,
) -> StageTimes:
    """Simulates the forward pass, the backward pass and the update of one stage.

    Args:
        graph: of one micro-batch on one rank, folded or not.
        costs: of one application of each node.
        late_sends: see `once_per_step`.
        weights: nodes that a schedule runs apart from the rest of the backward pass.
        overlap: whether collectives run beside kernels and beside those of other links.
    """

    def run(nodes: Iterable[Node]) -> PassTime:
        return _Streams(graph, costs, overlap).run(nodes)

    split = backward_start(graph)
    update = _update_nodes(graph)
    once = once_per_step(graph, late_sends)
    forward = [n for n in graph.nodes[:split] if n not in once]
    backward = [n for n in graph.nodes[split:] if n not in update]
    every = [n for n in backward if n not in once]
    apart = None
    if weights:
        inputs, own = ([n for n in every if (n in weights) is w] for w in (False, True))
        apart = (run(inputs), run(own))
    return StageTimes(
        forward=run(forward),
        backward=run(every),
        gradients=run(backward),
        optimizer=run([n for n in graph.nodes if n in update]),
        once=once,
        apart=apart,
    )


def late_sends(graphs: Iterable[Graph]) -> frozenset[str]:
    """Names of the `send` nodes whose `recv` on another stage only serves the update there.

    The gradient of a weight that two stages share (a tied embedding) is such a message.
    """
    distinct = list(dict.fromkeys(graphs))
    late: frozenset[str] = frozenset()
    while True:
        received = {
            node.name.removesuffix(".recv")
            for graph in distinct
            for node in once_per_step(graph, late)
            if node.op == "recv"
        }
        found = frozenset(
            node.name
            for graph in distinct
            for node in graph.nodes
            if node.op == "send" and node.name.removesuffix(".send") in received
        )
        if found == late:
            return late
        # A stage that passes such a message on makes the one it receives late as well.
        late = found


def once_per_step(graph: Graph, late_sends: frozenset[str] = frozenset()) -> frozenset[Node]:
    """The update, and the collectives whose results only the update needs.

    Gradients are summed over micro-batches first, so these run once, with the last one.

    Args:
        graph: of one micro-batch on one rank.
        late_sends: names of `send` nodes that are known to serve another stage's update.
    """
    update = _update_nodes(graph)
    needed: set[Value] = {c.result for b in graph.blocks for c in b.carries}
    found = set(update)
    for node in reversed(graph.nodes):
        kind = node.definition.kind
        if node in update:
            continue
        sent = node.op == "send" and node.name not in late_sends
        works = sent or kind in ("contraction", "attention", "normalization")
        works = works or bool(node.attrs.get("every_microbatch"))
        if works or any(v in needed for v in node.outputs):
            needed.update(node.inputs)
            # What a repeated block carries begins with a value from before the block.
            needed.update(graph.carries[v].initial for v in node.inputs if v in graph.carries)
        elif (
            kind == "collective"
            and node.during != "forward"
            and not any(v in graph.outputs for v in node.outputs)
        ):
            found.add(node)
    return frozenset(found)


def _update_nodes(graph: Graph) -> set[Node]:
    """The optimizer's nodes and all that follows from their results."""
    found: set[Node] = set()
    for node in graph.nodes:
        after = any(graph.producers.get(v) in found for v in node.inputs)
        if node.during == "optimizer" or after:
            found.add(node)
    return found


@dataclass(frozen=True)
class _Beside:
    """A collective that works, and the share of the processors that it takes."""

    start_s: float
    end_s: float
    share: float

    def within(self, start_s: float, end_s: float) -> float:
        """Seconds of processors that it takes from a span of time."""
        return max(min(end_s, self.end_s) - max(start_s, self.start_s), 0.0) * self.share


class _Streams:
    """The streams' clocks, and when each value is there."""

    def __init__(self, graph: Graph, costs: Mapping[Node, OpCost], overlap: bool) -> None:
        self.graph = graph
        self.costs = costs
        self.overlap = overlap
        self.clock: dict[str, float] = {COMPUTE: 0.0}
        self.busy: dict[str, float] = {COMPUTE: 0.0}
        self.ready: dict[Value, float] = {}
        self.spans: list[Span] = []
        # The last collective on each link.
        self.beside: dict[str, _Beside] = {}

    def run(self, nodes: Iterable[Node]) -> PassTime:
        """Runs nodes in order and returns the time until all streams are done."""
        segments: list[tuple[Block | None, list[Node]]] = []
        for node in nodes:
            block = self.graph.block_of.get(node)
            if not segments or segments[-1][0] is not block:
                segments.append((block, []))
            segments[-1][1].append(node)
        for block, members in segments:
            if block is None:
                for node in members:
                    self._execute(node, record=True)
            else:
                self._repeat(block, members)
        compute_s = self.busy.pop(COMPUTE)
        communication_s = max(self.busy.values(), default=0.0)
        return PassTime(max(self.clock.values()), compute_s, tuple(self.spans), communication_s)

    def _repeat(self, block: Block, members: list[Node]) -> None:
        for carry in block.carries:
            self.ready[carry.argument] = self.ready.get(carry.initial, 0.0)
        before: dict[str, float] | None = None
        for repetition in range(block.count):
            start, busy = dict(self.clock), dict(self.busy)
            for node in members:
                self._execute(node, record=repetition == 0)
            for carry in block.carries:
                self.ready[carry.argument] = self.ready.get(carry.result, 0.0)
            steps = _since(start, self.clock)
            left = block.count - repetition - 1
            if left and before is not None and _equal(steps, before):
                self._skip(members, steps, left, _since(busy, self.busy))
                return
            before = steps

    def _skip(
        self, members: list[Node], steps: dict[str, float], times: int, worked: dict[str, float]
    ) -> None:
        """Lets `times` more repetitions pass, each like the last one."""
        for node in members:
            ahead = steps.get(self._stream(node), 0.0) * times
            for value in node.outputs:
                self.ready[value] += ahead
        for name, step in steps.items():
            self.clock[name] += step * times
        for name, part in worked.items():
            self.busy[name] += part * times

    def _stream(self, node: Node) -> str:
        """The stream that a node holds until it ends; of a collective the link that it needs most."""
        if node.definition.kind != "collective":
            return COMPUTE
        links = self._links(node)
        return max(links, key=lambda name: links[name])

    def _links(self, node: Node) -> dict[str, float]:
        """Seconds that a collective needs of each link."""
        terms = self.costs[node].terms
        known = {name: s for name, s in terms.items() if name.startswith(_NETWORK)}
        return known or {_NETWORK: 0.0}

    def _execute(self, node: Node, record: bool) -> None:
        # A folded node outside a block (the update of every layer's weight) runs all its repetitions.
        times = 1 if node in self.graph.block_of else node.count
        duration = 0.0 if node.op in ("send", "recv") else self.costs[node].time_s * times
        inputs = max((self.ready.get(v, 0.0) for v in node.inputs), default=0.0)
        # A view takes no time on a stream: it is there when its operand is.
        if duration == 0.0:
            end = inputs
        elif node.definition.kind == "collective":
            end = self._communicate(node, inputs, duration, times, record)
        else:
            start = self._start(inputs, [COMPUTE])
            slowed = sum(one.within(start, start + duration) for one in self.beside.values())
            end = self.clock[COMPUTE] = start + duration + slowed
            # Slowed or not, the work is the same: what a collective costs beside it is exposed.
            self.busy[COMPUTE] += duration
            if record:
                self.spans.append(Span(node, COMPUTE, start, end))
        for value in node.outputs:
            self.ready[value] = end

    def _start(self, ready_s: float, streams: Iterable[str]) -> float:
        waits = streams if self.overlap else list(self.clock)
        return max([ready_s, *(self.clock.get(name, 0.0) for name in waits)])

    def _communicate(
        self, node: Node, ready_s: float, duration: float, times: int, record: bool
    ) -> float:
        """Runs a collective: it ends on the link that it needs most, the others are free earlier."""
        links, share = self._links(node), self.costs[node].processors_taken
        start = self._start(ready_s, links)
        if node.attrs.get("prefetch") is False:
            # Weights that are gathered when they are needed, not while the block before works.
            start = max(start, *self.clock.values())
        end, most = start + duration, max(links.values())
        for name, seconds in links.items():
            held = duration - (most - seconds) * times
            self.clock[name] = start + held
            self.busy[name] = self.busy.get(name, 0.0) + held
            self.beside[name] = _Beside(start, end, share if seconds == most else 0.0)
        # It may come later in the graph than kernels that it runs beside: then it is they that end later.
        self.clock[COMPUTE] += max(min(end, self.clock[COMPUTE]) - start, 0.0) * share
        if record:
            self.spans.append(Span(node, self._stream(node), start, end))
        return end


def _since(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    return {name: time - before.get(name, 0.0) for name, time in now.items()}


def _equal(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return a.keys() == b.keys() and all(
        abs(x - b[name]) <= _STEADY * max(abs(x), abs(b[name])) for name, x in a.items()
    )
