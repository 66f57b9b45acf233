"""aten's views, copies, joins and lookups in graph_ir's words.

A reshape is free if the memory allows it as a view; otherwise it copies. The strides that decide are those
of the traced tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from graph_ir.errors import UnknownOperatorError
from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.torch_call import Call

Rule = Callable[[Call], Any]


@lru_cache(maxsize=8192)
def can_view(shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether memory of these strides can be read as another shape without a copy (torch's own answer)."""
    import torch

    try:
        torch.empty_strided(shape, strides, device="meta").view(new)
    except RuntimeError:
        return False
    return True


def as_shape(call: Call, value: Value, shape: Sequence[int], suffix: str = "") -> Value:
    """A free reshape."""
    new = tuple(shape)
    if value.type.shape == new:
        return value
    return call.emit("reshape", [value], [value.type.with_shape(new)], {"view": True}, suffix)[0]


def _reshape(call: Call) -> Value:
    source = call.value("self")
    if source.type.shape == call.type.shape:
        return source
    layout = call.layout()
    free = can_view(tuple(layout.shape), tuple(layout.stride()), call.type.shape)
    return call.one("reshape", [source], **({"view": True} if free else {}))


def _permute(perm: Callable[[Call, int], Sequence[int]]) -> Rule:
    def rule(call: Call) -> Value:
        source = call.value("self")
        rank = len(source.type.shape)
        order = tuple(p % max(rank, 1) for p in perm(call, rank))
        if order == tuple(range(rank)):
            return source
        return call.one("transpose", [source], perm=order, view=True)

    return rule


def _swapped(call: Call, rank: int) -> list[int]:
    first, second = (call["dim0"], call["dim1"]) if "dim0" in call.args else (0, 1)
    order = list(range(rank))
    if rank > 1:
        order[first], order[second] = order[second], order[first]
    return order


def _moved(call: Call, rank: int) -> list[int]:
    given = [call["source"], call["destination"]]
    source, target = ([g] if isinstance(g, int) else list(g) for g in given)
    source, target = [s % rank for s in source], [t % rank for t in target]
    rest = [i for i in range(rank) if i not in source]
    order = [-1] * rank
    for s, t in zip(source, target, strict=True):
        order[t] = s
    left = iter(rest)
    return [next(left) if o < 0 else o for o in order]


def _expand(call: Call) -> Value:
    source = call.value("self")
    if source.type.shape == call.type.shape:
        return source
    return call.one("expand", [source], view=True)


def _broadcast(call: Call) -> list[Value]:
    """`broadcast_tensors`: every operand in the common shape."""
    return [
        v if v.type.shape == t.shape else call.emit("expand", [v], [t], {"view": True})[0]
        for v, t in zip(call.sequence("tensors"), call.types, strict=True)
    ]


def slice_value(
    call: Call, source: Value, axis: int, start: int, length: int, step: int = 1, suffix: str = ""
) -> Value:
    """`length` elements along `axis`, as a view; the value itself if that is all of it."""
    shape = source.type.shape
    if length == shape[axis] and step == 1:
        return source
    rank = len(shape)
    attrs = {
        "starts": tuple(start if i == axis else 0 for i in range(rank)),
        "steps": tuple(step if i == axis else 1 for i in range(rank)),
        "view": True,
    }
    taken = (*shape[:axis], length, *shape[axis + 1 :])
    return call.emit("slice", [source], [source.type.with_shape(taken)], attrs, suffix)[0]


def _slice(call: Call) -> Value:
    source = call.value("self")
    axis = call.axis("dim", len(source.type.shape), 0)
    size = source.type.shape[axis]
    start, _, step = slice(call["start"], call["end"], call["step"] or 1).indices(size)
    return slice_value(call, source, axis, start, call.type.shape[axis], step)


def _narrow(call: Call) -> Value:
    source = call.value("self")
    axis = call.axis("dim", len(source.type.shape), 0)
    return slice_value(
        call, source, axis, int(call["start"]) % source.type.shape[axis], int(call["length"])
    )


def _select(call: Call) -> Value:
    source = call.value("self")
    axis = call.axis("dim", len(source.type.shape), 0)
    row = slice_value(
        call, source, axis, int(call["index"]) % source.type.shape[axis], 1, suffix="slice"
    )
    return as_shape(call, row, call.type.shape)


def _split(call: Call) -> tuple[Value, ...]:
    source = call.value("self")
    axis = call.axis("dim", len(source.type.shape), 0)
    if len(call.types) == 1:
        return (source,)
    return call.emit("split", [source], attrs={"axis": axis, "view": True})


