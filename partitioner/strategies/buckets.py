"""Joins the gradient all-reduces of a block into one message, as every framework's buckets do.

A gradient may be reduced over several mesh axes one after the other. Those over which the data is split
(samples and tokens) are one group to a framework wherever their ranks are neighbours, so that a weight's
gradient is reduced once: of an expert's weight over its replicas, of any other over all ranks that see
other tokens. Latency is paid per bucket, and the bytes of a message stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graph_ir.graph import Graph, Node, Value
from partitioner.mesh import MeshAxis
from partitioner.strategies import Pass
from partitioner.strategy import Strategy

DATA_AXES = ("tp_depth", "cp", "cp_ulysses", "cp_ring", "ep", "dp")
"""Mesh axes whose ranks work on samples or tokens of their own."""


def axis_of(node: Node) -> MeshAxis:
    """The group of a collective."""
    attrs = node.attrs
    return MeshAxis(attrs["axis"], attrs["group_size"], attrs["group_stride"])


def joined(axes: list[MeshAxis]) -> list[MeshAxis]:
    """The groups that are left when neighbouring ones become one, those of the data last.

    A group that contains `dp` comes last of all: what is stored is split over it.
    """
    result = [a for a in axes if a.name not in DATA_AXES]
    data = sorted((a for a in axes if a.name in DATA_AXES), key=lambda a: a.stride)
    groups: list[MeshAxis] = []
    for axis in data:
        last = groups[-1] if groups else None
        if last is not None and last.stride * last.size == axis.stride:
            name = f"{last.name}+{axis.name}"
            groups[-1] = MeshAxis(name, last.size * axis.size, last.stride)
        else:
            groups.append(axis)
    return result + sorted(groups, key=lambda a: "dp" in a.name.split("+"))


@dataclass(frozen=True)
class _Chain:
    """The reductions of one gradient."""

    nodes: tuple[Node, ...]

    @property
    def axes(self) -> tuple[MeshAxis, ...]:
        return tuple(axis_of(n) for n in self.nodes)


def _chains(graph: Graph) -> list[_Chain]:
    """For every updated weight, the all-reduces that its gradient passes, the first one first."""
    found = []
    results = set(graph.outputs)
    for update in graph.nodes:
        if update.phase != "optimizer" or len(update.inputs) < 2:
            continue
        value = update.inputs[1]
        nodes: list[Node] = []
        while (node := graph.producers.get(value)) is not None and node.op == "all_reduce":
            alone = len(node.inputs) == 1 and len(graph.users.get(value, ())) == 1
            if not alone or value in results or "reduction" in node.attrs:
                break
            nodes.insert(0, node)
            (value,) = node.inputs
        if nodes:
            found.append(_Chain(tuple(nodes)))
    return found


def coalesce(graph: Graph) -> Graph:
    """Merges the all-reduces of gradients.

    Those of one repeated block become one node per group at the block's end, the others one where the last
    of them stood.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    regions = {c: {graph.block_of.get(n) for n in c.nodes} for c in _chains(graph)}
    buckets: dict[tuple[object, ...], list[_Chain]] = {}
    for chain, blocks in regions.items():
        if len(blocks) == 1:
            # Stages that exchange a shared weight's gradient have to join the same ones: none.
            alone = (chain,) if any(a.name == "pp" for a in chain.axes) else ()
            buckets.setdefault((*blocks, *alone, *chain.axes), []).append(chain)
    inserted: dict[int, list[Node]] = {}
    dropped: set[Node] = set()
    for (_, *axes), chains in buckets.items():
        groups = joined([a for a in axes if isinstance(a, MeshAxis)])
        if len(chains) == 1 and len(groups) == len(axes):
            continue
        last = max((c.nodes[-1] for c in chains), key=lambda n: position[n])
        inserted.setdefault(position[last], []).extend(_bucket(chains, groups, position[last]))
        dropped.update(n for c in chains for n in c.nodes)
    if not dropped:
        return graph
    start: dict[int, int] = {}
    nodes: list[Node] = []
    for index, node in enumerate(graph.nodes):
        start[index] = len(nodes)
        if node not in dropped:
            nodes.append(node)
        nodes += inserted.get(index, ())
    start[len(graph.nodes)] = len(nodes)
    blocks_ = tuple(replace(b, start=start[b.start], stop=start[b.stop]) for b in graph.blocks)
    return Graph(tuple(nodes), graph.inputs, graph.outputs, blocks_, graph.name)


def _bucket(chains: list[_Chain], groups: list[MeshAxis], index: int) -> list[Node]:
    """One all-reduce per group, of all the chains' gradients."""
    values = tuple(c.nodes[0].inputs[0] for c in chains)
    near = chains[0].nodes[-1]
    alone = len(chains) == 1
    made = []
    for i, axis in enumerate(groups):
        if i == len(groups) - 1:
            results: tuple[Value, ...] = tuple(c.nodes[-1].outputs[0] for c in chains)
        else:
            results = tuple(replace(v, name=f"{v.name}.all_reduce.{axis.name}") for v in values)
        like = next((n for n in chains[0].nodes if axis_of(n) == axis), near)
        attrs = {**like.attrs, "axis": axis.name}
        attrs |= {"group_size": axis.size, "group_stride": axis.stride}
        name = f"gradients.all_reduce.{axis.name}.{index}"
        if alone:
            kept = [n.name for n in chains[0].nodes if axis_of(n) == axis]
            name = kept[0] if kept else f"{values[0].name}.all_reduce.{axis.name}.backward"
        suffix = f"all_reduce.{axis.name}" if alone else f"bucket.{axis.name}"
        node = replace(
            near,
            name=name,
            module=near.module if alone else "",
            inputs=values,
            outputs=results,
            attrs=attrs,
            instances=tuple(f"{n}.{suffix}" for n in near.instances),
            instance_modules=near.instance_modules if alone else ("",) * len(near.instances),
        )
        made.append(node)
        values = results
    return made


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Joins the all-reduces of gradients."""
    return coalesce(graph)


PASS = Pass("buckets", 60, apply)
