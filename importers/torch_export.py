"""From a torch module to an exported program, and from that to an imported model."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from types import MappingProxyType
from typing import Any

from graph_ir.errors import OpboundError
from graph_ir.graph import Graph, GraphBuilder, Value
from graph_ir.tensor_type import DType
from importers.imported_model import ImportedModel, ImportOptions
from importers.torch_call import Constant, InputHint, Settings
from importers.torch_canonical import rules
from importers.torch_convert import Converter
from importers.torch_names import NodeNames


def export_module(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, name: str) -> Any:
    """Traces a module without running it (torch.export, not strict, on the arguments' device).

    Raises:
        OpboundError: the module cannot be traced.
    """
    import torch

    logging_before = logging.root.manager.disable
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fast path of nn.MultiheadAttention is one opaque operator.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # A failure is told in one line below; torch would also log its own traceback.
        logging.disable(logging.ERROR)
        # torch also prints the graph so far when it meets a condition on data.
        aside = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(aside), redirect_stderr(aside):
            # They are about how the program would run or be saved, which it never is.
            warnings.simplefilter("ignore")
            return torch.export.export(module, tuple(args), dict(kwargs), strict=False)
    except OpboundError:
        raise
    except Exception as error:  # the user's own forward runs here and may raise anything
        raise OpboundError(
            f"{name} cannot be traced by torch.export: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        logging.disable(logging_before)


def first_line(error: BaseException) -> str:
    """An exception's message cut to one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


def import_program(
    program: Any,
    options: ImportOptions,
    *,
    name: str,
    source: str,
    sha256: str,
    importer: str,
    inputs: Mapping[str, InputHint] | None = None,
    module_prefix: str = "",
    notes: Iterable[str] = (),
    first_cache_output: int | None = None,
) -> ImportedModel:
    """Converts an exported program.

    Args:
        program: torch.export.ExportedProgram whose every shape is known.
        options: mode, dtype, allow_unknown; sizes are in the program already.
        name: short name of the model.
        source: what the user asked for.
        sha256: hash of where it came from.
        importer: frontend and versions.
        inputs: what the tensor arguments' dims mean, by argument name.
        module_prefix: path of the user's model in the traced module.
        notes: what a reader should know.
        first_cache_output: index of the first result that is a KV cache, if there are any.

    Raises:
        OpboundError: an operator has no rule, or a dim is not a number.
    """
    settings = Settings(
        training=options.mode == "training",
        allow_unknown=options.allow_unknown,
        dtypes=_replaced_dtypes(program, options.dtype),
    )
    table = rules()
    builder = GraphBuilder(name)
    names = NodeNames(module_prefix)
    names.learn(program.graph.nodes)
    converter = Converter(builder, names, settings, table)
    if first_cache_output is not None:
        results_node = next(n for n in program.graph.nodes if n.op == "output")
        for node in results_node.args[0][first_cache_output:]:
            converter.roles[node] = "kv_cache"
    arguments = _graph_inputs(program, converter, inputs or {}, names)
    results = converter.run(program.graph_module, arguments)
    outputs = _graph_outputs(program, results, converter, options)
    _drop_unread_views(builder, outputs)
    graph = builder.build(outputs)
    unknown = sorted(set(converter.unknown))
    return ImportedModel(
        graph=graph,
        name=name,
        source=source,
        sha256=sha256,
        importer=importer,
        notes=(
            *notes,
            *dict.fromkeys(converter.notes),
            *([f"operators without a rule: {', '.join(unknown)}"] if unknown else []),
        ),
        batch=_size_of(graph, "batch"),
        sequence=_size_of(graph, "sequence"),
        made=MappingProxyType(converter.made),
        program=program if options.keep_program else None,
    )


def _replaced_dtypes(program: Any, wanted: str | None) -> dict[DType, DType]:
    """The model's own float dtype stands for the wanted one; others (fp32 norms) stay."""
    if wanted is None:
        return {}
    target = DType.parse(wanted)
    if not target.is_float:
        raise OpboundError(
            f"dtype {wanted} is not a floating-point type: weights and activations need one"
        )
    sizes: dict[DType, int] = {}
    for tensor in program.state_dict.values():
        dtype = DType.parse(str(tensor.dtype))
        if dtype.is_float:
            sizes[dtype] = sizes.get(dtype, 0) + tensor.numel()
    if not sizes:
        return {}
    own = max(sizes, key=lambda dtype: sizes[dtype])
    return {} if own is target else {own: target}


def _graph_inputs(
    program: Any, converter: Converter, hints: Mapping[str, InputHint], names: NodeNames
) -> list[Any]:
    """What each placeholder stands for: parameters (tied ones once), buffers, constants, inputs."""
    from torch.export.graph_signature import InputKind

    kinds: dict[Any, Any] = {
        InputKind.PARAMETER: "parameter",
        InputKind.BUFFER: "buffer",
        InputKind.CONSTANT_TENSOR: "constant",
    }
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    found: list[Any] = []
    tied: dict[int, Value] = {}
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        tensor = node.meta.get("val")
        if not hasattr(tensor, "dtype"):
            found.append(tensor if tensor is not None else getattr(spec.arg, "value", None))
            continue
        kind = kinds.get(spec.kind, "input")
        owner = program.state_dict.get(spec.target) if spec.target else None
        if kind == "parameter" and owner is not None and id(owner) in tied:
            found.append(tied[id(owner)])
            continue
        type_ = converter.type_of(tensor, node)
        if kind == "constant":
            found.append(Constant(type_, _content(program.constants.get(spec.target))))
            continue
        if kind == "input":
            if not node.users and not _is_returned(node, program):
                found.append(None)
                continue
            hint = hint_of(node.name, hints, len(type_.shape))
            value = converter.builder.add_input(
                node.name, type_, dim_names=hint.dims, role=hint.role
            )
        else:
            trainable = kind != "parameter" or getattr(owner, "requires_grad", True)
            value = converter.builder.add_input(
                names.strip(spec.target),
                type_,
                kind if trainable else "buffer",
                data=_table(owner) if kind == "buffer" else None,
            )
        if owner is not None and kind == "parameter":
            tied[id(owner)] = value
        found.append(value)
    return found


def _table(tensor: Any) -> Any:
    """A buffer that may be a mask: numpy reads it where that matters. None if there is nothing to read."""
    is_mask = tensor is not None and tensor.dim() >= 2 and str(tensor.dtype) != "torch.bfloat16"
    here = is_mask and tensor.device.type == "cpu" and type(tensor).__name__ != "FakeTensor"
    return tensor.detach() if here else None


def _content(tensor: Any) -> Any:
    """A constant's own copy, unless it lives on the meta device or is traced."""
    real = (
        tensor is not None and tensor.device.type == "cpu" and type(tensor).__name__ != "FakeTensor"
    )
    return tensor.detach().clone() if real else None


def hint_of(name: str, hints: Mapping[str, InputHint], rank: int) -> InputHint:
    """The hint of an argument; that of `kv` also serves `kv_0`, `kv_1`, ..."""
    stem = name.rstrip("0123456789").rstrip("_")
    hint = hints.get(name) or hints.get(stem)
    return hint if hint is not None and len(hint.dims) == rank else InputHint((None,) * rank)


def _is_returned(node: Any, program: Any) -> bool:
    return any(
        spec.arg.name == node.name
        for spec in program.graph_signature.output_specs
        if hasattr(spec.arg, "name")
    )


def _graph_outputs(
    program: Any, results: Sequence[Any], converter: Converter, options: ImportOptions
) -> list[Value]:
    """The user's outputs; when training with a loss, the loss alone, since only it is differentiated."""
    from torch.export.graph_signature import OutputKind

    node = next(n for n in program.graph.nodes if n.op == "output")
    found = [
        converter.materialize(result, node)
        for result, spec in zip(results, program.graph_signature.output_specs, strict=True)
        if spec.kind == OutputKind.USER_OUTPUT and hasattr(result, "type")
    ]
    if options.mode == "training":
        losses = [v for v in found if not v.type.shape and v.type.dtype.is_float]
        found = losses[:1] or found
    return list(dict.fromkeys(found))


def _drop_unread_views(builder: GraphBuilder, outputs: Iterable[Value]) -> None:
    """Removes views and constants that nothing reads, such as the view that an in-place write went to."""
    read = set(outputs)
    kept = []
    for node in reversed(builder.nodes):
        if node.definition.is_view(node) and read.isdisjoint(node.outputs):
            continue
        kept.append(node)
        read.update(node.inputs)
    builder.nodes = kept[::-1]
    builder.inputs = [v for v in builder.inputs if v.kind != "constant" or v in read]


def _size_of(graph: Graph, meaning: str) -> int | None:
    """The size of the first input dim that is named so."""
    for value in graph.inputs:
        for dim, size in zip(value.dim_names, value.type.shape, strict=False):
            if dim == meaning:
                return size
    return None
