"""ONNX files as operator graphs: read, bind dims, settle every shape, translate operators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from graph_ir.errors import ModelFileError, OpboundError, UnknownOperatorError
from graph_ir.garbage import no_collection
from graph_ir.graph import Graph, GraphBuilder, Value
from graph_ir.op_def import all_ops
from graph_ir.tensor_type import DType
from importers.imported_model import ImportedModel, ImportOptions
from importers.onnx_caches import mark_caches
from importers.onnx_dims import DimBinder
from importers.onnx_file import read_onnx
from importers.onnx_names import name_of
from importers.onnx_ops import RULES, TYPE_RULES, Emitter, rule_of
from importers.onnx_ops.foreign import as_record, by_bytes
from importers.onnx_resolve import Resolver
from importers.onnx_tables import table_of
from importers.onnx_values import OnnxNode

if TYPE_CHECKING:
    from onnx import ModelProto

_MAX_LISTED = 6
_MAX_MESSAGE = 1000

_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


def import_onnx(path: str | Path, options: ImportOptions) -> ImportedModel:
    """Imports an ONNX file.

    Args:
        path: of the file; binary, or protobuf's or ONNX's text format.
        options: sizes for dynamic dims and the like.

    Raises:
        ModelFileError: the file is absent, broken or no ONNX model.
        DimensionError: a dim is unbound, or an option names a dim that does not exist.
        UnknownOperatorError: an operator has no translation, unless `options.allow_unknown`.
    """
    path = Path(path)
    file = read_onnx(path)
    binder = DimBinder(_step(options))
    resolver = Resolver(file.model, binder, _has_rule, TYPE_RULES, partial(_flops_of, options))
    try:
        with no_collection():
            graph, made = _build(resolver, file.model, path, options)
    except OpboundError as error:
        raise type(error)(_one_line(str(error))) from error
    except RecursionError:
        raise ModelFileError(f"{path}: {resolver.place} is nested too deeply") from None
    except _DAMAGE as error:
        # Bytes that are no text where a name belongs, attributes of another kind than the operator's.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ModelFileError(
            f"{path} cannot be read at {resolver.place} ({reason}): the file is damaged, or this is a "
            "fault of opbound"
        ) from error
    batch, sequence = (_size_of(graph.inputs, meaning) for meaning in ("batch", "sequence"))
    return ImportedModel(
        graph=graph,
        name=path.stem,
        source=str(path),
        sha256=file.sha256,
        importer=_route(file.model),
        notes=(*file.notes, *resolver.notes, *_unknown_operators(graph)),
        dims=MappingProxyType(dict(binder.bound)),
        batch=options.batch or batch,
        sequence=options.sequence or sequence,
        made=MappingProxyType(made),
    )


def _one_line(text: str) -> str:
    """A message as a short, printable line: names in a file may hold anything, also line breaks."""
    line = " ".join(text.split())
    line = line if line.isprintable() else ascii(line)
    if len(line) <= _MAX_MESSAGE:
        return line
    return f"{line[: _MAX_MESSAGE // 2]} ... {line[-_MAX_MESSAGE // 2 :]}"


def _step(options: ImportOptions) -> ImportOptions:
    """A prefill starts with an empty cache; a decode step adds one token, whatever the prompt was."""
    if options.mode == "prefill":
        return replace(options, past_tokens=options.past_tokens or 0)
    if options.mode == "decode":
        return replace(options, sequence=1)
    return options


def _has_rule(domain: str, op_type: str, results: int) -> bool:
    # Attention that also returns its scores cannot be fused: its schema's body is taken.
    known = rule_of(domain, op_type) is not None
    return known and (domain, op_type, results) != ("", "Attention", 4)


def _build(
    resolver: Resolver, model: ModelProto, path: Path, options: ImportOptions
) -> tuple[Graph, dict[str, tuple[str, ...]]]:
    """The graph, and for each operator's first result the names of the nodes it became."""
    dtype = DType.parse(options.dtype) if options.dtype else None
    inputs, outputs = resolver.run(model.graph)
    builder = GraphBuilder(path.stem)
    table = partial(table_of, model=path)
    emitter = Emitter(builder, dtype=dtype, training=options.mode == "training", table=table)
    for value in inputs:
        emitter.add_input(value)
    made: dict[str, tuple[str, ...]] = {}
    for node in resolver.nodes:
        resolver.at = node
        before = len(builder.nodes)
        _translate(emitter, node, options)
        first = next((value.name for value in node.outputs if value is not None), node.name)
        made[first] = tuple(n.name for n in builder.nodes[before:])
    makers = {name: name_of(node) for node in model.graph.node for name in node.output}
    results = []
    for value, output in zip(outputs, model.graph.output, strict=True):
        if value.sequence is None:
            # A weight that is only handed out is none that can be trained.
            result = emitter.operand(value, "constant")
            name = makers.get(output.name, result.name)
            results.append(
                result if result.kind == "intermediate" else _copied(builder, result, name)
            )
    results = mark_caches(builder, results, [v.name for v in outputs if v.sequence is None])
    return builder.build(results), made


