"""BeamSearch (Whisper's too), GreedySearch and Sampling of com.microsoft: a whole generation in one node.

The prompt goes through the encoder or the first decoder once; then the decoder runs once per further
token. Its cost grows linearly with the cache, so the middle step, counted as often as there are steps,
stands for all of them.

Source: docs/ContribOperators.md of onnxruntime, and its transformers tools, which state what the
    subgraphs are given: input_ids, position_ids, attention_mask, caches past_*, results present_*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graph_ir.errors import DimensionError, ModelFileError
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_constants import Special, operand
from importers.onnx_names import name_of
from importers.onnx_scope import Scope
from importers.onnx_values import OnnxNode, OnnxValue, checked_shape, dtype_of

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, ValueInfoProto

    from importers.onnx_resolve import Resolver

_ENCODED = ("encoder_hidden_states", "encoder_attention_mask", "cross")
_CACHE_RANK = 3
_BEAM_SEARCHES = ("BeamSearch", "WhisperBeamSearch")


def _known(value: OnnxValue | None) -> int | None:
    return int(value.data.reshape(-1)[0]) if value is not None and value.data is not None else None


def _search(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    prompt = operand(resolved)
    batch, length = prompt.shape[0], prompt.shape[1]
    beams = _beams(resolved)
    decoder: GraphProto = resolved.attributes["decoder"]
    encoder: GraphProto | None = resolved.attributes.get("encoder")
    start = 1 if encoder is not None else length
    steps, total = _steps(resolver, node, resolved, start)
    encoded = length
    if encoder is not None:
        found = _run(
            resolver,
            resolved,
            scope,
            encoder,
            _Step("encoder", "encoder", batch * beams, length, 0, length),
        )
        states = [v for name, v in found.items() if "hidden_states" in name and len(v.shape) == 3]
        encoded = states[0].shape[1] if states else length
    else:
        held = "init_decoder" if "init_decoder" in resolved.attributes else "decoder"
        first: GraphProto = resolved.attributes[held]
        prompt_run = _Step("prompt", held, batch * beams, length, 0, length)
        _run(resolver, resolved, scope, first, prompt_run)
    if steps > 1:
        outer = resolver.count
        resolver.count = outer * (steps - 1)
        past = start + (steps - 1) // 2
        _run(
            resolver,
            resolved,
            scope,
            decoder,
            _Step("decoder", "decoder", batch * beams, 1, past, encoded),
        )
        resolver.count = outer
        resolver.notes[
            f"{resolved.label} generates {steps} tokens for {batch} prompts with {beams} beams: its decoder "
            f"is counted {steps - 1} times with {past} tokens in the cache, their mean."
        ] = None
    returned = _known(resolved.input(4)) or 1
    many = resolved.op_type in _BEAM_SEARCHES
    shapes = [
        (batch, returned, total) if many else (batch, total),
        (batch, returned),
        (steps, batch, beams, resolved.attributes.get("vocab_size", 1)),
    ]
    for name, shape, dtype in zip(
        node.output, shapes, (DType.INT32, DType.FLOAT32, DType.FLOAT32), strict=False
    ):
        if name:
            type_ = TensorType(checked_shape(list(shape), resolved.label), dtype)
            value = OnnxValue(scope.prefix + name, type_)
            scope.values[name] = value
            resolver.nodes.append(_written(resolved, value))


def _beams(resolved: OnnxNode) -> int:
    if resolved.op_type not in _BEAM_SEARCHES:
        return 1
    beams = _known(resolved.input(3))
    if beams is None:
        given = resolved.input(3)
        name = given.name if given is not None else "num_beams"
        raise DimensionError(
            f"{resolved.label}: the data decides how many beams there are; give --value '{name}=N'"
        )
    if not 1 <= beams <= 4096:
        raise ModelFileError(f"{resolved.label} has {beams} beams")
    return beams


def _steps(resolver: Resolver, node: NodeProto, resolved: OnnxNode, start: int) -> tuple[int, int]:
    """(tokens that are generated, length of a finished sequence)."""
    name = name_of(node)
    given = resolver.answers.trip_count(name, resolved.name)
    limit = _known(resolved.input(1))
    if given is None and limit is None:
        raise DimensionError(
            f"{resolved.label}: the data decides how many tokens it generates; give --trip-count '{name}=N'"
        )
    steps = given if given is not None else max((limit or 0) - start, 0)
    return steps, limit if limit is not None else start + steps


@dataclass(frozen=True)
class _Step:
    """One run of a subgraph."""

    part: str
    graph: str
    """Attribute that holds the subgraph."""
    rows: int
    """Prompts times beams."""
    length: int
    """Tokens that it is given."""
    past: int
    """Tokens in the cache."""
    encoded: int
    """Tokens, or frames, that the encoder has made."""


def _run(
    resolver: Resolver, resolved: OnnxNode, scope: Scope, graph: GraphProto, step: _Step
) -> dict[str, OnnxValue]:
    """Resolves one of the node's subgraphs; returns its results by name."""
    inner = Scope(
        scope.opsets,
        parent=scope,
        place=f"{scope.place}{resolved.name.removeprefix(scope.prefix)}/{step.graph}/",
        pool=scope.pool,
        prefix=f"{resolved.name}/{step.part}/",
        module=resolved.module,
        depth=scope.depth + 1,
    )
    weights = {t.name for t in graph.initializer}
    prompt = operand(resolved)
    arguments = []
    for info in graph.input:
        if info.name in weights:
            continue
        if step.part == "encoder" and "encoder_input" in info.name:
            shape: tuple[int, ...] = (step.rows, *prompt.shape[1:])
        else:
            shape = _shape(info, step)
        type_ = TensorType(shape, dtype_of(info.type.tensor_type.elem_type))
        # Memory that the search has filled: an input, as far as costs go.
        arguments.append(OnnxValue(inner.prefix + info.name, type_, "input"))
    results = resolver.graph(graph, inner, arguments)
    return dict(zip((o.name for o in graph.output), results, strict=True))


def _shape(info: ValueInfoProto, step: _Step) -> tuple[int, ...]:
    """The shape of a subgraph's input: fixed dims from the file, the others by their meaning."""
    dims, name = info.type.tensor_type.shape.dim, info.name
    if any(word in name for word in _ENCODED):
        tokens = step.encoded
    elif name.startswith("past") and len(dims) >= _CACHE_RANK:
        tokens = step.past
    elif name == "attention_mask":
        tokens = step.past + step.length
    else:
        tokens = 1 if name == "decoder_input_ids" else step.length
    free = iter((step.rows, tokens))
    sizes: list[int] = []
    for dim in dims:
        fixed = dim.HasField("dim_value") and dim.dim_value > 0
        sizes.append(int(dim.dim_value) if fixed else next(free, tokens))
    return checked_shape(sizes, f"input {name!r}")


def _written(resolved: OnnxNode, value: OnnxValue) -> OnnxNode:
    return OnnxNode(
        value.name,
        "",
        "ConstantOfShape",
        resolved.version,
        {},
        [],
        [value],
        resolved.module,
        resolved.count,
    )


SPECIAL: Mapping[str, Special] = dict.fromkeys(
    (*_BEAM_SEARCHES, "GreedySearch", "Sampling"), _search
)
