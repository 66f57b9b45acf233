"""What a device waits for the host that issues its kernels, where launches are not replayed.

The host issues kernels in the graph's order, `launch.host` each, and runs ahead: behind long kernels it
gains a lead that short ones then use up. Where the lead is gone the device waits, and its waits are
added to the short kernels. Views launch nothing, but take the host a while too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from costing.hardware import Hardware, Launch
from costing.op_cost import HOST, OpCost, largest
from graph_ir.graph import Block, Graph, Node

_NOTICED = 0.01
"""Share of a kernel's own time from which a wait makes the host a resource that could bound it."""


def issued_by_host(
    graph: Graph,
    hardware: Hardware,
    costs: Mapping[Node, OpCost],
    kernels: Iterable[Sequence[Node]],
) -> dict[Node, OpCost]:
    """Adds to each kernel the time for which the device waits until it is issued.

    Args:
        graph: of one micro-batch on one rank.
        hardware: the device; one that replays its launches waits for nobody.
        costs: of one application of each node.
        kernels: nodes that run as one kernel, in groups.
    """
    found = dict(costs)
    if hardware.launch.hidden:
        return found
    launch = hardware.launch
    # A kernel is issued with its first node; its other nodes only take their part of its time.
    first = {group[0] for group in kernels if any(costs[node].time_s for node in group)}
    for node, wait_s in _waits(graph, launch, costs, first).items():
        cost = costs[node]
        time_s = cost.time_s + wait_s
        terms = dict(cost.terms)
        if wait_s > _NOTICED * cost.time_s:
            terms[HOST] = min(launch.host_s, time_s)
        found[node] = replace(
            cost,
            time_s=time_s,
            terms=terms,
            bound=largest(terms) if HOST in terms else cost.bound,
            utilization=cost.utilization * cost.time_s / time_s if time_s else 0.0,
        )
    return found


def _waits(
    graph: Graph, launch: Launch, costs: Mapping[Node, OpCost], first: set[Node]
) -> dict[Node, float]:
    """Mean wait of each kernel of the compute stream, by its first node.

    What a block, or what stands between blocks, waits is shared out over the kernels that take less
    than the host does, by what they lack: which of them finds the lead used up is chance.
    """
    waits: dict[Node, float] = {}
    issue_s = launch.host_s
    issued = done = 0.0
    for block, members in _segments(graph):
        times = 1 if block is None else block.count
        waited = 0.0
        for _ in range(times):
            for node in members:
                repeated = node.count if block is None else 1
                if node.definition.is_view(node):
                    issued += launch.view_s * repeated
                issued += issue_s * repeated if node in first else 0.0
                if node.definition.kind == "collective":
                    continue
                work_s = costs[node].time_s
                if node in first:
                    wait = max(issued - done - work_s * (repeated - 1), 0.0)
                    waited += wait
                    done += wait
                done += work_s * repeated
        lacks = {
            node: max(issue_s - costs[node].time_s, 0.0)
            for node in members
            if node in first and node.definition.kind != "collective"
        }
        if not any(lacks.values()):
            # All take longer than the host for themselves: it was held up by views.
            lacks = dict.fromkeys(lacks, 1.0)
        total = sum(lack * (node.count if block is None else 1) for node, lack in lacks.items())
        waits |= {node: waited / times * lack / total for node, lack in lacks.items()}
    return waits


def _segments(graph: Graph) -> list[tuple[Block | None, list[Node]]]:
    """The graph's nodes in order, those of a repeated block together."""
    segments: list[tuple[Block | None, list[Node]]] = []
    for node in graph.nodes:
        block = graph.block_of.get(node)
        if not segments or segments[-1][0] is not block:
            segments.append((block, []))
        segments[-1][1].append(node)
    return segments
