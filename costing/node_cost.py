"""Cost of a graph's node: its equation says whether it is a GEMM, its record the FLOPs and bytes.

Nodes with equal signatures cost the same and are priced once, however many layers repeat them. A
group of nodes that becomes one kernel (a bias added in a GEMM's epilogue, a fused chain) is
launched once, and its inner tensors cost no traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from costing.attention import AttentionShape, attention_cost
from costing.collectives import collective_cost
from costing.convolution import splits_contraction, winograd_node_cost
from costing.engine import MATRIX, VECTOR
from costing.fabric import spans
from costing.gemm import gemm_cost
from costing.hardware import Hardware
from costing.op_cost import LATENCY, UNKNOWN, OpCost, largest, memory_bound
from costing.roofline import kernel_op_cost, streaming_cost
from graph_ir.graph import Node, Value
from graph_ir.ops.collective import message_bytes, sent_bytes
from graph_ir.tensor_type import DType


class NodePricer:
    """Prices nodes on one device, each distinct one once.

    Args:
        hardware: the device.
        eager: whether operators run as an eager framework's kernels, of which some have several
            (`graph_ir.eager_kernels`); otherwise each is one.
    """

    def __init__(self, hardware: Hardware, eager: bool = True) -> None:
        self.hardware = hardware
        self.eager = eager
        self._known: dict[Any, OpCost] = {}

    def cost(self, node: Node) -> OpCost:
        """Cost of one application of a node as a kernel of its own.

        Raises:
            HardwareError: if the device cannot run it (no engine for its dtype, no link).
        """
        found = self._known.get(node.signature)
        if found is None:
            found = self._known[node.signature] = node_cost(self.hardware, node, self.eager)
        return found

    def group_cost(self, nodes: Sequence[Node], inner: frozenset[Value]) -> list[OpCost]:
        """Costs of nodes that run as one kernel, in their order; their sum is the kernel's cost.

        Args:
            nodes: in topological order.
            inner: values that never reach main memory, because only nodes of the group use them.
        """
        if len(nodes) == 1:
            return [self.cost(nodes[0])]
        alone = [self.cost(node) for node in nodes]
        kernel = self._kernel(nodes, alone, inner)
        total_s = sum(cost.time_s for cost in alone)
        shares = []
        outer = _outer_bytes(nodes, inner)
        for cost, (read, written) in zip(alone, outer, strict=True):
            # The kernel's time is told apart by what each node would take alone.
            part = cost.time_s / total_s if total_s > 0 else 1 / len(nodes)
            shares.append(
                replace(
                    kernel,
                    flops=cost.flops,
                    bytes_read=read,
                    bytes_written=written,
                    time_s=kernel.time_s * part,
                    terms={name: seconds * part for name, seconds in kernel.terms.items()},
                )
            )
        return shares

    def _kernel(
        self, nodes: Sequence[Node], alone: Sequence[OpCost], inner: frozenset[Value]
    ) -> OpCost:
        outer = _outer_bytes(nodes, inner)
        read, written = sum(r for r, _ in outer), sum(w for _, w in outer)
        heavy = [i for i, node in enumerate(nodes) if _is_tiled(node)]
        if not heavy:
            return streaming_cost(
                self.hardware, _compute_dtype(nodes[0]), sum(c.flops for c in alone), read, written
            )
        main = alone[heavy[0]]
        level = self.hardware.main_memory
        extra = (read + written) - (main.bytes_read + main.bytes_written)
        seconds = extra / level.sustained_bytes_per_s
        name = memory_bound(level.name)
        first_byte = level.latency_s
        terms = {**main.terms, name: max(main.terms.get(name, 0.0) + seconds, first_byte)}
        floor = self.hardware.launch.device_latency_s + max(terms.values())
        rest = sum((alone[i].time_s for i in heavy[1:]), 0.0)
        return replace(
            main,
            time_s=max(main.time_s + max(seconds, 0.0), floor) + rest,
            terms=terms,
            bound=largest(terms),
        )


def node_cost(hardware: Hardware, node: Node, eager: bool = True) -> OpCost:
    """Prices one application of a node; see `NodePricer` for a graph of them."""
    definition = node.definition
    if definition.kind == "opaque":
        return _unknown(hardware, node)
    engine = definition.engine_of(node)
    if engine == "none":
        return OpCost(terms={LATENCY: 0.0})
    if definition.kind == "collective":
        return _collective(hardware, node)
    if node.op in ("attention", "attention_backward"):
        return _attention(hardware, node)
    if eager and definition.eager_kernels is not None:
        return _one_by_one(hardware, node, definition.eager_kernels(node))
    # A product of a matrix and a vector has no reuse for a matrix engine, but the tiles of its kernel
    # decide how many processors draw from memory, so it is priced as a GEMM of one row too.
    product = node.equation.gemm if definition.kind == "contraction" else None
    if product is None:
        kind = MATRIX if engine == MATRIX else VECTOR
        return streaming_cost(
            hardware,
            _compute_dtype(node),
            node.flops,
            node.bytes_read,
            node.bytes_written,
            kind=kind,
            executed_flops=node.flops * _executed(node),
        )
    tiled = _gemm(hardware, node)
    if product.batch == 1:
        winograd = winograd_node_cost(hardware, node)
        return tiled if winograd is None else min(tiled, winograd, key=lambda c: c.time_s)
    # Many small products (depthwise convolution, one query per head) also have vector kernels.
    plain = streaming_cost(
        hardware, _compute_dtype(node), node.flops, node.bytes_read, node.bytes_written
    )
    return min(tiled, plain, key=lambda cost: cost.time_s)


def _one_by_one(hardware: Hardware, node: Node, kernels: Sequence[tuple[int, int]]) -> OpCost:
    """Kernels that stream their operands, one after the other; the last is taken to compute."""
    dtype = _compute_dtype(node)
    flops = [0] * (len(kernels) - 1) + [node.flops]
    costs = [
        streaming_cost(hardware, dtype, work, read, written)
        for work, (read, written) in zip(flops, kernels, strict=True)
    ]
    total = costs[0]
    for cost in costs[1:]:
        total = total + cost
    return total


def _unknown(hardware: Hardware, node: Node) -> OpCost:
    """Without a record only the operands are known: their stream is the least that it can take.

    The bound stays `unknown`, also in sums: what it computes is not counted.
    """
    stream = streaming_cost(hardware, _compute_dtype(node), 0, node.bytes_read, node.bytes_written)
    return replace(
        stream, bound=UNKNOWN, engine="none", utilization=0.0, terms={UNKNOWN: stream.time_s}
    )


def _outer_bytes(nodes: Sequence[Node], inner: frozenset[Value]) -> list[tuple[int, int]]:
    """(read, written) of each node in main memory: inner values never, outer ones read once."""
    seen = set(inner)
    found = []
    for node in nodes:
        read, written = node.bytes_read, node.bytes_written
        read -= sum(v.type.bytes for v in dict.fromkeys(node.inputs) if v in seen)
        written -= sum(v.type.bytes for v in node.outputs if v in inner)
        seen.update(node.inputs)
        found.append((max(read, 0), max(written, 0)))
    return found


def _is_tiled(node: Node) -> bool:
    if node.definition.is_view(node):
        return False
    kind = node.definition.kind
    product = kind == "contraction" and node.equation.gemm is not None
    return product or kind in ("attention", "collective")


def _executed(node: Node) -> float:
    rule = node.definition.executed_fraction
    return 1.0 if rule is None else rule(node)


def _compute_dtype(node: Node) -> DType:
    """The widest float among operands and results, else the widest of any kind."""
    types = [v.type.dtype for v in (*node.inputs, *node.outputs)]
    floats = [dtype for dtype in types if dtype.is_float]
    return max(floats or types, key=lambda dtype: dtype.bits)


def _gemm(hardware: Hardware, node: Node) -> OpCost:
    shape = node.equation.gemm
    if shape is None:
        raise ValueError(f"{node.name} is not a product")
    dtype = max((v.type.dtype for v in node.inputs), key=lambda d: d.bits)
    engine = hardware.engine_for(MATRIX, dtype)
    kernel = gemm_cost(
        hardware,
        dtype,
        shape.m,
        shape.n,
        shape.k,
        shape.batch,
        out_dtype=node.outputs[0].type.dtype,
        a_bytes=node.inputs[0].type.bytes,
        b_bytes=node.inputs[1].type.bytes,
        splits=MATRIX in engine.kinds or splits_contraction(node),
    )
    return kernel_op_cost(
        hardware,
        engine,
        dtype,
        kernel,
        flops=node.flops,
        executed_flops=node.flops,
        bytes_read=node.bytes_read,
        bytes_written=node.bytes_written,
    )


def _attention(hardware: Hardware, node: Node) -> OpCost:
    size = node.equation.sizes
    backward = node.op == "attention_backward"
    query = node.inputs[1] if backward else node.inputs[0]
    dtype = query.type.dtype
    # A device's share of the queries, taken from both ends, sees a known part of the keys on average.
    share = node.attrs.get("causal_share")
    kernel = attention_cost(
        hardware,
        dtype,
        AttentionShape(
            batch=size["b"] * size.get("w", 1) * size.get("p", 1),
            heads=size["g"] * size.get("r", 1),
            kv_heads=size["g"],
            queries=size["s"],
            keys=size["t"] if share is None else max(1, round(size["t"] * share)),
            head_dim=size["d"],
            value_dim=size["e"],
        ),
        causal=bool(node.attrs.get("causal")) and share is None,
        backward=backward,
    )
    return kernel_op_cost(
        hardware,
        hardware.engine_for(MATRIX, dtype),
        dtype,
        kernel,
        flops=node.flops,
        executed_flops=node.flops * _executed(node),
        bytes_read=node.bytes_read,
        bytes_written=node.bytes_written,
    )


def _collective(hardware: Hardware, node: Node) -> OpCost:
    size, stride = node.attrs["group_size"], node.attrs.get("group_stride", 1)
    cost = collective_cost(hardware, node.op, message_bytes(node), size, stride)
    terms = {name: float(seconds[0]) for name, seconds in cost.terms.items()}
    terms[LATENCY] = float(cost.latency_s[0])
    bound = largest(terms)
    time_s = float(cost.time_s[0])
    used_s = float(cost.nominal_s[bound][0]) if bound in cost.nominal_s else terms[LATENCY]
    return OpCost(
        flops=node.flops,
        bytes_read=node.bytes_read,
        bytes_written=node.bytes_written,
        bytes_communicated=sent_bytes(node),
        time_s=time_s,
        bound=bound,
        engine="network",
        utilization=min(used_s / time_s, 1.0) if time_s > 0 else 0.0,
        terms=terms,
        processors_taken=max(
            (span.link.processor_share for span in spans(hardware, size, stride)), default=0.0
        ),
        link_bytes={name: float(moved[0]) for name, moved in cost.link_bytes.items()},
    )
