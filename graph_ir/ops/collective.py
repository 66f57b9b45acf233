"""Collectives between the devices of one mesh axis: ordinary nodes of one rank's graph.

Attributes: `axis` (the mesh axis), `group_size`, `group_stride` (the group's ranks are r, r + stride,
r + 2 stride, ...); `split` of what takes a tensor apart (reduce_scatter, all_to_all, shard) and `concat` of
what puts one together (all_gather, all_to_all): the dim, and the products of its factors before and after
the one that is split; without either, parts are flat. `zigzag` names the one of the two whose parts are
zigzag ones, as `graph_ir.sharding` says. Operand and result are the rank's own tensors. `bytes_communicated`
is what the rank sends in a ring, which is also the least that any algorithm without help from the switch can
send (Thakur et al. 2005, doi:10.1177/1094342005051521).
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
    # A stage may hand on to another one on the same rank: a group of one.
    return size if n > 1 else 0


def _equation(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    """Each result has its operand's dims; one that is gathered or scattered is needed whole."""
    if "split" in attrs and "concat" in attrs:
        even = _exchange(inputs[0].shape, outputs[0].shape, attrs)
        return even or _uneven_exchange(inputs[0].shape, outputs[0].shape)
    sizes: dict[str, int] = {}
    fixed: set[str] = set()
    operands: list[Dims] = []
    results: list[Dims] = []
    place, *around = attrs.get("split") or attrs.get("concat") or (None,)
    for tag, (given, made) in enumerate(zip_longest(inputs, outputs)):
        if given is not None and made is not None and len(given.shape) != len(made.shape):
            # A flat part of a stored tensor, and the tensor.
            operands.append(_whole(given, f"t{tag}", sizes, fixed))
            results.append(_whole(made, f"r{tag}", sizes, fixed))
            continue
        shape = (given or made).shape
        dims: list[Dim] = [(f"t{tag}_{i}",) for i in range(len(shape))]
        sizes |= {f"t{tag}_{i}": n for i, n in enumerate(shape)}
        if given is not None:
            operands.append(tuple(dims))
        if made is None:
            continue
        for i, n in enumerate(made.shape):
            if n == shape[i] and i != place:
                continue
            before, after = f"t{tag}_{i}", f"r{tag}_{i}"
            major, minor = around if i == place else (1, 1)
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


def _uneven_exchange(given: Sequence[int], made: Sequence[int]) -> Equation:
    """An all-to-all whose messages differ in size: what changes hands is needed whole."""
    sizes: dict[str, int] = {}
    dims: list[list[Dim]] = [[], []]
    for i, (before, after) in enumerate(zip(given, made, strict=True)):
        names = (f"given{i}", f"made{i}") if i == 0 or before != after else (f"i{i}",) * 2
        sizes |= dict(zip(names, (before, after), strict=True))
        for side, name in zip(dims, names, strict=True):
            side.append((name,))
    fixed = frozenset(n for n in sizes if not n.startswith("i"))
    return Equation((tuple(dims[0]),), (tuple(dims[1]),), sizes, fixed, None)


