"""Priced graph nodes as the report wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graph_ir.text_format import attributes_text
from reports import CostedNode, Instance

if TYPE_CHECKING:
    from costing.hardware import Hardware
    from costing.op_cost import OpCost
    from graph_ir.graph import Node


def costed_node(
    node: Node,
    cost: OpCost,
    *,
    times: int = 1,
    phase: str | None = None,
    hardware: Hardware | None = None,
) -> CostedNode:
    """One node with its price.

    Args:
        node: a node of the busiest rank's graph, perhaps folded.
        cost: the price of ONE application.
        times: how often the rank runs the node's graph in a step (micro-batches, decode steps).
        phase: takes the place of the node's own phase (prefill, decode).
        hardware: the device, for the node's energy.
    """
    values = (*node.inputs, *node.outputs)
    return CostedNode(
        name=node.name,
        module=node.module,
        op=_op_text(node),
        phase=phase if phase and node.phase == "forward" else node.phase,
        count=node.count * times,
        shapes=tuple(value.type.shape for value in values),
        dtypes=tuple(value.type.dtype.label for value in values),
        flops=cost.flops,
        bytes_read=cost.bytes_read,
        bytes_written=cost.bytes_written,
        bytes_communicated=cost.bytes_communicated,
        time_s=cost.time_s,
        bound=cost.bound,
        engine=cost.engine,
        utilization=cost.utilization,
        terms_s=dict(cost.terms),
        attributes=attributes_text(node.attrs),
        instances=tuple(map(Instance, node.instances, node.instance_modules)),
        energy_j=_energy(node, cost, hardware),
        axis=node.attrs.get("axis") if node.phase == "communication" else None,
        sharding=_sharding(node) if any(value.shards for value in values) else (),
    )


def _sharding(node: Node) -> tuple[str, ...]:
    """How each operand and result was cut out of the whole one, as `dp=2@0 tp=4@1`."""
    return tuple(
        " ".join(f"{s.axis}={s.parts}@{'flat' if s.dim is None else s.dim}" for s in value.shards)
        for value in (*node.inputs, *node.outputs)
    )


def _energy(node: Node, cost: OpCost, hardware: Hardware | None) -> float | None:
    """Joules of one application beyond idle power, where the device's power is known."""
    if hardware is None:
        return None
    from costing.energy import operator_energy

    types = [value.type.dtype for value in (*node.inputs, *node.outputs)]
    return operator_energy(hardware, cost, types)


def _op_text(node: Node) -> str:
    """The operator's name; of an unknown one, what the model calls it."""
    frontend = node.attrs.get("frontend")
    return f"unknown: {frontend}" if node.op == "unknown" and frontend else node.op
