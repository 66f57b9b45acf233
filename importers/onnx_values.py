"""Tensors while an ONNX graph is being resolved: type, origin, and contents where small."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from graph_ir.errors import ModelFileError
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_file import check_payload, payload_is_here

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import TensorProto, TypeProto

    Array = NDArray[Any]

MAX_DIM = 1 << 40
"""No real tensor has a longer dim; larger ones are damage, and would overflow later arithmetic."""

MAX_ELEMENTS = 1 << 48

Origin = Literal["input", "weight", "computed"]


@dataclass(eq=False, slots=True)
class OnnxValue:
    """One tensor (or a sequence of tensors) with every dim known."""

    name: str
    type: TensorType
    origin: Origin = "computed"
    """`weight` for initializers, for Constant and ConstantOfShape with a fixed shape, and for
    re-layouts of those."""
    data: Array | None = None
    """Its elements, where they are known and few; used to resolve shapes."""
    dim_names: tuple[str | None, ...] = ()
    """For graph inputs: the file's names of the dims."""
    in_file: TensorType | None = None
    """Its type with the batch that is fixed in the file, if another batch changes it."""
    sequence: list[OnnxValue] | None = None
    """The elements, if this is a sequence; `type` is then meaningless."""
    stored: Any = None
    """Of a weight without `data`: the file's tensor, or an array, that tells its elements in order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's dims."""
        return self.type.shape

    @property
    def dtype(self) -> DType:
        """The tensor's element type."""
        return self.type.dtype


@lru_cache(maxsize=64)
def dtype_of(element_type: int) -> DType:
    """The dtype behind a TensorProto.DataType number.

    Raises:
        ModelFileError: the number names no element type.
    """
    from onnx import TensorProto

    known = dict(zip(TensorProto.DataType.values(), TensorProto.DataType.keys(), strict=True))
    name = known.get(element_type)
    if name is None or name == "UNDEFINED":
        raise ModelFileError(f"element type {element_type} does not exist in ONNX")
    return DType.parse(name)


@lru_cache(maxsize=64)
def element_type_of(dtype: DType) -> int:
    """The TensorProto.DataType number of a dtype."""
    from onnx import TensorProto

    for number in TensorProto.DataType.values():
        if number and dtype_of(number) is dtype:
            return int(number)
    raise ModelFileError(f"ONNX has no element type {dtype}")


@lru_cache(maxsize=4096)
def type_proto(type_: TensorType) -> TypeProto:
    """The TypeProto of a tensor type; shared, so never to be changed."""
    from onnx import helper

    return helper.make_tensor_type_proto(element_type_of(type_.dtype), type_.shape)


def checked_shape(dims: list[int], where: str) -> tuple[int, ...]:
    """The dims as a shape.

    Raises:
        ModelFileError: a dim or the number of elements is negative or absurdly large.
    """
    for size in dims:
        if not 0 <= size <= MAX_DIM:
            raise ModelFileError(f"{where} has a dim of {size}: the file is damaged")
    if prod(dims) > MAX_ELEMENTS:
        raise ModelFileError(f"{where} has {prod(dims)} elements: the file is damaged")
    return tuple(dims)


def tensor_value(tensor: TensorProto, name: str, where: str) -> OnnxValue:
    """The value of an initializer or of a Constant's tensor.

    Raises:
        ModelFileError: its dims are absurd, or its data has another length than they need.
    """
    shape = checked_shape(list(tensor.dims), where)
    type_ = TensorType(shape, dtype_of(tensor.data_type))
    if type_.dtype is not DType.STRING:
        check_payload(tensor, type_.bytes, where)
    data = read_array(tensor, type_, where)
    return OnnxValue(name, type_, "weight", data, stored=tensor if data is None else None)


def read_array(tensor: TensorProto, type_: TensorType, where: str) -> Array | None:
    """The tensor's elements, or None where they were left on disk or are of no use for shapes."""
    if not payload_is_here(tensor) or type_.dtype.kind == "string":
        return None
    from onnx import numpy_helper

    try:
        array: Array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelFileError(f"{where} cannot be read ({reason}): the file is damaged") from None
    return array if array.shape == type_.shape else None


def numpy_dtype(dtype: DType) -> np.dtype[Any] | None:
    """The numpy dtype that holds a dtype's values, or None if numpy has none."""
    import numpy as np

    try:
        return np.dtype(dtype.label)
    except TypeError:
        return None


@dataclass(eq=False, slots=True)
class OnnxNode:
    """One operator application whose operands' and results' types are all known."""

    name: str
    """The node's name in the file, or the name of its first result."""
    domain: str
    op_type: str
    version: int
    """Version of the operator set that the node is read by."""
    attributes: dict[str, Any]
    inputs: list[OnnxValue | None]
    outputs: list[OnnxValue | None]
    module: str = ""
    """Dotted path of the module that the exporter noted, or an empty string."""
    count: int = 1
    """How often it runs (the trips of the loops around it)."""
    result_count: int = 1
    """Number of results that the file lists."""

    @property
    def label(self) -> str:
        """How errors call this node."""
        kind = f"{self.domain}::{self.op_type}" if self.domain else self.op_type
        return f"node {self.name!r} ({kind})"

    def input(self, index: int) -> OnnxValue | None:
        """The operand at `index`, None if it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self, index: int) -> OnnxValue | None:
        """The result at `index`, None if it is absent."""
        return self.outputs[index] if index < len(self.outputs) else None
