"""aten's lookups, masks, padding and resampling in graph_ir's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graph_ir.errors import UnknownOperatorError
from graph_ir.graph import Value
from graph_ir.tensor_type import DType
from importers.torch_call import Call, is_tensor
from importers.torch_movement import as_shape

Rule = Callable[[Call], Any]


def _pad(call: Call) -> Value:
    """Constant padding is a pad; the other modes look up each padded axis by a constant index."""
    mode = call["mode"] or "constant"
    source, widths = call.value("self"), [int(w) for w in call["pad"]]
    rank = len(source.type.shape)
    sides = {rank - 1 - i: (widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)}
    if source.type.shape == call.type.shape:
        return source
    if mode == "constant":
        before = tuple(sides.get(i, (0, 0))[0] for i in range(rank))
        return call.one("pad", [source], before=before, value=call["value"] or 0)
    for axis, (before_, after) in sorted(sides.items()):
        if not before_ and not after:
            continue
        size = source.type.shape[axis]
        shape = (*source.type.shape[:axis], size + before_ + after, *source.type.shape[axis + 1 :])
        index = call.constant(_padded_index(size, before_, after, mode), DType.INT64)
        (source,) = call.emit(
            "gather", [source, index], [source.type.with_shape(shape)], {"axis": axis}
        )
    return source


def _padded_index(size: int, before: int, after: int, mode: str) -> Any:
    """Which element each position of a padded axis repeats."""
    import numpy as np

    if mode == "replicate":
        return np.clip(np.arange(-before, size + after), 0, size - 1)
    kept = np.arange(size)[max(-before, 0) : size - max(-after, 0)]
    before, after = max(before, 0), max(after, 0)
    names = {"reflect": "reflect", "circular": "wrap"}
    return np.pad(kept, (before, after), mode=names[mode])  # type: ignore[call-overload]


def _triangle(keep_lower: bool) -> Rule:
    """`tril` and `triu`."""

    def rule(call: Call) -> Value:
        attrs = {"upper": not keep_lower, "diagonal": int(call["diagonal"] or 0)}
        return call.one("triangle", [call.value("self")], **attrs)

    return rule


def _scatter_slice(call: Call) -> Value:
    """`slice_scatter`, `select_scatter`: an in-place write in its functional form."""
    source, update = call.value("self"), call.value("src")
    axis = call.axis("dim", len(source.type.shape), 0)
    size = source.type.shape[axis]
    if call["index"] is not None:
        start, step = int(call["index"]) % size, 1
        update = as_shape(
            call, update, (*source.type.shape[:axis], 1, *source.type.shape[axis + 1 :])
        )
    else:
        start, _, step = slice(call["start"], call["end"], call["step"] or 1).indices(size)
    if update.type.shape == source.type.shape:
        return update
    return call.one("slice_update", [source, update], axis=axis, start=start, step=step)


def _gather(table: str, index: str, axis: str | None) -> Rule:
    def rule(call: Call) -> Value:
        source, picks = call.value(table), call.value(index)
        where = call.axis(axis, len(source.type.shape), 0) if axis else 0
        return call.one("gather", [source, picks], axis=where)

    return rule


def _index(call: Call) -> Value:
    """Advanced indexing: one index tensor is a lookup along its axis, several read single elements."""
    source, indices = call.value("self"), call["indices"]
    given = [(i, v) for i, v in enumerate(indices) if is_tensor(v)]
    values = [call.converter.materialize(v, call.node) for _, v in given]
    if len(given) == 1 and values[0].type.dtype is not DType.BOOL:
        return call.one("gather", [source, values[0]], axis=given[0][0])
    return call.one("gather_nd", [source, *values])


def _elements(record: str) -> Rule:
    """`gather` and `scatter`: one index per element of the result or of the updates."""

    def rule(call: Call) -> Value:
        operands = call.values(["self", "index", "src"])
        return call.one(record, operands, axis=call.axis("dim", len(operands[0].type.shape), 0))

    return rule


def _scatter_data(call: Call) -> Value:
    operands = call.values(["self", "index", "source", "tensor", "values"])
    for listed in ("indices",):
        if call[listed] is not None:
            operands[1:1] = [
                call.converter.materialize(v, call.node) for v in call[listed] if is_tensor(v)
            ]
    return call.one("scatter_nd", operands)


def _masked_scatter(call: Call) -> Value:
    """The source's elements in order where the mask holds: each looks up how many came before it."""
    base, mask, source = call.value("self"), call.value("mask"), call.value("source")
    if mask.type.shape != base.type.shape:
        wide = mask.type.with_shape(base.type.shape)
        (mask,) = call.emit("expand", [mask], [wide], {"view": True}, "mask")
    count = base.type.elements
    flat_mask = as_shape(call, mask, (count,), "flat_mask")
    numbers = flat_mask.type.with_dtype(DType.INT64)
    (order,) = call.emit("cumsum", [flat_mask], [numbers], {"axis": 0}, "order")
    (index,) = call.emit("sub", [order], [numbers], {"scalar": 1}, "index")
    (index,) = call.emit("clamp", [index], [numbers], {"min": 0}, "first")
    flat_source = as_shape(call, source, (source.type.elements,), "flat_source")
    taken = source.type.with_shape((count,))
    (rows,) = call.emit("gather", [flat_source, index], [taken], {"axis": 0}, "taken")
    return call.one("where", [mask, as_shape(call, rows, base.type.shape, "placed"), base])


