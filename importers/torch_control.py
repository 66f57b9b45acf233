"""Control flow of exported programs: branches and loops whose bodies are graphs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graph_ir.errors import UnknownOperatorError
from graph_ir.graph import Node
from importers.torch_call import Call, Constant, is_tensor
from importers.torch_movement import as_shape, slice_value

if TYPE_CHECKING:
    from importers.torch_convert import Converter

_MOST_TRIPS = 10_000
"""Loops are written out; a longer one is refused."""


def control_flow(converter: Converter, node: Any, name: str, args: Sequence[Any]) -> Any:
    """What a higher-order operator returns; None if it is not one of these.

    Raises:
        UnknownOperatorError: how often a loop runs depends on data, or is absurdly often.
    """
    if name == "cond":
        return _dearer_branch(converter, node, *args[:4])
    if name in ("scan", "map_impl"):
        return _over_rows(converter, node, name, args)
    if name == "while_loop":
        return _while(converter, node, *args)
    return None


def _dearer_branch(
    converter: Converter, node: Any, _: Any, yes: Any, no: Any, operands: Sequence[Any]
) -> Any:
    """Both branches are translated, the one with more FLOPs (then bytes) stays in the graph."""
    kept = list(converter.builder.nodes)
    found: list[tuple[tuple[int, int], str, list[Node], Any]] = []
    for label, branch in (("true", yes), ("false", no)):
        converter.builder.nodes = list(kept)
        result = converter.run(branch, operands)
        own = converter.builder.nodes[len(kept) :]
        work = (sum(n.flops for n in own), sum(n.bytes_read + n.bytes_written for n in own))
        found.append((work, label, own, result))
    (work, label, own, result), (other, *_rest) = sorted(found, key=lambda f: f[0], reverse=True)
    converter.builder.nodes = [*kept, *own]
    converter.notes.append(
        f"{node.name}: the {label} branch counts, {work[0]:.3g} FLOPs and {work[1]:.3g} bytes; the other "
        f"one has {other[0]:.3g} and {other[1]:.3g}"
    )
    return result


def _over_rows(converter: Converter, node: Any, name: str, args: Sequence[Any]) -> Any:
    """`scan` and `map`: the body for each row of the operands, its last results stacked."""
    body, *rest = args
    carried, rows, more = ([], *rest) if name == "map_impl" else rest
    call = Call(converter, node, {})
    values = [converter.materialize(v, node) for v in rows]
    trips = values[0].type.shape[0]
    _check_trips(node, trips)
    state = list(carried)
    collected: list[Sequence[Any]] = []
    for i in range(trips):
        cut = [_row(call, value, i) for value in values]
        results = converter.run(body, [*state, *cut, *more])
        state, made = results[: len(carried)], results[len(carried) :]
        collected.append(made)
    stacked = [_stacked(call, list(column)) for column in zip(*collected, strict=True)]
    return [*state, *stacked]


def _row(call: Call, value: Any, index: int) -> Any:
    part = slice_value(call, value, 0, index, 1, suffix="row")
    return as_shape(call, part, value.type.shape[1:], "row")


def _stacked(call: Call, parts: list[Any]) -> Any:
    values = [call.converter.materialize(v, call.node) for v in parts]
    one = values[0].type
    rows = [as_shape(call, v, (1, *one.shape), "rows") for v in values]
    whole = one.with_shape((len(rows), *one.shape))
    return call.emit("concat", rows, [whole], {"axis": 0}, "stacked")[0]


def _while(
    converter: Converter, node: Any, goes_on: Any, body: Any, state: Sequence[Any], more: Any = ()
) -> Any:
    """A loop that counts in constants is followed; what it decides by data is not known."""
    current = list(state)
    for _ in range(_MOST_TRIPS):
        kept = list(converter.builder.nodes)
        verdict = converter.run(goes_on, [*current, *more])
        converter.builder.nodes = kept
        verdict = verdict[0] if isinstance(verdict, list) else verdict
        known = verdict.content if isinstance(verdict, Constant) else verdict
        if known is None or is_tensor(known):
            raise UnknownOperatorError(
                f"how often {node.name} (while_loop) runs depends on data: write it as a loop of a fixed "
                f"length"
            )
        if not bool(known):
            return current
        current = list(converter.run(body, [*current, *more]))
    _check_trips(node, _MOST_TRIPS + 1)
    return current


def _check_trips(node: Any, trips: int) -> None:
    if trips > _MOST_TRIPS:
        raise UnknownOperatorError(
            f"{node.name} runs its body {trips} times or more; opbound writes loops out, up to "
            f"{_MOST_TRIPS} times: trace it with a smaller input"
        )
