"""Tensor parallelism: the inner axes are split.

An inner axis is one that a product with a weight makes and that is gone after a product with another
weight, without anything in between that needs it whole: attention heads, the feed-forward width, a
bottleneck's channels, the vocabulary. Splitting it is Megatron's column- then row-parallel pair. Where
several axes meet in one operator (heads and queries per head; channels along a chain of convolutions),
the set that covers most FLOPs is chosen.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations

from graph_ir.decompose import decompose
from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node, Value
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.mesh import MeshAxis
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.sequence import token_axes
from partitioner.strategy import Strategy

MIN_TABLE_SHARE = 0.1
"""A lookup table smaller than this share of the largest one (token types beside a vocabulary) is not worth
the all-reduce that a split of its rows costs."""


NORM_SHARE = 0.1
"""A reduction whose result is no larger a share of its operand may be exchanged."""

UNEVEN_FROM = 64
"""Rows per device from which the uneven rest (at most one row per device) is below 2 % of the work."""


@dataclass
class Candidate:
    """An axis that could be split, and what that would cover."""

    axis: Axis
    flops: int = 0
    """FLOPs of products with a weight that would be shared out."""
    makes: bool = False
    """A product with a weight results in it (column-parallel)."""
    contracts: bool = False
    """A product with a weight sums over it (row-parallel)."""
    looks_up: bool = False
    """Data picks rows of a large table along it (a vocabulary)."""
    normed: bool = False
    """Something in between reduces over it (a norm over all heads), which costs a small exchange."""
    nodes: set[Node] = field(default_factory=set)
    example: str = ""


def weights_of(graph: Graph) -> set[Value]:
    """Parameters, and what is computed from them alone: views, casts, dequantised weights."""
    found = {v for v in graph.inputs if v.kind in ("parameter", "buffer")}
    for node in graph.nodes:
        if node.inputs and node.phase == "forward" and found.issuperset(node.inputs):
            found.update(node.outputs)
    return found


def inner_axes(graph: Graph, axes: LogicalAxes) -> list[Candidate]:
    """All axes that tensor parallelism could split, most FLOPs first."""
    forward = [n for n in graph.nodes if n.during == "forward"]
    occurs: dict[Axis, list[Node]] = defaultdict(list)
    for node in forward:
        for axis in dict.fromkeys(a for found in axes.of_node(node).values() for a in found):
            occurs[axis].append(node)
    in_weights = dict.fromkeys(a for v in graph.parameters for a in axes.all_of(v))
    data, weights = _indices_from_data(graph), weights_of(graph)
    tables = [n.inputs[0] for n in forward if n.op == "gather" and n.inputs[0] in weights]
    table_bytes = MIN_TABLE_SHARE * max((v.type.bytes for v in tables), default=0)
    found = []
    for axis in in_weights:
        candidate = Candidate(axis)
        admitted = all(
            _admits(axes, node, candidate, weights, data, table_bytes) for node in occurs[axis]
        )
        if admitted and (candidate.flops or candidate.looks_up):
            found.append(candidate)
    return sorted(found, key=lambda c: (-c.flops, c.axis.index))


def _admits(
    axes: LogicalAxes,
    node: Node,
    candidate: Candidate,
    weights: set[Value],
    data: set[Value],
    table_bytes: float,
) -> bool:
    """Whether the node can run with the axis split, by reduction only over products with weights."""
    axis = candidate.axis
    rule = axes.rule(node, axis)
    if node.definition.kind == "collective":
        return rule is not None
    if rule is None:
        return node.definition.decompose is not None and not axis.blocked
    split_weight = any(
        v in weights and a is not None for v, a in zip(node.inputs, rule.inputs, strict=True)
    )
    if not all(rule.outputs):
        if node.definition.kind == "gather":
            large = node.inputs[0].type.bytes >= table_bytes
            table, index = node.inputs[:2]
            lookup = table in weights and rule.inputs[0] and index in data and large
            if not lookup and node.op != "nll_loss":
                return False
            candidate.looks_up |= bool(lookup)
        elif node.definition.kind == "contraction" and split_weight:
            candidate.contracts = True
        elif not node.origin:
            # A reduction that is no product with a weight (a norm's mean) costs an exchange per use; those
            # that a decomposed softmax is made of are always worth it.
            small = NORM_SHARE * sum(v.type.elements for v in node.inputs)
            if node.definition.kind != "reduction" or node.outputs[0].type.elements > small:
                return False
            candidate.normed = True
    elif node.definition.kind == "contraction" and split_weight:
        if not candidate.makes:
            candidate.example = node.name
        candidate.makes = True
        # An axis of the weight, the other operand and the result is one of many independent products
        # (experts, groups); a split of it is not a column split.
        if all(rule.inputs) and node.equation.is_matrix_product:
            return False
    if node.definition.kind == "contraction" and split_weight:
        candidate.flops += node.flops * node.count
        candidate.nodes.add(node)
    return True


def _indices_from_data(graph: Graph) -> set[Value]:
    """Integer inputs and what is moved, shifted or masked from them."""
    found = {v for v in graph.inputs if v.kind == "input" and not v.type.dtype.is_float}
    for node in graph.nodes:
        each = node.definition.kind in ("data_movement", "elementwise")
        if each and found.intersection(node.inputs):
            found.update(v for v in node.outputs if not v.type.dtype.is_float)
    return found


def choose(candidates: list[Candidate], parts: int) -> list[Candidate]:
    """The candidates to split: no two meet in one product, and together they cover most FLOPs.

    A vocabulary may split unevenly: its parts meet no other axis, and implementations pad it.
    """
    # The residual width would be reduced in every norm: an axis that meets one without norms is not split.
    clean = set[Node]().union(*(c.nodes for c in candidates if not c.normed))
    usable = [
        c
        for c in candidates
        if (c.axis.size % parts == 0 or (not c.contracts and c.axis.size >= UNEVEN_FROM * parts))
        and not (c.normed and c.nodes & clean)
    ]
    conflicts: dict[int, set[int]] = defaultdict(set)
    for i, j in combinations(range(len(usable)), 2):
        if usable[i].nodes & usable[j].nodes:
            conflicts[i].add(j)
            conflicts[j].add(i)
    chosen: list[int] = []
    for component in _components(len(usable), conflicts):
        chosen += _heaviest_independent(component, conflicts, [c.flops for c in usable])
    return [usable[i] for i in sorted(chosen)]


def _components(count: int, edges: dict[int, set[int]]) -> list[list[int]]:
    import networkx

    graph: networkx.Graph[int] = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((i, j) for i, others in edges.items() for j in others)
    return [sorted(c) for c in networkx.connected_components(graph)]


EXACT_SEARCH_LIMIT = 40


def _heaviest_independent(
    members: list[int], conflicts: dict[int, set[int]], weight: list[int]
) -> list[int]:
    """A heaviest set without conflicts: exact for small components, greedy beyond."""
    if len(members) <= EXACT_SEARCH_LIMIT:
        import networkx

        allowed: networkx.Graph[int] = networkx.Graph()
        for i in members:
            allowed.add_node(i, weight=weight[i] + 1)
        allowed.add_edges_from((i, j) for i, j in combinations(members, 2) if j not in conflicts[i])
        return list(networkx.max_weight_clique(allowed, weight="weight")[0])
    chosen: list[int] = []
    for i in sorted(members, key=lambda i: -weight[i]):
        if conflicts[i].isdisjoint(chosen):
            chosen.append(i)
    return chosen


def require_coverage(
    candidates: list[Candidate], chosen: list[Candidate], mesh_axis: MeshAxis, rows: int = 1
) -> None:
    """Raises if a column/row pair exists that no chosen axis covers because its size does not divide."""
    grid = f"{rows}x" if rows > 1 else ""
    covered = set().union(*(c.nodes for c in chosen)) if chosen else set()
    pairs = [c for c in candidates if c.makes and c.contracts and c.flops]
    missed = [c for c in pairs if c.axis.size % mesh_axis.size and not c.nodes & covered]
    if not missed:
        return
    worst = missed[0]
    works = [
        n
        for n in range(1, 2 * mesh_axis.size)
        if all(any(d.axis.size % n == 0 for d in pairs if d.nodes & c.nodes) for c in pairs)
    ]
    nearest = min(works, key=lambda n: abs(n - mesh_axis.size))
    raise MeshError(
        f"tp={grid}{mesh_axis.size} does not divide the {worst.axis.size} parts of the inner axis made "
        f"by {worst.example}; the nearest that works is tp={grid}{nearest}"
    )


def way_of_rows(graph: Graph, strategy: Strategy) -> str:
    """How a group with rows is split in two dims, by passes of their own; empty for one row.

    Without a choice it is `summa` in training, where a weight that is gathered serves many tokens, and
    `stationary` else.
    """
    if strategy.mesh.axis("tp_rows").size == 1:
        return ""
    trains = any(n.phase == "backward" for n in graph.nodes)
    return strategy.tensor_grid or ("summa" if trains else "stationary")


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits the inner axes over the mesh axis `tp`; the token axes elsewhere if asked for."""
    mesh_axis = strategy.mesh.axis("tp")
    if mesh_axis.size == 1 or way_of_rows(graph, strategy) == "summa":
        return graph
    axes = graph.axes
    candidates = inner_axes(graph, axes)
    chosen = choose(candidates, mesh_axis.size)
    require_coverage(candidates, chosen, mesh_axis)
    if not chosen:
        raise MeshError(
            f"tp={mesh_axis.size}: no axis of {graph.name or 'this graph'} can be split; sizes of its "
            f"inner axes: {', '.join(str(c.axis.size) for c in candidates) or 'none'}"
        )
    split = {c.axis for c in chosen}
    whole = decompose(
        graph,
        lambda node: (
            any(a in split for f in axes.of_node(node).values() for a in f)
            and all(
                axes.rule(node, a) is None
                for f in axes.of_node(node).values()
                for a in f
                if a in split
            )
        ),
    )
    if whole is not graph:
        axes = whole.axes
        split = {c.axis for c in choose(inner_axes(whole, axes), mesh_axis.size)}
    elsewhere = token_axes(whole, axes) if strategy.sequence_parallel else frozenset()
    # A decode step has one token, and nothing to split of it; an image model has no tokens at all.
    sequence = any("sequence" in v.dim_names for v in graph.inputs)
    if strategy.sequence_parallel and not elsewhere and not sequence:
        raise MeshError(
            f"--sequence-parallel: {graph.name or 'this graph'} has no token axis to split; leave it out"
        )
    uneven = [a for a in elsewhere if a.size % mesh_axis.size]
    if uneven:
        remedy = "leave it out"
        if sequence:
            remedy = f"use --sequence (of a generation --prompt-tokens) with a multiple of {mesh_axis.size}"
        raise MeshError(
            f"--sequence-parallel: tp={mesh_axis.size} does not divide the sequence of {uneven[0].size}; "
            f"{remedy}"
        )
    names = {n.name for n in graph.nodes}
    parts = frozenset(n for n in whole.nodes if n.name not in names)
    return split_graph(whole, axes, Plan(mesh_axis, frozenset(split), (elsewhere,), parts=parts))


PASS = Pass("tensor", 10, apply)
