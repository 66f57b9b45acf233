"""Expert parallelism: the experts are split, and so is the batch.

Outside the experts each device works on its own tokens; at the experts it holds some of them whole, for
the tokens of all devices. Tokens therefore change from split by batch to split by expert and back: the
all-to-alls of dispatch and combine (Lepikhin et al. 2021, arXiv 2006.16668, section 3.2).
"""

from __future__ import annotations

from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node
from graph_ir.logical_axes import Axis, LogicalAxes
from graph_ir.resize import resized
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.data import batch_axes, group_axes, reordered_axes
from partitioner.strategies.token_side import on_own_tokens
from partitioner.strategy import Strategy


def expert_axes(graph: Graph, axes: LogicalAxes) -> frozenset[Axis]:
    """The experts: of the axes that rows are grouped by, the major one."""
    weights = {a for v in graph.parameters for a in axes.all_of(v)}
    found = group_axes(graph, axes)
    major = {
        own[0]
        for node in graph.nodes
        if node.op == "grouped_matmul"
        for own in axes.of_node(node).values()
        if own and own[0] in found
    }
    return frozenset(major & weights)


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits experts and batch over the mesh axis `ep`."""
    mesh_axis = strategy.mesh.axis("ep")
    if mesh_axis.size == 1:
        return graph
    axes = graph.axes
    experts = expert_axes(graph, axes)
    if not experts:
        raise MeshError(f"ep={mesh_axis.size}: {_why_none(graph)}")
    batch = batch_axes(graph, axes)
    for axis, what in [*((a, "experts") for a in experts), *((a, "samples") for a in batch)]:
        if axis.size % mesh_axis.size:
            works = min(
                (n for n in range(1, axis.size + 1) if axis.size % n == 0),
                key=lambda n: abs(n - mesh_axis.size),
            )
            raise MeshError(
                f"ep={mesh_axis.size} does not divide the {axis.size} {what}; "
                f"the nearest that works is ep={works}"
            )
    rows = reordered_axes(graph, axes, batch, mesh_axis.size, experts)
    if not rows:
        raise MeshError(
            f"ep={mesh_axis.size}: the rows that tokens are routed as cannot be shared out over the experts "
            f"and the devices of {graph.name or 'this graph'}; use a larger --batch, or a power of two"
        )
    tokens = batch | rows
    own = on_own_tokens(graph, axes, experts, tokens)
    plan = Plan(mesh_axis, experts | tokens, batch=tokens, on_batch=own)
    local = split_graph(graph, axes, plan)
    return _rounded_no_more(local)


def _why_none(graph: Graph) -> str:
    """Why no experts are found."""
    name = graph.name or "this graph"
    for node in graph.nodes:
        first = graph.producers.get(node.inputs[1]) if node.op == "grouped_matmul" else None
        if first is not None and first.op == "slice":
            rows, experts = node.inputs[0].type.shape[0], first.inputs[0].type.shape[0]
            return (
                f"the {rows} rows that tokens of {name} are routed as cannot be shared out evenly over "
                f"{experts} experts; use a larger --batch, or a power of two"
            )
    return f"{name} has no experts to split; leave ep out"


def _rounded_no_more(graph: Graph) -> Graph:
    """A rank sorts its own rows: where their number is no multiple of the experts, it was rounded up.

    Behind the exchange it is right: there all rows of an expert are together.
    """
    sizes: dict[Axis, int] = {}
    near: list[Node] = []
    for node in graph.nodes:
        if node.op != "all_to_all" or node.attrs["axis"] != "ep":
            continue
        given, made = node.inputs[0], node.outputs[0]
        if given.type.elements == made.type.elements:
            continue
        axes = graph.axes
        dispatch = given.type.elements > made.type.elements
        rounded, right = (given, made) if dispatch else (made, given)
        place = node.attrs["concat" if dispatch else "split"][0]
        size = right.type.shape[place]
        for axis in axes.of_value(rounded)[place]:
            if axis.size * size % rounded.type.shape[place] == 0:
                sizes[axis] = axis.size * size // rounded.type.shape[place]
                near += [graph.producers[given]] if dispatch else graph.users[made]
                break
    return resized(graph, graph.axes, sizes, near) if sizes else graph


PASS = Pass("expert", 35, apply, axis="ep")
