"""Context parallelism: the tokens are split everywhere, in attention too.

Attention needs all keys and values at once. There are three ways (`--context-parallel`):

- `ulysses`: its heads are split instead of the tokens, so an all-to-all stands before and after it
  (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509);
- `allgather`: it splits its queries and gathers keys and values, as Llama 3 was trained (Grattafiori et
  al. 2024, arXiv 2407.21783, section 3.3.2);
- `ring`: as `allgather`, but the blocks of keys and values go round from device to device while the device
  works on the block before (Liu et al. 2023, arXiv 2310.01889); `rings.py` takes the gathering apart.

`ulysses:N+ring` does both: N neighbours exchange heads, and the blocks go round N devices apart (Fang and
Zhao 2024, arXiv 2405.07719). Without a choice it is ulysses where the heads divide, else allgather.
Under a causal mask each device takes its queries from both ends of the sequence. Weights are whole on every
device; their gradients contract the tokens, so an all-reduce of gradients follows.

A decode step has one token: there the cached tokens are split (`cached_tokens.py`), in whatever way its
prefill splits them.
"""

from __future__ import annotations

import re

from graph_ir.errors import MeshError, did_you_mean
from graph_ir.graph import Graph, Node
from graph_ir.logical_axes import Axis, LogicalAxes
from partitioner.mesh import MeshAxis
from partitioner.placements import Plan
from partitioner.propagate import split_graph
from partitioner.strategies import Pass
from partitioner.strategies.cached_tokens import split_cached_tokens
from partitioner.strategies.data import batch_axes, reordered_axes
from partitioner.strategies.late_gathers import gathered_late
from partitioner.strategies.sequence import token_axes
from partitioner.strategy import Strategy

WAYS = ("ulysses", "allgather", "ring")


def ways_of(text: str, mesh_axis: MeshAxis) -> list[tuple[str, MeshAxis]]:
    """What `--context-parallel` means: which way on which part of the mesh axis, the outer part first.

    Raises:
        MeshError: if it means nothing, or does not fit the axis.
    """
    if not text or text in WAYS:
        return [(text, mesh_axis)]
    match = re.fullmatch(r"ulysses:(\d+)\+ring", text)
    if match is None:
        raise MeshError(
            f"--context-parallel {text!r}: {did_you_mean(text, WAYS)}; "
            "both together are written ulysses:N+ring"
        )
    degree, size, stride = int(match[1]), mesh_axis.size, mesh_axis.stride
    if degree < 2 or size % degree or size == degree:
        raise MeshError(
            f"--context-parallel {text}: cp={size} cannot be {degree} times a ring of at least 2; "
            "choose N as a divisor of cp between 1 and cp"
        )
    inner = MeshAxis(f"{mesh_axis.name}_ulysses", degree, stride)
    return [
        ("ring", MeshAxis(f"{mesh_axis.name}_ring", size // degree, stride * degree)),
        ("ulysses", inner),
    ]


def _instead(
    node: Node, axes: LogicalAxes, avoid: frozenset[Axis], parts: int
) -> tuple[list[Axis], list[Axis]]:
    """Axes that every result of a node keeps: (those that split evenly, the others)."""
    even: list[Axis] = []
    uneven: list[Axis] = []
    for axis in dict.fromkeys(a for found in axes.of_node(node).values() for a in found):
        rule = axes.rule(node, axis)
        if axis not in avoid and rule is not None and None not in rule.outputs:
            (uneven if axis.size % parts else even).append(axis)
    return even, uneven


def _require_even(tokens: frozenset[Axis], cp: int, parts: int) -> None:
    for axis in tokens:
        if axis.size % parts:
            ends = ", of which each device takes two chunks" if parts > cp else ""
            raise MeshError(
                f"cp={cp} does not divide the sequence of {axis.size}{ends}; "
                f"use --sequence (of a generation --prompt-tokens) with a multiple of {parts}"
            )


def _split(
    graph: Graph,
    axes: LogicalAxes,
    tokens: frozenset[Axis],
    way: str,
    mesh_axis: MeshAxis,
    tensor_parallel: int,
) -> Graph:
    cp = mesh_axis.size
    _require_even(tokens, cp, cp)
    avoid = tokens | batch_axes(graph, axes)
    heads: set[Axis] = set()
    zigzag = False
    for node in graph.nodes:
        own = {a for found in axes.of_node(node).values() for a in found}
        blocked = node.definition.kind in ("attention", "contraction") and all(
            axes.rule(node, a) is None for a in own & tokens
        )
        if not own & tokens or not blocked:
            continue
        # Tensor parallelism splits the same heads further.
        even, uneven = _instead(node, axes, avoid, cp * tensor_parallel)
        queries = any(axes.query_rule(node, a) is not None for a in own & tokens)
        if way in ("allgather", "ring") or (not even and queries and not way):
            if not queries:
                raise MeshError(
                    f"--context-parallel {way or 'allgather'}: {node.name} is no fused attention, whose "
                    "queries can be split; use --execution fused, or --context-parallel ulysses"
                )
            zigzag |= bool(node.attrs.get("causal"))
        elif even:
            heads.add(even[0])
        elif uneven:
            several = f" times tp={tensor_parallel}" if tensor_parallel > 1 else ""
            raise MeshError(
                f"cp={cp}{several} does not divide the {uneven[0].size} heads of {node.name}, "
                "which needs all tokens at once; use a smaller cp, or --context-parallel allgather"
            )
    if zigzag:
        _require_even(tokens, cp, 2 * cp)
    own_order = reordered_axes(graph, axes, tokens, cp)
    plan = Plan(
        mesh_axis,
        own_order,
        elsewhere=(tokens, frozenset(heads)),
        queries=True,
        zigzag=zigzag,
        batch=tokens | own_order,
    )
    return split_graph(graph, axes, plan)


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Splits the tokens over the mesh axis `cp`."""
    mesh_axis = strategy.mesh.axis("cp")
    if mesh_axis.size == 1:
        return graph
    tensor_parallel = strategy.mesh.axis("tp").size
    for way, part in ways_of(strategy.context_parallel, mesh_axis):
        axes = graph.axes
        tokens = token_axes(graph, axes)
        if tokens:
            graph = gathered_late(
                _split(graph, axes, tokens, way, part, tensor_parallel), part.name
            )
            continue
        found = split_cached_tokens(graph, mesh_axis)
        if found is None:
            raise MeshError(
                f"cp={mesh_axis.size}: {graph.name or 'this graph'} has no tokens to split, and attends to "
                "no cached ones; leave cp out"
            )
        return found
    return graph


# Before tensor parallelism, which splits what is left of the tokens and of the heads.
PASS = Pass("context", 5, apply, axis="cp")
