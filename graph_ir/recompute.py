"""Activation recomputation: which values of a repeated block the backward pass computes again.

`full` keeps only what enters a block. `selective` drops what is large and cheap: a product of two
activations that is larger than both together (attention scores), and whatever has its size and follows
from it without another product (softmax, dropout and its mask). This is the idea of Korthikanti et al.
2022 (arXiv 2205.05198, section 5), stated without naming attention.
"""

from __future__ import annotations

from collections.abc import Sequence

from graph_ir.backward import RecomputePolicy
from graph_ir.errors import OpboundError
from graph_ir.graph import Node, Value


def _all(body: Sequence[Node]) -> frozenset[Value]:
    return frozenset(v for node in body for v in node.outputs)


def _large_and_cheap(body: Sequence[Node]) -> frozenset[Value]:
    dropped: set[Value] = set()
    for node in body:
        if node.definition.kind == "contraction":
            activations = all(v.kind not in ("parameter", "buffer") for v in node.inputs)
            inputs = sum(v.type.elements for v in node.inputs)
            if activations and node.outputs[0].type.elements > inputs:
                dropped.update(node.outputs)
        elif dropped.intersection(node.inputs):
            dropped.update(node.outputs)
    return frozenset(dropped)


POLICIES: dict[str, RecomputePolicy | None] = {
    "none": None,
    "selective": _large_and_cheap,
    "full": _all,
}


def recompute_policy(name: str) -> RecomputePolicy | None:
    """The policy of that name.

    Raises:
        OpboundError: if there is none.
    """
    if name not in POLICIES:
        raise OpboundError(f"unknown recompute policy {name!r}; known: {', '.join(POLICIES)}")
    return POLICIES[name]
