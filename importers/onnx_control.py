"""If, Loop and Scan: branches are chosen, loops are written out.

A loop's trips become ordinary nodes one after the other; the graph's repeated blocks are folded
together again after the import, so a written-out loop costs no more than one trip in every later
step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from graph_ir.errors import DimensionError, ModelFileError, OpboundError, UnknownOperatorError
from graph_ir.tensor_type import DType, TensorType
from importers.onnx_constants import Special
from importers.onnx_names import name_of
from importers.onnx_scope import Scope
from importers.onnx_sequences import join
from importers.onnx_structure import node_label
from importers.onnx_values import OnnxNode, OnnxValue

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

    from importers.onnx_resolve import Resolver

_MAX_TRIPS = 100_000


def _inner(resolved: OnnxNode, scope: Scope, part: str) -> Scope:
    node_name = resolved.name.removeprefix(scope.prefix)
    return Scope(
        scope.opsets,
        parent=scope,
        place=f"{scope.place}{node_name}/{'body' if part.isdecimal() else part}/",
        pool=scope.pool,
        prefix=f"{resolved.name}/{part}/",
        module=resolved.module,
        depth=scope.depth + 1,
    )


def _if(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    condition = resolved.input(0)
    branches: dict[str, GraphProto] = {
        part: resolved.attributes[f"{part}_branch"] for part in ("then", "else")
    }
    chosen = resolver.answers.branch(name_of(node), resolved.name)
    if chosen is None and condition is not None and condition.data is not None:
        part = "then" if condition.data.any() else "else"
        outputs = resolver.graph(branches[part], _inner(resolved, scope, part), [])
    else:
        outputs = _dearer_branch(resolver, node, resolved, scope, branches, chosen)
    for name, value in zip(node.output, outputs, strict=False):
        if name:
            scope.values[name] = value


def _dearer_branch(
    resolver: Resolver,
    node: NodeProto,
    resolved: OnnxNode,
    scope: Scope,
    branches: Mapping[str, GraphProto],
    chosen: str | None,
) -> list[OnnxValue]:
    """Resolves both branches and keeps the chosen one, else the one with more work."""
    before, notes = resolver.nodes, dict(resolver.notes)
    tried: dict[str, tuple[int, list[OnnxNode], list[OnnxValue], dict[str, None]]] = {}
    failure: OpboundError | None = None
    for part, branch in branches.items():
        resolver.nodes, resolver.notes = [], dict(notes)
        try:
            outputs = resolver.graph(branch, _inner(resolved, scope, part), [])
            flops = resolver.flops_of(resolver.nodes)
            tried[part] = (flops, resolver.nodes, outputs, resolver.notes)
        except (ModelFileError, DimensionError, UnknownOperatorError) as error:
            # A branch for other inputs (another sampling rate) need not fit the given sizes.
            if part == chosen or (not isinstance(error, ModelFileError) and chosen is None):
                raise
            failure = error
    resolver.nodes, resolver.notes = before, notes
    if not tried:
        raise failure or ModelFileError(f"{resolved.label} has no branches")
    part = chosen or max(tried, key=lambda p: tried[p][0])
    _, nodes, outputs, resolver.notes = tried[part]
    resolver.nodes.extend(nodes)
    costs = ", ".join(f"{p} {t[0]:,} FLOPs" for p, t in tried.items())
    if chosen is not None:
        reason = "as asked for"
    elif len(tried) == 1:
        reason = "the only one that fits the sizes"
    else:
        equal = len({t[0] for t in tried.values()}) == 1
        reason = "as dear as the other" if equal else "the dearer one"
        reason += "; --branch takes the other"
    resolver.notes[f"The {part} branch of {node_label(node)} is counted, {reason} ({costs})."] = (
        None
    )
    return outputs


def _trips(
    resolver: Resolver,
    node: NodeProto,
    resolved: OnnxNode,
    limit: int | None,
    condition: OnnxValue | None,
) -> int:
    """How often a Loop runs: what the user says, else its limit where that is a real one."""
    name = name_of(node)
    given = resolver.answers.trip_count(name, resolved.name)
    if given is not None:
        return given
    if condition is not None and condition.data is not None and not condition.data.any():
        return 0
    if limit is not None and limit <= _MAX_TRIPS:
        return max(limit, 0)
    raise DimensionError(
        f"{resolved.label}: the data decides how often it loops; give --trip-count '{name}=N'"
    )


def _known_int(value: OnnxValue | None) -> int | None:
    return int(value.data.reshape(-1)[0]) if value is not None and value.data is not None else None


def _loop(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    body: GraphProto = resolved.attributes["body"]
    condition = resolved.input(1)
    trips = _trips(resolver, node, resolved, _known_int(resolved.input(0)), condition)
    carried = [v for v in resolved.inputs[2:] if v is not None]
    collected: list[list[OnnxValue]] = [[] for _ in body.output[1 + len(carried) :]]
    if condition is None:
        condition = _scalar(f"{resolved.name}/condition", True)
    for trip in range(trips):
        step = _scalar(f"{resolved.name}/{trip}/iteration", trip)
        inner = _inner(resolved, scope, str(trip))
        results = resolver.graph(body, inner, [step, condition, *carried])
        condition, carried = results[0], results[1 : 1 + len(carried)]
        for values, value in zip(collected, results[1 + len(carried) :], strict=True):
            values.append(value)
        if condition.data is not None and not condition.data.any():
            break
    _finish(resolver, node, resolved, scope, carried, collected, [0] * len(collected))


def _scan(resolver: Resolver, node: NodeProto, resolved: OnnxNode, scope: Scope) -> None:
    attributes = resolved.attributes
    body: GraphProto = attributes["body"]
    inputs = [v for v in resolved.inputs if v is not None]
    if resolved.version < 9:
        raise ModelFileError(
            f"{resolved.label}: Scan before opset 9 is not read, convert the model"
        )
    scans = attributes["num_scan_inputs"]
    if not 0 < scans <= len(inputs):
        raise ModelFileError(f"{resolved.label} scans {scans} of its {len(inputs)} inputs")
    states, sources = inputs[: len(inputs) - scans], inputs[len(inputs) - scans :]
    axes = attributes.get("scan_input_axes", [0] * scans)
    lengths = {s.shape[a] for s, a in zip(sources, axes, strict=True)}
    if len(lengths) != 1:
        raise ModelFileError(
            f"{resolved.label} scans inputs of different lengths {sorted(lengths)}"
        )
    collected: list[list[OnnxValue]] = [[] for _ in body.output[len(states) :]]
    for trip in range(lengths.pop()):
        slices = [_take(resolver, resolved, s, a, trip) for s, a in zip(sources, axes, strict=True)]
        results = resolver.graph(body, _inner(resolved, scope, str(trip)), [*states, *slices])
        states = results[: len(states)]
        for values, value in zip(collected, results[len(states) :], strict=True):
            values.append(value)
    out_axes = attributes.get("scan_output_axes", [0] * len(collected))
    _finish(resolver, node, resolved, scope, states, collected, out_axes)


def _take(
    resolver: Resolver, resolved: OnnxNode, source: OnnxValue, axis: int, index: int
) -> OnnxValue:
    """Element `index` of a scanned input, as a Gather."""
    axis %= len(source.shape)
    shape = source.shape[:axis] + source.shape[axis + 1 :]
    name = f"{resolved.name}/{index}/{source.name}"
    value = OnnxValue(name, source.type.with_shape(shape))
    position = _scalar(f"{name}/index", index)
    resolver.nodes.append(
        OnnxNode(
            f"{name}/Gather",
            "",
            "Gather",
            resolved.version,
            {"axis": axis},
            [source, position],
            [value],
            resolved.module,
            resolved.count,
        )
    )
    return value


def _finish(
    resolver: Resolver,
    node: NodeProto,
    resolved: OnnxNode,
    scope: Scope,
    carried: list[OnnxValue],
    collected: list[list[OnnxValue]],
    axes: list[int],
) -> None:
    """Gives the loop's results their names; per-trip results are stacked."""
    names = list(node.output)
    for name, value in zip(names, carried, strict=False):
        if name:
            scope.values[name] = value
    for name, values, axis in zip(names[len(carried) :], collected, axes, strict=False):
        if not name:
            continue
        if not values:
            raise DimensionError(f"{resolved.label} never runs: the shape of {name!r} is unknown")
        stack = OnnxNode(
            f"{resolved.name}/{name}",
            "",
            "ConcatFromSequence",
            resolved.version,
            {},
            [],
            [],
            resolved.module,
            resolved.count,
        )
        scope.values[name] = join(stack, scope.prefix + name, values, True, axis)
        resolver.nodes.append(stack)


def _scalar(name: str, content: int | bool) -> OnnxValue:
    dtype = DType.BOOL if isinstance(content, bool) else DType.INT64
    array = np.asarray(content, dtype=dtype.label)
    return OnnxValue(name, TensorType((), dtype), "computed", array)


SPECIAL: Mapping[str, Special] = {"If": _if, "Loop": _loop, "Scan": _scan}
