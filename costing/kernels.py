"""Which nodes run as one kernel, and the price of every node of a graph.

In eager execution each operator is a kernel of its own, except a bias that the library adds in a
product's epilogue. With fusion the groups come from the graph (`graph_ir.fusion`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from costing.hardware import Hardware
from costing.node_cost import NodePricer
from costing.op_cost import OpCost
from graph_ir.graph import Graph, Node, Value

Group = Sequence[Node]


def eager_groups(graph: Graph) -> list[Group]:
    """One group per node; a node with the attribute `epilogue` joins the producer of its operand."""
    group_of: dict[Node, list[Node]] = {}
    groups: list[list[Node]] = []
    for node in graph.nodes:
        host = graph.producers.get(node.inputs[0]) if node.attrs.get("epilogue") else None
        # Only where nothing else reads the bare product does it never reach memory; where a
        # collective stands between, the bias is a kernel of its own.
        product = host is not None and host.definition.kind == "contraction"
        if product and host is not None and len(graph.users[node.inputs[0]]) == 1:
            group_of[host].append(node)
            group_of[node] = group_of[host]
            continue
        groups.append([node])
        group_of[node] = groups[-1]
    return list(groups)


def pointwise_groups(graph: Graph) -> list[Group]:
    """Groups as of hand-written kernels: forward chains of elementwise operators run as one.

    A chain walks over the same elements and may end in a softmax. So works Megatron-LM (bias, dropout
    and residual; scaled and masked softmax): its attention stays written out, and its backward pass
    has one kernel per operator.
    """
    groups = [list(group) for group in eager_groups(graph)]
    group_of = {node: group for group in groups for node in group}
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.phase not in ("forward", "recompute") or group_of[node] != [node]:
            continue
        if node.definition.kind != "elementwise" and node.op != "softmax":
            continue
        paths = [path for v in node.inputs if (path := _path(graph, v))]
        for maker, *views in paths:
            host = group_of[maker]
            # What is made after the kernel has begun, outside it, could need what it makes.
            late = any(
                position[p[0]] > position[host[0]] and group_of[p[0]] is not host for p in paths
            )
            chain = host[0].definition.kind == "elementwise" and maker.op != "softmax"
            same = maker.outputs[0].type.elements == node.outputs[0].type.elements
            together = graph.block_of.get(maker) is graph.block_of.get(node)
            if chain and same and together and maker.phase == node.phase and not late:
                joining = [view for view in views if group_of[view] is not host] + [node]
                for joined in joining:
                    groups.remove(group_of[joined])
                    host.append(joined)
                    group_of[joined] = host
                break
    return list(groups)


def _path(graph: Graph, value: Value) -> list[Node]:
    """The node that makes a value's elements, and the views behind it; empty for a graph's input."""
    path: list[Node] = []
    while (producer := graph.producers.get(value)) is not None:
        path.insert(0, producer)
        if not producer.definition.is_view(producer) or not producer.inputs:
            return path
        value = producer.inputs[0]
    return []


def inner_values(graph: Graph, groups: Iterable[Group]) -> frozenset[Value]:
    """Values that never reach main memory: made and used up within one kernel."""
    escaping = {c.result for b in graph.blocks for c in b.carries} | set(graph.outputs)
    for block in graph.blocks:
        escaping |= block.collected
        escaping.update(c.initial for c in block.carries)
    found: set[Value] = set()
    for group in groups:
        if len(group) == 1:
            continue
        members = set(group)
        for node in group:
            for value in node.outputs:
                readers = graph.users.get(value, [])
                if readers and value not in escaping and members.issuperset(readers):
                    found.add(value)
    return frozenset(found)


def price_graph(
    graph: Graph,
    hardware: Hardware,
    groups: Sequence[Group] | None = None,
    pricer: NodePricer | None = None,
) -> dict[Node, OpCost]:
    """Cost of one application of every node.

    Args:
        graph: one rank's graph.
        hardware: the device.
        groups: nodes that run as one kernel; every node in exactly one. None: eager execution.
        pricer: keeps prices between graphs of one device.

    Raises:
        HardwareError: if the device cannot run a node.
    """
    pricer = pricer or NodePricer(hardware)
    groups = eager_groups(graph) if groups is None else groups
    inner = inner_values(graph, groups)
    costs: dict[Node, OpCost] = {}
    for group in groups:
        costs.update(zip(group, pricer.group_cost(group, inner), strict=True))
    return costs