def _unbind(call: Call) -> tuple[Value, ...]:
    source = call.value("self")
    axis = call.axis("dim", len(source.type.shape), 0)
    rows = [TensorType((*t.shape[:axis], 1, *t.shape[axis:]), t.dtype) for t in call.types]
    if len(rows) == 1:
        return (as_shape(call, source, call.type.shape),)
    pieces = call.emit("split", [source], rows, {"axis": axis, "view": True})
    return tuple(as_shape(call, p, t.shape) for p, t in zip(pieces, call.types, strict=True))


def _concat(call: Call) -> Value:
    pieces = [p for p in call.sequence("tensors") if p.type.elements]
    if len(pieces) == 1:
        return pieces[0]
    return call.one("concat", pieces, axis=call.axis("dim", len(call.type.shape), 0))


def _stack(call: Call) -> Value:
    axis = call.axis("dim", len(call.type.shape), 0)
    pieces = [
        as_shape(call, p, (*p.type.shape[:axis], 1, *p.type.shape[axis:]))
        for p in call.sequence("tensors")
    ]
    return call.one("concat", pieces, axis=axis)


def _repeat(call: Call) -> Value:
    """A broadcast over new dims (free), then a reshape that copies."""
    source = call.value("self")
    repeats = list(call["repeats"])
    shape = (1,) * (len(repeats) - len(source.type.shape)) + source.type.shape
    if all(r == 1 for r in repeats):
        return as_shape(call, source, shape)
    apart = [n for size in shape for n in (1, size)]
    wide = [n for r, size in zip(repeats, shape, strict=True) for n in (r, size)]
    return _spread(call, source, apart, wide)


def _repeat_interleave(call: Call) -> Value:
    if not isinstance(call["repeats"], int):
        raise UnknownOperatorError(
            f"{call.node.name}: repeat_interleave with a tensor of repeats has a size that depends on data; "
            f"give the number of repeats as an int"
        )
    source = call.value("self")
    repeats, shape = call["repeats"], source.type.shape
    if call["dim"] is None:
        source, shape = as_shape(call, source, (source.type.elements,)), (source.type.elements,)
    axis = call.axis("dim", len(shape), 0)
    apart = (*shape[: axis + 1], 1, *shape[axis + 1 :])
    return _spread(call, source, apart, (*shape[: axis + 1], repeats, *shape[axis + 1 :]))


def _spread(call: Call, source: Value, apart: Sequence[int], wide: Sequence[int]) -> Value:
    apart_value = as_shape(call, source, apart, "apart")
    (spread,) = call.emit(
        "expand", [apart_value], [source.type.with_shape(tuple(wide))], {"view": True}, "expand"
    )
    return call.one("reshape", [spread])


def _roll(call: Call) -> Value:
    value = call.value("self")
    shifts, axes = call["shifts"], call["dims"]
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [axes] if isinstance(axes, int) else list(axes)
    for shift, dim in zip(shifts, axes, strict=True):
        axis = dim % len(value.type.shape)
        size = value.type.shape[axis]
        cut = -shift % max(size, 1)
        if not cut:
            continue
        tail = slice_value(call, value, axis, cut, size - cut, suffix="tail")
        head = slice_value(call, value, axis, 0, cut, suffix="head")
        value = call.emit("concat", [tail, head], [value.type], {"axis": axis})[0]
    return value


_VIEWS = (
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "unsqueeze",
    "squeeze",
    "view_as",
    "reshape_as",
)

RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": _reshape for name in _VIEWS},
    "aten.transpose": _permute(_swapped),
    "aten.swapaxes": _permute(_swapped),
    "aten.t": _permute(lambda call, rank: range(rank)[::-1]),
    "aten.mT": _permute(lambda call, rank: [*range(rank - 2), rank - 1, rank - 2]),
    "aten.numpy_T": _permute(lambda call, rank: range(rank)[::-1]),
    "aten.permute": _permute(lambda call, rank: call["dims"]),
    "aten.movedim": _permute(_moved),
    "aten.expand": _expand,
    "aten.expand_as": _expand,
    "aten.broadcast_to": _expand,
    "aten.broadcast_tensors": _broadcast,
    "aten.slice": _slice,
    "aten.narrow": _narrow,
    "aten.select": _select,
    "aten.split": _split,
    "aten.split_with_sizes": _split,
    "aten.chunk": _split,
    "aten.tensor_split": _split,
    "aten.unbind": _unbind,
    "aten.cat": _concat,
    "aten.concat": _concat,
    "aten.concatenate": _concat,
    "aten.stack": _stack,
    "aten.repeat": _repeat,
    "aten.repeat_interleave": _repeat_interleave,
    "aten.roll": _roll,
    "aten.flip": lambda call: call.one("flip", [call.value("self")], axes=tuple(call["dims"])),
}
"""Rules by aten name."""
