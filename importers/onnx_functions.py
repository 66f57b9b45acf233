"""Function bodies: those of a model, and those by which a schema defines its operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from importers.onnx_values import OnnxNode, type_proto

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto


def schema_body(node: NodeProto, resolved: OnnxNode, schema: Any) -> FunctionProto | None:
    """The function that an operator's schema (an onnx OpSchema) defines it by, or None."""
    from onnx import FunctionProto

    if schema.has_function:
        body: FunctionProto = schema.function_body
        return body
    if not schema.has_context_dependent_function:
        return None
    types = [
        type_proto(v.type).SerializeToString() if v is not None else b"" for v in resolved.inputs
    ]
    body = FunctionProto()
    body.ParseFromString(schema.get_context_dependent_function(node.SerializeToString(), types))
    return body if body.node else None


def instantiate(
    node: NodeProto, call: NodeProto, function: FunctionProto, absent: set[str]
) -> NodeProto:
    """A function's node with the call's attributes, and without operands that the call left out."""
    from onnx import NodeProto

    copy = NodeProto()
    copy.CopyFrom(node)
    given = {a.name: a for a in call.attribute}
    defaults = {a.name: a for a in function.attribute_proto}
    del copy.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy.attribute.append(attribute)
            continue
        source = given.get(attribute.ref_attr_name) or defaults.get(attribute.ref_attr_name)
        if source is not None:
            bound = copy.attribute.add()
            bound.CopyFrom(source)
            bound.name = attribute.name
    for index, name in enumerate(copy.input):
        if name in absent:
            copy.input[index] = ""
    return copy
