"""Result types of one ONNX node from its operands' types and known contents.

onnx's own inference does the work, one node at a time, so it always sees numbers; what it leaves open
`onnx_complete` settles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from graph_ir.errors import ModelFileError
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_structure import node_label
from importers.onnx_values import OnnxValue, dtype_of, type_proto

if TYPE_CHECKING:
    from onnx import NodeProto, TypeProto
    from onnx.defs import OpSchema


PartialType = tuple[DType, tuple[int | None, ...] | None]
"""A dtype and a shape with None for each unknown dim, or None for an unknown rank."""


@lru_cache(maxsize=512)
def schema_of(domain: str, op_type: str, version: int) -> OpSchema | None:
    """The operator's schema at a version of its domain, or None if onnx knows none."""
    from onnx import defs

    try:
        return defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return None


class TypeInference:
    """onnx's inference, asked once per distinct node: models repeat their layers."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[PartialType | None]] = {}

    def types(
        self,
        node: NodeProto,
        schema: OpSchema,
        inputs: Sequence[OnnxValue | None],
        opsets: Mapping[str, int],
    ) -> list[PartialType | None]:
        """What onnx can say of each result; see `infer_types` for the errors."""
        if any(v is not None and v.sequence is not None for v in inputs):
            return infer_types(node, schema, inputs, opsets)
        key = (
            schema.domain,
            schema.name,
            schema.since_version,
            tuple(bool(name) for name in node.output),
            tuple(a.SerializeToString(deterministic=True) for a in node.attribute),
            tuple(v and (v.type, None if v.data is None else v.data.tobytes()) for v in inputs),
        )
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = infer_types(node, schema, inputs, opsets)
        return found


def newest_opset() -> int:
    """The newest version of the standard operators that the installed onnx knows."""
    from onnx import defs

    return int(defs.onnx_opset_version())


def infer_types(
    node: NodeProto,
    schema: OpSchema,
    inputs: Sequence[OnnxValue | None],
    opsets: Mapping[str, int],
) -> list[PartialType | None]:
    """What onnx can say of each result; None for an absent result or one that is no tensor.

    Files break rules that do not matter for shapes: an attribute of another opset, an element type
    that the operator's version does not list. They are read by the newest version of the operator,
    and as if they were float32.

    Raises:
        ModelFileError: the operands do not fit the operator.
    """
    from onnx import checker, defs

    newest = defs.get_schema(node.op_type, domain=schema.domain)
    failure: Exception | None = None
    try:
        found = _infer(node, schema, [_type_of(v, False) for v in inputs], inputs, opsets)
        # The first versions of many operators were published without shape inference.
        if all(t and t[1] is not None for t in found[:1]) or newest == schema:
            return found
    except checker.ValidationError as error:
        failure = error
    readers = [(newest, False), (newest, True)]
    for reader, stand_in in [(schema, False), *readers] if failure else readers:
        types = [_type_of(v, stand_in) for v in inputs]
        try:
            found = _infer(_fitted(node, reader), reader, types, inputs, opsets)
        except checker.ValidationError:
            continue
        except ModelFileError:
            if failure is None:
                continue
            raise
        first = next((v for v in inputs if v is not None), None)
        if stand_in and first is not None:
            found = [(first.dtype, t[1]) if t and t[0] is DType.FLOAT32 else t for t in found]
        return [*found, *[None] * (len(node.output) - len(found))]
    if failure is None:
        return found
    raise ModelFileError(f"{node_label(node)} is invalid: {_reason(failure)}")


def _infer(
    node: NodeProto,
    schema: OpSchema,
    types: Sequence[TensorType | None],
    inputs: Sequence[OnnxValue | None],
    opsets: Mapping[str, int],
) -> list[PartialType | None]:
    from onnx import helper, numpy_helper, shape_inference

    protos: dict[str, TypeProto] = {}
    data = {}
    for name, type_, value in zip(node.input, types, inputs, strict=False):
        if value is None or type_ is None or value.sequence is not None:
            continue
        protos[name] = type_proto(type_)
        if value.data is not None and value.dtype.kind in ("int", "bool", "float"):
            data[name] = numpy_helper.from_array(value.data, name)
    try:
        found = shape_inference.infer_node_outputs(
            schema,
            node,
            protos,
            data,
            opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()],
        )
    except (shape_inference.InferenceError, RuntimeError, KeyError) as error:
        raise ModelFileError(f"{node_label(node)} is invalid: {_reason(error)}") from None
    return [partial_type(found[name]) if name in found else None for name in node.output]


def _fitted(node: NodeProto, schema: OpSchema) -> NodeProto:
    """A copy of the node without the attributes and results that the schema does not know."""
    from onnx import NodeProto

    copy = NodeProto()
    copy.CopyFrom(node)
    kept = [a for a in node.attribute if a.name in schema.attributes]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    del copy.output[schema.max_output :]
    return copy


def _type_of(value: OnnxValue | None, stand_in: bool) -> TensorType | None:
    if value is None:
        return None
    return _as_float(value.type) if stand_in else value.type


def _as_float(type_: TensorType) -> TensorType:
    return type_ if type_.dtype in (DType.BOOL, DType.INT64) else type_.with_dtype(DType.FLOAT32)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    for mark in ("[ShapeInferenceError]", "[TypeInferenceError]"):
        text = text.rsplit(mark, 1)[-1]
    text = text.split(" ==> Context")[0]
    return text.strip()[:200]


def partial_type(type_: TypeProto) -> PartialType | None:
    """The dtype and the known dims of a tensor's TypeProto; None for other types."""
    while type_.WhichOneof("value") == "optional_type":
        type_ = type_.optional_type.elem_type
    if type_.WhichOneof("value") != "tensor_type" or not type_.tensor_type.elem_type:
        return None
    tensor = type_.tensor_type
    if not tensor.HasField("shape"):
        return dtype_of(tensor.elem_type), None
    dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return dtype_of(tensor.elem_type), dims


def reshape_target(
    old: tuple[int, ...], target: Sequence[int], *, allow_zero: bool, where: str
) -> tuple[int, ...]:
    """The shape that Reshape gives.

    Args:
        old: shape of the operand.
        target: what the file asks for; -1 stands for the rest, 0 for the operand's dim.
        allow_zero: whether 0 means 0.
        where: the node, for errors.

    Raises:
        ModelFileError: the numbers of elements differ.
    """
    dims = [
        (old[i] if i < len(old) else 0) if s == 0 and not allow_zero else int(s)
        for i, s in enumerate(target)
    ]
    dims = filled(dims, prod(old))
    if any(d < 0 for d in dims) or prod(dims) != prod(old):
        raise ModelFileError(f"{where} cannot reshape {list(old)} to {list(target)}")
    return tuple(dims)


def filled(dims: Sequence[int], elements: int) -> list[int]:
    """The dims with a single -1 replaced by what the number of elements leaves for it."""
    rest = prod(d for d in dims if d != -1)
    if list(dims).count(-1) != 1 or not rest or elements % rest:
        return list(dims)
    return [elements // rest if d == -1 else d for d in dims]
