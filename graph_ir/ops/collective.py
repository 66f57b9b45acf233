"""Collectives between the devices of one mesh axis: ordinary nodes of one rank's graph.

Attributes: `axis` (the mesh axis), `group_size`, `group_stride` (the group's ranks are r, r + stride,
r + 2 stride, ...), `dim` (the tensor dim that is split or gathered), `around` (sizes of that dim's factors
before and after the one that is split, where it is a compound dim). Operand and result are the rank's own
tensors. `bytes_communicated` is what the rank sends in a ring, which is also the least that any algorithm
without help from the switch can send (Thakur et al. 2005, doi:10.1177/1094342005051521).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from graph_ir.equation import Dim, Dims, Equation
from graph_ir.op_def import OpDef, register
from graph_ir.tensor_type import TensorType

if TYPE_CHECKING:
    from graph_ir.graph import Node


def message_bytes(node: Node) -> int:
    """Size of the whole buffer the collective works on, as NCCL counts it.

    all_reduce: the operand; all_gather: the gathered result; reduce_scatter: the operand before it is
    scattered; all_to_all, send, recv: the operand.
    """
    given = sum(v.type.bytes for v in node.inputs)
    made = sum(v.type.bytes for v in node.outputs)
    return max(given, made)


def sent_bytes(node: Node) -> int:
    """Bytes that one rank sends."""
    n = int(node.attrs["group_size"])
    size = message_bytes(node)
    if node.op == "all_reduce":
        return 2 * size * (n - 1) // n
    if node.op in ("all_gather", "reduce_scatter", "all_to_all"):
        return size * (n - 1) // n
    return size


def _equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    """Each result has its operand's dims; one that is gathered or scattered is needed whole."""
    sizes: dict[str, int] = {}
    fixed: set[str] = set()
    operands: list[Dims] = []
    results: list[Dims] = []
    for tag, (given, made) in enumerate(zip_longest(inputs, outputs)):
        shape = (given or made).shape
        dims: list[Dim] = [(f"t{tag}_{i}",) for i in range(len(shape))]
        sizes |= {f"t{tag}_{i}": n for i, n in enumerate(shape)}
        if given is not None:
            operands.append(tuple(dims))
        if made is None:
            continue
        for i, n in enumerate(made.shape):
            if n == shape[i] and i != attrs.get("dim"):
                continue
            before, after = f"t{tag}_{i}", f"r{tag}_{i}"
            major, minor = attrs.get("around", (1, 1))
            outer = (f"major{tag}",) if major > 1 else ()
            inner = (f"minor{tag}",) if minor > 1 else ()
            sizes |= {before: shape[i] // (major * minor), after: n // (major * minor)}
            sizes |= {f"major{tag}": major, f"minor{tag}": minor}
            fixed |= {before, after}
            dims[i] = (*outer, after, *inner)
            if given is not None:
                whole = list(operands[-1])
                whole[i] = (*outer, before, *inner)
                operands[-1] = tuple(whole)
        results.append(tuple(dims))
    # A send has no result and a recv no operand: nothing of theirs is shared with another name.
    return Equation(tuple(operands), tuple(results), sizes, frozenset(fixed), None)


def _reduce_flops(node: Node) -> int:
    n = int(node.attrs["group_size"])
    return sum(v.type.elements for v in node.inputs) * (n - 1) // n


def _collective(name: str, flops: float | Callable[[Node], int] = 0) -> OpDef:
    return OpDef(name, "collective", _equation, flops=flops, engine="network", linear="jointly")


COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send", "recv")

register(
    _collective("all_reduce", _reduce_flops),
    _collective("reduce_scatter", _reduce_flops),
    _collective("all_gather"),
    _collective("all_to_all"),
    _collective("send"),
    _collective("recv"),
)