def _exchange(
    given: Sequence[int], made: Sequence[int], attrs: Mapping[str, Any]
) -> Equation | None:
    """An all-to-all: `(p b) a -> b (p a)`. What one device sends another, b and a, can be split further.

    None if the parts are uneven.
    """
    parts = attrs["group_size"]
    (split, split_major, split_minor), (concat, major, minor) = attrs["split"], attrs["concat"]
    sizes = {f"i{i}": n for i, n in enumerate(given)}
    sizes |= {
        "p": parts,
        "q": parts,
        "b": given[split] // (split_major * split_minor * parts),
        "a": made[concat] // (major * minor * parts),
    }
    if given[split] != split_major * split_minor * parts * sizes["b"]:
        return None
    if made[concat] != major * minor * parts * sizes["a"]:
        return None
    operand: list[Dim] = [(f"i{i}",) for i in range(len(given))]
    result = list(operand)
    if split != concat:
        sizes |= {"m": split_major, "n": split_minor, "x": major, "y": minor}
        operand[split], result[split] = ("m", "p", "b", "n"), ("m", "b", "n")
        operand[concat], result[concat] = ("x", "a", "y"), ("x", "q", "a", "y")
    elif split_minor > minor:
        sizes |= {"m": split_major, "x": split_minor // minor // sizes["a"], "n": minor}
        operand[split], result[split] = (
            ("m", "p", "b", "x", "a", "n"),
            ("m", "b", "x", "q", "a", "n"),
        )
    else:
        sizes |= {"m": major, "x": split_major // major // sizes["a"], "n": split_minor}
        operand[split], result[split] = (
            ("m", "a", "x", "p", "b", "n"),
            ("m", "q", "a", "x", "b", "n"),
        )
    # A dim of size 1 has no name.
    dims = [tuple(tuple(n for n in d if sizes[n] > 1) for d in side) for side in (operand, result)]
    return Equation((dims[0],), (dims[1],), sizes, frozenset({"p", "q"}), None)


def _localize(node: Node, name: str, start: int, stop: int) -> dict[str, Any]:
    """The factors of a dim that is taken apart or put together shrink with the device's part of them."""
    size = {**node.equation.sizes, name: stop - start}
    split, concat = node.attrs.get("split"), node.attrs.get("concat")
    if split is None or concat is None:
        what = "concat" if split is None else "split"
        place = split or concat
        around = (size.get("major0", 1), size.get("minor0", 1))
        return {} if place is None else {what: (place[0], *around)}
    if "p" not in size:
        return {}
    m, n, x, a, b = (size[factor] for factor in "mnxab")
    if split[0] != concat[0]:
        return {"split": (split[0], m, n), "concat": (concat[0], x, size["y"])}
    if split[2] > concat[2]:
        return {"split": (split[0], m, x * a * n), "concat": (split[0], m * b * x, n)}
    return {"split": (split[0], m * a * x, n), "concat": (split[0], m, x * b * n)}


def _whole(tensor: TensorType, tag: str, sizes: dict[str, int], fixed: set[str]) -> Dims:
    names = [f"{tag}_{i}" for i in range(len(tensor.shape))]
    sizes.update(zip(names, tensor.shape, strict=True))
    fixed.update(names)
    return tuple((n,) for n in names)


def _ring_chunk(node: Node, whole: Any) -> Any:
    """The chunk that a rank works on; attribute `index` counts around the ring."""
    attrs = node.attrs
    size = node.outputs[0].type.shape[attrs["dim"]]
    first = attrs["index"] * size
    return whole.take(range(first, first + size), axis=attrs["dim"])


def _ring_join(node: Node, *chunks: Any) -> Any:
    """Chunks in the order in which they came, the rank's own (attribute `index`) first."""
    import numpy as np

    count, own = len(chunks), node.attrs["index"]
    order = [chunks[(own - i) % count] for i in range(count)]
    return np.concatenate(order, axis=node.attrs["dim"])


def _all_whole(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Mapping[str, Any]
) -> Equation:
    sizes: dict[str, int] = {}
    fixed: set[str] = set()
    operands = tuple(_whole(t, f"t{i}", sizes, fixed) for i, t in enumerate(inputs))
    results = tuple(_whole(t, f"r{i}", sizes, fixed) for i, t in enumerate(outputs))
    return Equation(operands, results, sizes, frozenset(fixed), None)


def _reduce_flops(node: Node) -> int:
    n = int(node.attrs["group_size"])
    return sum(v.type.elements for v in node.inputs) * (n - 1) // n


def _collective(name: str, flops: float | Callable[[Node], int] = 0) -> OpDef:
    return OpDef(
        name,
        "collective",
        _equation,
        flops=flops,
        engine="network",
        linear="jointly",
        localize=_localize,
    )


COLLECTIVES = (
    *("all_reduce", "all_gather", "reduce_scatter", "all_to_all"),
    *("collective_permute", "send", "recv"),
)

register(
    _collective("all_reduce", _reduce_flops),
    _collective("reduce_scatter", _reduce_flops),
    _collective("all_gather"),
    _collective("all_to_all"),
    # Everyone hands its tensor to the next of the group, the last one to the first (XLA's name).
    _collective("collective_permute"),
    _collective("send"),
    _collective("recv"),
    # One of the chunks that a ring works on, and the tensor whose chunks it wrote: no kernel of their own.
    OpDef(
        "ring_chunk",
        "data_movement",
        _all_whole,
        flops=0,
        engine="copy",
        evaluate=_ring_chunk,
        view_of=0,
    ),
    OpDef(
        "ring_join",
        "data_movement",
        _all_whole,
        flops=0,
        engine="none",
        bytes_read=lambda node: 0,
        bytes_written=lambda node: 0,
        evaluate=_ring_join,
    ),
    # A rank's own part of what it holds whole: no communication.
    OpDef(
        "shard",
        "data_movement",
        _equation,
        flops=0,
        engine="copy",
        bytes_read=lambda node: node.outputs[0].type.bytes,
        view_of=0,
        linear="jointly",
        localize=_localize,
    ),
)
