"""Ring attention: keys and values go round, and the device works on one block while the next one comes.

Where context parallelism gathers keys and values before attention, they are handed from device to device
instead: in p - 1 steps every block has been everywhere. The attention to each block is merged with what is
known so far. Backward the blocks go round again, and the gradients of keys and values with them, one step
more, until they are home (Liu et al. 2023, arXiv 2310.01889).

Under a causal mask a device has the chunks i and 2p - 1 - i of 2p. To a block from further ahead only its
second chunk has keys behind it, of one from further back only the first chunk of keys is behind its own:
half of every block but its own, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graph_ir.errors import MeshError
from graph_ir.graph import Graph, Node, Phase, Value
from graph_ir.sharding import ByRank
from graph_ir.tensor_type import DType, TensorType
from partitioner.mesh import MeshAxis
from partitioner.renumber import renumbered
from partitioner.strategies import Pass
from partitioner.strategies.buckets import axis_of
from partitioner.strategy import Strategy


@dataclass
class Emitter:
    """Makes the nodes that take the place of one node."""

    near: Node
    nodes: list[Node] = field(default_factory=list)

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        like: Sequence[Value],
        attrs: dict[str, Any],
        label: str,
        *,
        results: Sequence[Value] | None = None,
        phase: Phase | None = None,
    ) -> tuple[Value, ...]:
        """Adds a node whose results are of the types of `like`, or are `results`."""
        near = self.near
        name = f"{near.name}.{label}"
        made = results or [
            Value(
                f"{name}.{i}" if len(like) > 1 else name, v.type, count=near.count, shards=v.shards
            )
            for i, v in enumerate(like)
        ]
        self.nodes.append(
            replace(
                near,
                name=name,
                op=op,
                inputs=tuple(inputs),
                outputs=tuple(made),
                attrs=attrs,
                phase=phase or near.phase,
                instances=tuple(f"{n}.{label}" for n in near.instances),
            )
        )
        return tuple(made)

    def permute(self, values: Sequence[Value], axis: MeshAxis, label: str) -> tuple[Value, ...]:
        """Hands values to the next device of the ring, and gets those of the one before."""
        attrs = {
            "axis": axis.name,
            "group_size": axis.size,
            "group_stride": axis.stride,
            "during": self.near.during,
        }
        return self.emit("collective_permute", values, values, attrs, label, phase="communication")


def _block_attrs(node: Node, axis: MeshAxis, step: int, tokens: int) -> dict[str, Any]:
    """Attributes of the attention to the block that comes after some steps."""
    attrs = dict(node.attrs)
    if not attrs.get("causal"):
        return attrs
    chunk = tokens // 2
    attrs |= {"first_key": 0, "second_key": (2 * axis.size - 1) * chunk}
    attrs["by_rank"] = {
        **attrs.get("by_rank", {}),
        "first_key": (ByRank(axis.size, axis.stride, chunk, step),),
        "second_key": (ByRank(axis.size, axis.stride, -chunk, step),),
    }
    # Two triangles and a square of four chunk pairs; of another block two squares.
    attrs["causal_share"] = (2 * chunk + 1) / (4 * chunk) if step == 0 else 0.5
    return attrs


def _gathers(graph: Graph, node: Node, first: int) -> tuple[Node, Node] | None:
    """What gathers keys and values for an attention, if both go round the context-parallel group."""
    found = [graph.producers.get(v) for v in node.inputs[first : first + 2]]
    gathers = [n for n in found if n is not None and _in_ring(n, "all_gather")]
    if len(gathers) < 2 or any(graph.users[n.outputs[0]] != [node] for n in gathers):
        return None
    return gathers[0], gathers[1]


def _in_ring(node: Node, op: str) -> bool:
    return node.op == op and node.attrs["axis"] in ("cp", "cp_ring")


def _forward(node: Node, keys: Node, values: Node) -> list[Node]:
    axis = axis_of(keys)
    emitter = Emitter(node)
    query = node.inputs[0]
    own: tuple[Value, ...] = (keys.inputs[0], values.inputs[0])
    tokens = own[0].type.shape[2]
    known: tuple[Value, ...] = ()
    out, *sums = node.outputs
    if not sums:
        # Without a backward pass nobody else asks for the logarithms of the sums.
        kind = TensorType(out.type.shape[:-1], DType.FLOAT32)
        sums = [Value(f"{node.name}.sums", kind, count=out.count, shards=out.shards)]
    made = (out, *sums)
    for step in range(axis.size):
        block = own
        if step + 1 < axis.size:
            own = emitter.permute(block, axis, f"ring{step + 1}")
        last = step == axis.size - 1
        attrs = _block_attrs(node, axis, step, tokens)
        found = emitter.emit("attention", [query, *block], made, attrs, f"block{step}")
        if not known:
            known = found
            continue
        results = made if last else None
        operands = [*known, *found]
        known = emitter.emit("attention_merge", operands, made, {}, f"merge{step}", results=results)
    return emitter.nodes


def _backward(node: Node, keys: Node, values: Node, scatters: tuple[Node, Node]) -> list[Node]:
    axis = axis_of(keys)
    emitter = Emitter(node)
    grad, query, _, _, out, lse = node.inputs
    own: tuple[Value, ...] = (keys.inputs[0], values.inputs[0])
    tokens = own[0].type.shape[2]
    query_grad: Value | None = None
    passed: tuple[Value, ...] = ()
    for step in range(axis.size):
        block, last = own, step == axis.size - 1
        if not last:
            own = emitter.permute(block, axis, f"ring{step + 1}")
        arrived = emitter.permute(passed, axis, f"gradients{step}") if passed else ()
        operands = [grad, query, *block, out, lse]
        like = [node.outputs[0], *block]
        attrs = _block_attrs(node, axis, step, tokens)
        made, *passed_ = emitter.emit("attention_backward", operands, like, attrs, f"block{step}")
        if query_grad is None:
            query_grad, passed = made, tuple(passed_)
            continue
        results = [node.outputs[0]] if last else None
        (query_grad,) = emitter.emit(
            "add", [query_grad, made], [made], {}, f"query{step}", results=results
        )
        sums = [
            emitter.emit("add", [a, b], [b], {}, f"{what}{step}")[0]
            for what, a, b in zip(("key", "value"), arrived, passed_, strict=True)
        ]
        passed = tuple(sums)
    emitter.permute(passed, axis, f"gradients{axis.size}")
    # What was reduce-scattered is now here.
    final = tuple(s.outputs[0] for s in scatters)
    emitter.nodes[-1] = replace(emitter.nodes[-1], outputs=final)
    return emitter.nodes


def _scatters(graph: Graph, node: Node) -> tuple[Node, Node] | None:
    found = [graph.users.get(v, []) for v in node.outputs[1:]]
    if any(len(f) != 1 or not _in_ring(f[0], "reduce_scatter") for f in found) or len(found) < 2:
        return None
    return found[0][0], found[1][0]


def apply(graph: Graph, strategy: Strategy) -> Graph:
    """Takes the gathering of keys and values apart."""
    if "ring" not in strategy.context_parallel:
        return graph
    replaced: dict[Node, list[Node]] = {}
    missed = ""
    for node in graph.nodes:
        if node.op == "attention" and "parts" not in node.attrs:
            gathers = _gathers(graph, node, 1)
            if gathers is None or len(node.inputs) > 3:
                missed = missed or node.name
                continue
            replaced |= {g: [] for g in gathers}
            replaced[node] = _forward(node, *gathers)
        elif node.op == "attention_backward":
            gathers, scatters = _gathers(graph, node, 2), _scatters(graph, node)
            if gathers is None or scatters is None or len(node.inputs) > 6:
                continue
            replaced |= {n: [] for n in (*gathers, *scatters)}
            replaced[node] = _backward(node, *gathers, scatters)
    if not replaced and missed:
        raise MeshError(
            f"--context-parallel {strategy.context_parallel}: {missed} has a mask or keys that cannot go "
            "round; use --context-parallel allgather or ulysses"
        )
    return renumbered(graph, replaced)


PASS = Pass("rings", 80, apply)