def _as_strided(call: Call) -> Value:
    """Any strides over a tensor without gaps: each element is looked up by a constant index."""
    import numpy as np

    source = call.value("self")
    size, stride = tuple(call["size"]), tuple(call["stride"])
    start = int(call["storage_offset"] or 0)
    layout = call.layout()
    if not layout.is_contiguous():
        perm = tuple(sorted(range(layout.ndim), key=lambda axis: -layout.stride(axis)))
        layout = layout.permute(perm)
        shape = tuple(source.type.shape[axis] for axis in perm)
        (source,) = call.emit(
            "transpose",
            [source],
            [source.type.with_shape(shape)],
            {"perm": perm, "view": True},
            "memory_order",
        )
    if not layout.is_contiguous():
        raise UnknownOperatorError(
            f"{call.node.name}: as_strided of a tensor with gaps has no rule: add it to "
            f"_as_strided in importers/torch_lookup.py"
        )
    index = np.full(size, start, dtype=np.int64)
    for axis, (length, step) in enumerate(zip(size, stride, strict=True)):
        steps = np.arange(length) * step
        index = index + steps.reshape([-1 if i == axis else 1 for i in range(len(size))])
    line = as_shape(call, source, (source.type.elements,), "line")
    return call.one("gather", [line, call.constant(index, DType.INT64)], axis=0)


def _windows(call: Call) -> Value:
    """`im2col`: every window of an image as a column, looked up by a constant index."""
    import numpy as np

    image = call.value("self")
    *lead, height, width = image.type.shape
    (kh, kw), (dh, dw) = call["kernel_size"], call["dilation"]
    (ph, pw), (sh, sw) = call["padding"], call["stride"]
    if ph or pw:
        before = (*[0] * len(lead), ph, pw)
        shape = (*lead, height + 2 * ph, width + 2 * pw)
        padded = image.type.with_shape(shape)
        (image,) = call.emit("pad", [image], [padded], {"before": before, "value": 0}, "pad")
        height, width = shape[-2:]
    rows = (np.arange(0, height - dh * (kh - 1), sh), np.arange(kh) * dh)
    columns = (np.arange(0, width - dw * (kw - 1), sw), np.arange(kw) * dw)
    y = rows[1][:, None, None, None] + rows[0][None, None, :, None]
    x = columns[1][None, :, None, None] + columns[0][None, None, None, :]
    index = (y * width + x).reshape(kh * kw, -1)
    line = as_shape(call, image, (*lead, height * width), "line")
    taken = image.type.with_shape((*lead, *index.shape))
    where = {"axis": len(lead)}
    (found,) = call.emit("gather", [line, call.constant(index, DType.INT64)], [taken], where)
    return as_shape(call, found, call.type.shape)


def _histogram(call: Call) -> Value:
    return call.one("histogram", [call.value("self")])


def _interpolate(call: Call) -> Value:
    """Resampling; the operator's name says how (upsample_bicubic2d)."""
    name = str(call.node.target)
    mode = "nearest" if "nearest" in name else "cubic" if "cubic" in name else "linear"
    return call.one("interpolate", call.values(["input", "self"])[:1], mode=mode)


def _sample(call: Call) -> Value:
    """`grid_sample`: bilinear (0), nearest (1) or bicubic (2) at given positions."""
    mode = ("linear", "nearest", "cubic")[int(call["interpolation_mode"] or 0)]
    return call.one("interpolate", [call.value("input"), call.value("grid")], mode=mode)


_UPSAMPLES = (
    "nearest1d",
    "nearest2d",
    "nearest3d",
    "linear1d",
    "bilinear2d",
    "trilinear3d",
    "bicubic2d",
)


RULES: Mapping[str, Rule] = {
    **{f"aten.upsample_{kind}": _interpolate for kind in _UPSAMPLES},
    **{f"aten._upsample_{kind}_aa": _interpolate for kind in ("bilinear2d", "bicubic2d")},
    "aten.grid_sampler": _sample,
    "aten.grid_sampler_2d": _sample,
    "aten.grid_sampler_3d": _sample,
    "aten.pad": _pad,
    "aten.constant_pad_nd": _pad,
    "aten.tril": _triangle(keep_lower=True),
    "aten.triu": _triangle(keep_lower=False),
    "aten.embedding": _gather("weight", "indices", None),
    "aten.index_select": _gather("self", "index", "dim"),
    "aten.index": _index,
    "aten.gather": _elements("gather_elements"),
    "aten.take_along_dim": _elements("gather_elements"),
    "aten.scatter": _elements("scatter_elements"),
    "aten.scatter_add": _elements("scatter_elements"),
    "aten.scatter_reduce": _elements("scatter_elements"),
    "aten.masked_scatter": _masked_scatter,
    "aten.as_strided": _as_strided,
    "aten.im2col": _windows,
    "aten.slice_scatter": _scatter_slice,
    "aten.select_scatter": _scatter_slice,
    "aten.index_put": _scatter_data,
    "aten.index_add": _scatter_data,
    "aten.index_copy": _scatter_data,
    "aten.histc": _histogram,
    "aten.bincount": _histogram,
}
"""Rules by aten name."""
