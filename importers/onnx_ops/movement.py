"""Operators that rearrange, pick or place elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_ir.errors import ModelFileError
from graph_ir.graph import Value
from graph_ir.tensor_type import TensorType
from importers.onnx_ops.emitter import Emitter, known_ints, known_number, required, rule
from importers.onnx_values import OnnxNode


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The same elements in the same order: nothing moves."""
    return [e.reshape(node, e.at(node, 0), e.result_type(node).shape, "")]


@rule("Identity")
def identity(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """The operand itself."""
    return [e.at(node, 0)]


@rule("Transpose")
def transpose(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Without `perm` the dims are reversed. ONNX tensors have no strides, so it is a copy."""
    x = e.at(node, 0)
    perm = node.attributes.get("perm") or list(range(len(x.type.shape)))[::-1]
    return [e.transpose(node, x, perm, "")]


@rule("Concat")
def concat(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Along `axis` (before opset 4: 1 if not given)."""
    out = e.result_type(node)
    axis = node.attributes.get("axis", 1) % len(out.shape)
    operands = [v for v in e.operands(node) if v.type.elements or not out.elements]
    if len(operands) == 1:
        return operands
    return [e.emit(node, "concat", operands, out, {"axis": axis})]


@rule("ConcatFromSequence")
def concat_sequence(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Concatenates, or stacks along a new dim."""
    out = e.result_type(node)
    axis = node.attributes["axis"]
    operands = e.operands(node)
    if node.attributes["new_axis"]:
        row = (*out.shape[:axis], 1, *out.shape[axis + 1 :])
        operands = [e.reshape(node, v, row, f"part{i}") for i, v in enumerate(operands)]
    if len(operands) == 1:
        return operands
    return [e.emit(node, "concat", operands, out, {"axis": axis})]


@rule("Split")
def split(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Pieces along `axis`; a result that nobody reads is cut off all the same."""
    x = e.at(node, 0)
    types = [e.result_type(node, i) for i in range(len(node.outputs))]
    axis = node.attributes.get("axis", 0) % len(x.type.shape)
    return list(e.emit_all(node, "split", [x], types, {"axis": axis}))


@rule("Slice")
def slice_(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Starts and steps per dim, where they are known; the result's shape is known in any case."""
    x, out = e.at(node, 0), e.result_type(node)
    if out.shape == x.type.shape:
        steps = node.attributes.get("steps") or known_ints(node.input(4)) or ()
        if all(s == 1 for s in steps):
            return [x]
    starts, steps = _slice_arguments(node, x.type.shape)
    return [e.emit(node, "slice", [x], out, {"starts": starts, "steps": steps})]


def _slice_arguments(
    node: OnnxNode, shape: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = len(shape)
    first = node.attributes.get("starts") or known_ints(node.input(1)) or ()
    axes = node.attributes.get("axes") or known_ints(node.input(3)) or tuple(range(len(first)))
    strides = known_ints(node.input(4)) or (1,) * len(first)
    starts, steps = [0] * rank, [1] * rank
    for start, axis, step in zip(first, axes, strides, strict=False):
        size = shape[axis]
        start = start + size if start < 0 else start
        starts[axis] = max(0, min(start, size - 1 if step < 0 else size))
        steps[axis] = step
    return tuple(starts), tuple(steps)


@rule("Expand")
def expand(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Broadcasts to a larger shape."""
    x, out = e.at(node, 0), e.result_type(node)
    return [x if x.type.shape == out.shape else e.emit(node, "expand", [x], out)]


@rule("Tile")
def tile(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Repeats: a broadcast along new dims, then a reshape."""
    x, out = e.at(node, 0), e.result_type(node)
    if x.type.shape == out.shape:
        return [x]
    old = x.type.shape
    repeats = [o // max(n, 1) for o, n in zip(out.shape, old, strict=False)]
    if len(repeats) != len(old) or any(
        r * n != o for r, n, o in zip(repeats, old, out.shape, strict=True)
    ):
        return [e.emit(node, "gather_nd", [x, x], out)]
    split_shape = tuple(s for n in old for s in (1, n))
    wide_shape = tuple(s for r, n in zip(repeats, old, strict=True) for s in (r, n))
    parts = e.reshape(node, x, split_shape, "parts")
    wide = e.emit(node, "expand", [parts], out.with_shape(wide_shape), None, "repeat")
    return [e.reshape(node, wide, out.shape, "")]


@rule("Pad")
def pad(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Elements in front of each dim, where known; the result's shape is known in any case."""
    x, out = e.at(node, 0), e.result_type(node)
    if x.type.shape == out.shape:
        return [x]
    pads = node.attributes.get("pads") or node.attributes.get("paddings")
    pads = pads or known_ints(node.input(1)) or ()
    rank = len(out.shape)
    axes = known_ints(node.input(3)) or tuple(range(len(pads) // 2))
    before = [0] * rank
    for axis, count in zip(axes, pads[: len(pads) // 2], strict=False):
        before[axis] = count
    return [e.emit(node, "pad", [x], out, {"before": tuple(before)})]


@rule("Crop", "CenterCropPad")
def crop(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Cuts a border off (or adds one)."""
    x, out = e.at(node, 0), e.result_type(node)
    if any(o > n for o, n in zip(out.shape, x.type.shape, strict=True)):
        return [e.emit(node, "pad", [x], out)]
    border = node.attributes.get("border", (0, 0, 0, 0))
    starts = (*[0] * (len(out.shape) - 2), border[1], border[0])[-len(out.shape) :]
    steps = (1,) * len(out.shape)
    return [e.emit(node, "slice", [x], out, {"starts": tuple(starts), "steps": steps})]


@rule("Gather")
def gather(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Rows of a table (or any axis) by index. One known index is a slice."""
    table, out = e.at(node, 0), e.result_type(node)
    axis = node.attributes.get("axis", 0) % len(table.type.shape)
    index = required(node, 1)
    picked = known_ints(index)
    if picked is not None and len(picked) == 1 and required(node, 0).origin != "weight":
        starts = [0] * len(table.type.shape)
        starts[axis] = picked[0] % max(table.type.shape[axis], 1)
        row = (*table.type.shape[:axis], 1, *table.type.shape[axis + 1 :])
        attrs = {"starts": tuple(starts), "steps": (1,) * len(starts)}
        piece = table
        if row != table.type.shape:
            piece = e.emit(node, "slice", [table], table.type.with_shape(row), attrs, "")
        return [e.reshape(node, piece, out.shape)]
    return [e.emit(node, "gather", [table, e.operand(index)], out, {"axis": axis})]


@rule("GatherElements")
def gather_elements(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """One element per index along `axis`."""
    x = e.at(node, 0)
    axis = node.attributes.get("axis", 0) % max(len(x.type.shape), 1)
    operands = [x, e.at(node, 1)]
    return [e.emit(node, "gather_elements", operands, e.result_type(node), {"axis": axis})]


@rule("ScatterElements", "Scatter")
def scatter_elements(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A copy with elements replaced along `axis`."""
    operands = e.operands(node)
    axis = node.attributes.get("axis", 0) % max(len(operands[0].type.shape), 1)
    return [e.emit(node, "scatter_elements", operands, e.result_type(node), {"axis": axis})]


@rule("GatherND")
def gather_nd(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Slices by index tuples."""
    return [e.emit(node, "gather_nd", e.operands(node), e.result_type(node))]


@rule("ScatterND", "TensorScatter")
def scatter_nd(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """A copy with slices replaced at index tuples."""
    return [e.emit(node, "scatter_nd", e.operands(node), e.result_type(node))]


@rule("NonZero", "Compress", "Unique", "OneHot", "ReverseSequence")
def data_dependent(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """What is moved where depends on the data: operands and results count by their bytes."""
    present = [i for i, v in enumerate(node.outputs) if v is not None]
    operands = e.operands(node)
    if len(operands) == 1:
        operands = operands * 2  # the record reads a table and an index: here the data is both
    types = [e.result_type(node, i) for i in present]
    found = dict(zip(present, e.emit_all(node, "gather_nd", operands, types), strict=True))
    return [found.get(i) for i in range(len(node.outputs))]


@rule("Trilu")
def trilu(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Keeps a triangle. Where the file does not say which diagonal, the main one is taken."""
    x = e.at(node, 0)
    diagonal = int(known_number(node.input(1)) or 0)
    attrs = {"upper": bool(node.attributes.get("upper", 1)), "diagonal": diagonal}
    return [e.emit(node, "triangle", [x], x.type, attrs)]


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Blocks of pixels to channels or back: reshape, transpose, reshape."""
    x, out = e.at(node, 0), e.result_type(node)
    n, c, h, w = x.type.shape
    b = node.attributes["blocksize"]
    if node.op_type == "SpaceToDepth":
        parts, perm = (n, c, h // b, b, w // b, b), (0, 3, 5, 1, 2, 4)
    elif node.attributes.get("mode", b"DCR") in (b"DCR", "DCR"):
        parts, perm = (n, b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
    else:
        parts, perm = (n, c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
    split_ = e.reshape(node, x, parts, "blocks")
    moved = e.transpose(node, split_, perm, "")
    return [e.reshape(node, moved, out.shape)]


@rule("Resize", "Upsample", "GridSample", "RoiAlign", "AffineGrid")
def resize(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Every result element is a mix of its neighbours in the operand."""
    mode = node.attributes.get("mode", b"nearest")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    kind = {"nearest": "nearest", "cubic": "cubic", "bicubic": "cubic"}.get(mode, "linear")
    x, out = e.at(node, 0), e.result_type(node)
    if node.op_type in ("Resize", "Upsample") and x.type.shape == out.shape:
        return [x]
    extra = [] if node.op_type in ("Resize", "Upsample") else e.operands(node)[1:]
    return [e.emit(node, "interpolate", [x, *extra], out, {"mode": kind})]


@rule("CumSum", "CumProd")
def cumulative(e: Emitter, node: OnnxNode) -> Sequence[Value | None]:
    """Running sums along an axis."""
    x = e.at(node, 0)
    axis = (known_ints(node.input(1)) or (-1,))[0] % max(len(x.type.shape), 1)
    attrs = {"axis": axis, "reverse": bool(node.attributes.get("reverse", 0))}
    op = "cumsum" if node.op_type == "CumSum" else "cumprod"
    return [e.emit(node, op, [x], e.result_type(node), attrs)]


def _crop_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    border = node.attributes.get("border", (0, 0, 0, 0))
    scale = node.attributes.get("scale")
    height, width = x.shape[-2] - border[1] - border[3], x.shape[-1] - border[0] - border[2]
    if scale:
        height, width = scale[0], scale[1]
    return [x.with_shape((*x.shape[:-2], height, width))]


def _pad_types(node: OnnxNode) -> Sequence[TensorType | None]:
    """Before opset 11 the pads were an attribute, in opset 1 under another name."""
    x = required(node, 0).type
    pads = node.attributes.get("pads") or node.attributes.get("paddings")
    if pads is None or len(pads) != 2 * len(x.shape):
        return [None]
    rank = len(x.shape)
    return [x.with_shape(tuple(n + pads[i] + pads[rank + i] for i, n in enumerate(x.shape)))]


def _split_types(node: OnnxNode) -> Sequence[TensorType | None]:
    """The stated lengths, or as many equal parts as there are results."""
    x = required(node, 0).type
    axis = node.attributes.get("axis", 0) % max(len(x.shape), 1)
    given = node.input(1)
    sizes = node.attributes.get("split") or known_ints(given)
    if sizes is None:
        if given is not None or not x.shape:
            return [None]
        part = -(-x.shape[axis] // node.result_count)
        sizes = [part] * (node.result_count - 1)
        sizes = [*sizes, x.shape[axis] - sum(sizes)]
    if sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise ModelFileError(f"{node.label}: parts {list(sizes)} do not add up to {x.shape[axis]}")
    return [x.with_shape((*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in sizes]


def _upsample_types(node: OnnxNode) -> Sequence[TensorType | None]:
    x = required(node, 0).type
    scales = node.attributes.get("scales")
    if scales is None and "width_scale" in node.attributes:
        scales = [1, 1, node.attributes["height_scale"], node.attributes["width_scale"]]
    if scales is None:
        known = node.input(1)
        if known is None or known.data is None:
            return [None]
        scales = known.data.tolist()
    return [x.with_shape(tuple(int(n * s) for n, s in zip(x.shape, scales, strict=True)))]


TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    ("", "Crop"): _crop_types,
    ("", "Pad"): _pad_types,
    ("", "Split"): _split_types,
    ("", "Upsample"): _upsample_types,
}