def _flops_of(options: ImportOptions, nodes: Sequence[OnnxNode]) -> int:
    """FLOPs of some of a model's nodes, to compare the branches of an If."""
    builder = GraphBuilder()
    dtype = DType.parse(options.dtype) if options.dtype else None
    emitter = Emitter(builder, dtype=dtype)
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.sequence is None:
                emitter.ensure(value)
        _translate(emitter, node, options)
    return sum(n.flops * n.count for n in builder.nodes)


def _copied(builder: GraphBuilder, value: Value, name: str) -> Value:
    """A result that is an input or a weight is copied into a buffer of its own, by the node of that name."""
    return builder.emit("copy", [value], [value.type], name=f"{name}.copy")[0]


def _translate(emitter: Emitter, node: OnnxNode, options: ImportOptions) -> None:
    function = rule_of(node.domain, node.op_type)
    results = function(emitter, node) if function else _unknown(emitter, node, options)
    for value, result in zip(node.outputs, results, strict=False):
        if value is not None and result is not None:
            emitter.define(value, result)


def _unknown(emitter: Emitter, node: OnnxNode, options: ImportOptions) -> Sequence[Value | None]:
    """An operator without a rule: by the record of its own name, else `unknown` on request."""
    kind = f"{node.domain or 'ai.onnx'}::{node.op_type}"
    record = _record_of(node)
    if record is None and not options.allow_unknown:
        place = f" in module {node.module!r}" if node.module else ""
        raise UnknownOperatorError(
            f"node {node.name!r}{place}: operator {kind} has no translation; add a rule to "
            "importers/onnx_ops/ (and a record to graph_ir/ops/), or pass --allow-unknown"
        )
    if record is None:
        return by_bytes(emitter, node)
    return as_record(emitter, node, record, node.attributes)


def _record_of(node: OnnxNode) -> str | None:
    """The record named like a custom operator (GatedLinear: gated_linear), operands in its order.

    Domains that have translations are left out: their operators' operands have another order.
    """
    if any(node.domain == domain for domain, _ in RULES):
        return None
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", node.op_type).lower()
    return name if name in all_ops() else None


def _unknown_operators(graph: Graph) -> list[str]:
    """A note on the operators of which only the bytes are counted."""
    kinds = sorted({str(n.attrs["frontend"]) for n in graph.nodes if n.op == "unknown"})
    if not kinds:
        return []
    rest = f" and {len(kinds) - _MAX_LISTED} more" if len(kinds) > _MAX_LISTED else ""
    return [
        f"Of {', '.join(kinds[:_MAX_LISTED])}{rest} only the bytes of operands and results are counted: "
        "what they compute is not known."
    ]


def _size_of(inputs: Sequence[Value], meaning: str) -> int | None:
    for value in inputs:
        for name, size in zip(value.dim_names, value.type.shape, strict=False):
            if name == meaning:
                return size
    return None


def _route(model: ModelProto) -> str:
    import onnx

    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    version = opsets.get("ai.onnx", next(iter(opsets.values()), 0))
    return f"onnx {onnx.__version__}, opset {version}"
