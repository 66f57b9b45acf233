"""What inference leaves open of result types: told by the file, the user, or the most there can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graph_ir.errors import DimensionError
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_infer import PartialType, filled, partial_type
from importers.onnx_structure import node_label
from importers.onnx_values import OnnxValue, checked_shape

if TYPE_CHECKING:
    from onnx import NodeProto, ValueInfoProto

    from importers.onnx_dims import DimBinder

# Results whose length the data decides: the most that it can be.
_DATA_DEPENDENT: Mapping[str, Callable[[NodeProto, Sequence[OnnxValue | None]], int]] = {
    "NonZero": lambda node, inputs: _elements(inputs, 0),
    "Compress": lambda node, inputs: max(_elements(inputs, 1), 1),
    "Unique": lambda node, inputs: _along_axis(node, inputs),
}


def complete_type(
    node: NodeProto,
    index: int,
    inferred: PartialType | None,
    declared: ValueInfoProto | None,
    inputs: Sequence[OnnxValue | None],
    binder: DimBinder,
    notes: dict[str, None],
) -> TensorType | None:
    """Fills what inference left open of result `index` from the file and the user's dims.

    Returns:
        The type, or None if not even dtype and rank are known, and the user does not give all dims.

    Raises:
        DimensionError: the rank is known, but a dim is not, and nothing bounds it.
    """
    name = node.output[index]
    if inferred is None or inferred[1] is None:
        inferred = _outline(node, index, inputs, binder) or inferred
    if inferred is not None and inferred[1] is not None and None not in inferred[1]:
        stated = None  # Nothing is left open.
    else:
        stated = partial_type(declared.type) if declared is not None else None
    if inferred is None or inferred[1] is None:
        dtype = inferred[0] if inferred else stated[0] if stated else None
        given = binder.all_of(name)
        if given is not None:
            likely = next((v.dtype for v in inputs if v is not None), DType.FLOAT32)
            return TensorType(checked_shape(given, f"result {name!r}"), dtype or likely)
        if dtype is None or stated is None or stated[1] is None:
            return None
        inferred = (dtype, stated[1])
    dtype, dims = inferred
    if dims is None:
        return None
    if node.op_type == "Reshape" and inputs[0] is not None:
        known = [binder.lookup(f"{name}.{i}") if d is None else d for i, d in enumerate(dims)]
        # The number of elements tells a last open dim.
        open_dims = filled([-1 if d is None else d for d in known], inputs[0].type.elements)
        dims = tuple(None if d == -1 else d for d in open_dims)
    sizes = [
        d if d is not None else _open_dim(node, name, i, stated, declared, inputs, binder, notes)
        for i, d in enumerate(dims)
    ]
    return TensorType(checked_shape(sizes, f"result {name!r} of {node_label(node)}"), dtype)


def _outline(
    node: NodeProto, index: int, inputs: Sequence[OnnxValue | None], binder: DimBinder
) -> PartialType | None:
    """The rank of results whose sizes alone depend on data."""
    first = inputs[0] if inputs else None
    if node.op_type == "Split" and first is not None and first.shape:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0) % len(first.shape)
        sizes: list[int | None] = list(first.shape)
        sizes[axis] = None
        if index == len(node.output) - 1:
            # What the other pieces leave.
            others = [binder.lookup(f"{name}.{axis}") for name in node.output[:-1]]
            rest = first.shape[axis] - sum(n or 0 for n in others)
            if None not in others and rest >= 0:
                sizes[axis] = rest
        return first.dtype, tuple(sizes)
    # Height, width and channels of a picture (onnxruntime-extensions' custom operators).
    return (DType.UINT8, (None,) * 3) if node.op_type in ("DecodeImage", "ImageReader") else None


def _open_dim(
    node: NodeProto,
    name: str,
    axis: int,
    stated: PartialType | None,
    declared: ValueInfoProto | None,
    inputs: Sequence[OnnxValue | None],
    binder: DimBinder,
    notes: dict[str, None],
) -> int:
    given = binder.lookup(f"{name}.{axis}")
    if given is not None:
        return given
    if stated is not None and stated[1] is not None and len(stated[1]) > axis:
        fixed = stated[1][axis]
        if fixed is not None and binder.static_batch is None:
            return fixed
        if declared is not None:
            dim: Any = declared.type.tensor_type.shape.dim[axis]
            size = binder.lookup(dim.dim_param) if dim.dim_param else None
            if size is not None:
                return size
    bound = _DATA_DEPENDENT.get(node.op_type)
    if bound is not None:
        size = bound(node, inputs)
        notes[
            f"The data decides how long {name!r} is ({node_label(node)}): its maximum, {size}, is "
            f"taken; --dim '{name}.{axis}=INT' sets another length."
        ] = None
        return size
    raise DimensionError(
        f"dim {axis} of {name!r} ({node_label(node)}) cannot be told from the file: "
        f"give --dim '{name}.{axis}=INT'"
    )


def _elements(inputs: Sequence[OnnxValue | None], index: int) -> int:
    value = inputs[index]
    return value.type.elements if value is not None else 0


def _along_axis(node: NodeProto, inputs: Sequence[OnnxValue | None]) -> int:
    """The operand's length along the attribute `axis`, or all its elements."""
    value = inputs[0]
    axis = next((a.i for a in node.attribute if a.name == "axis"), None)
    if value is None or axis is None or not value.shape:
        return _elements(inputs, 0)
    return value.shape[axis % len(value.shape)]
