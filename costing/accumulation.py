"""What summing up gradients over micro-batches costs.

Every micro-batch but the first adds its gradients to those before: two are read and one is written
(torch.autograd's AccumulateGrad; a library that adds in the product's epilogue moves as much).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from costing.hardware import Hardware
from costing.op_cost import OpCost, largest, memory_bound
from graph_ir.graph import Graph, Node, Value


def with_accumulation(
    graph: Graph, hardware: Hardware, costs: Mapping[Node, OpCost], microbatches: int
) -> dict[Node, OpCost]:
    """Adds the sums to the nodes that make weights' gradients, as a mean over the micro-batches.

    Args:
        graph: of one micro-batch on one rank.
        hardware: the device.
        costs: of one application of each node.
        microbatches: of a step; with one, nothing is summed up.
    """
    found = dict(costs)
    level = hardware.main_memory
    share = 1 - 1 / max(microbatches, 1)
    done: set[Value] = set()
    for update in graph.nodes:
        if not share or update.definition.kind != "optimizer":
            continue
        gradient, maker = _made_by(graph, update.inputs[1])
        if maker is None or gradient in done:
            continue
        done.add(gradient)
        moved = round(share * gradient.type.bytes)
        seconds = 3 * moved / level.sustained_bytes_per_s
        cost, bound = found[maker], memory_bound(level.name)
        time_s = cost.time_s + seconds
        terms = {**cost.terms, bound: cost.terms.get(bound, 0.0) + seconds}
        found[maker] = replace(
            cost,
            bytes_read=cost.bytes_read + 2 * moved,
            bytes_written=cost.bytes_written + moved,
            time_s=time_s,
            bound=largest(terms),
            utilization=cost.utilization * cost.time_s / time_s if time_s else 0.0,
            terms=terms,
        )
    return found


def _made_by(graph: Graph, value: Value) -> tuple[Value, Node | None]:
    """The summed tensor and the kernel that makes a micro-batch's part of it.

    Behind it lie views and what is done once with the sum: the collectives of the last micro-batch.
    """
    gradient = value
    maker = graph.producers.get(value)
    while maker is not None:
        view = maker.definition.is_view(maker)
        # What another stage has made arrives here, and is summed up here.
        if not maker.inputs or (not view and maker.definition.kind != "collective"):
            break
        value = maker.inputs[maker.outputs.index(value) if not view else 0]
        if not maker.attrs.get("every_microbatch"):
            gradient = value
        maker = graph.producers.get(value)
    return gradient, maker
