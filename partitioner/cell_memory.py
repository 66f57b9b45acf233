"""What each cell of a graph keeps in memory: the basis for stages that need equally much.

An estimate for choosing cuts. The memory of the stages that come out is found by walking their graphs.
"""

from __future__ import annotations

from graph_ir.graph import Node, Value
from partitioner.cells import Cells

Shares = tuple[float, float, float]
"""Of parameters, gradients and optimizer states: the part that a rank stores."""


def zero_shares(stage: int, replicas: int) -> Shares:
    """What a rank stores of parameters, gradients and states under ZeRO (arXiv 1910.02054, figure 1)."""
    part = 1.0 / replicas
    return (part if stage >= 3 else 1.0, part if stage >= 2 else 1.0, part if stage >= 1 else 1.0)


def standing_bytes(cells: Cells, shares: Shares = (1.0, 1.0, 1.0)) -> list[float]:
    """Weights, their gradients and the optimizer's states, for every cell."""
    of_parameters, of_gradients, of_states = shares
    seen: set[Value] = set()

    def kept(node: Node) -> float:
        total = 0.0
        for value in node.inputs:
            if value in seen:
                continue
            if value.kind in ("parameter", "buffer", "constant"):
                total += value.type.bytes * of_parameters
            elif value.kind == "state":
                total += value.type.bytes * of_states
            else:
                continue
            seen.add(value)
        if node.phase == "optimizer" and node.definition.kind == "optimizer":
            total += node.inputs[1].type.bytes * of_gradients
        return total

    return cells.per_cell(kept)


def saved_bytes(cells: Cells) -> list[float]:
    """Activations that one micro-batch keeps for its backward pass, for every cell."""
    graph = cells.graph
    root: dict[Value, Value] = {}

    def storage(value: Value) -> Value:
        while value in root:
            value = root[value]
        return value

    for node in graph.nodes:
        definition = node.definition
        place = definition.view_of if definition.is_view(node) else definition.in_place
        if place is not None:
            root[node.outputs[0]] = node.inputs[place]
    for block in graph.blocks:
        for carry in block.carries:
            root.setdefault(carry.argument, carry.result)
    kept = {storage(v) for n in graph.nodes if n.during != "forward" for v in n.inputs}

    def saved(node: Node) -> float:
        if node.during != "forward":
            return 0.0
        return float(sum(v.type.bytes for v in node.outputs if v in kept and v not in root))

    return cells.per_cell(saved)


def working_bytes(cells: Cells) -> list[float]:
    """Activations and their gradients that the largest operator of each cell reads and writes."""
    largest = dict.fromkeys(range(len(cells.groups)), 0)
    for node, group in cells.group_of.items():
        if node.phase in ("forward", "backward"):
            own = [
                v for v in (*node.inputs, *node.outputs) if v.kind in ("intermediate", "carried")
            ]
            size = sum(v.type.bytes for v in own)
            largest[group.index] = max(largest[group.index], size)
    return [float(largest[g.index]) for g in cells.groups for _ in range(g.count)]


def room_besides(cells: Cells) -> list[float]:
    """By how much the cell with the largest operator exceeds what every stage has room for anyway.

    Every stage works on something; but one of them on the head, whose operands may be many times larger.
    """
    working = working_bytes(cells)
    layers = [w for g in cells.groups if g.block for w in working[g.first_cell :][:1]]
    most = max(range(len(working)), key=lambda i: working[i])
    usual = max(layers, default=working[most])
    return [max(working[most] - usual, 0.0) if i == most else 0.0 for i in range(len(working))]
