"""Group norm and instance norm, which exporters write as a norm between two reshapes.

Norms over all but the first two dims are layer norms without weights to `norm`; a weight per channel
makes a group norm of them.
"""

from __future__ import annotations

import numpy as np

from graph_ir.graph import Node, Value
from graph_ir.patterns.match import Match
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import Apply, Var
from graph_ir.tensor_type import DType, TensorType


def _per_instance(node: Node) -> bool:
    """A norm of each [n, g] over all other dims, its own weights none or known to do nothing."""
    if node.op == "layer_norm":
        rank = len(node.inputs[0].type.shape)
        return len(node.inputs) == 1 and node.attrs.get("rank", 1) == rank - 2
    if node.attrs["groups"] != node.inputs[0].type.shape[1]:
        return False
    return all(_is(v, number) for v, number in zip(node.inputs[1:], (1, 0), strict=False))


def _is(value: Value, number: float) -> bool:
    return value.data is not None and bool(np.all(np.asarray(value.data) == number))


def _statistics(r: Replacement, x: Value, groups: int) -> list[tuple[str, TensorType]]:
    if not r.training:
        return []
    stat = TensorType((x.type.shape[0], groups), DType.FLOAT32)
    return [("mean", stat), ("inv_std", stat)]


def _grouped(match: Match, r: Replacement) -> bool:
    """x[n, (g c), ...] as [n, g, ...], normalised, and back."""
    norm = match.nodes["norm"]
    x, made = match.values["x"], r.root.outputs[0].type
    split = norm.inputs[0].type.shape
    if made.shape != x.type.shape or len(made.shape) < 3 or len(split) < 3:
        return False
    groups = split[1]
    if (
        made.shape[0] != split[0]
        or made.shape[1] % groups
        or not match.nodes["split"].attrs.get("view")
    ):
        return False
    attrs = {"groups": groups, "eps": norm.attrs.get("eps", 1e-5)}
    return r.finish("group_norm", [x], attrs, _statistics(r, x, groups))


def _channel(r: Replacement, weight: Value, x: Value, label: str) -> Value | None:
    """A weight [c, 1, ...], as many as x[n, c, ...] has channels, as a vector."""
    space = len(x.type.shape) - 2
    channels = x.type.shape[1]
    shape = weight.type.shape
    wanted = (channels, *[1] * space)
    if space < 1 or shape[len(shape) - len(wanted) :] != wanted:
        return None
    if any(n != 1 for n in shape[: len(shape) - len(wanted)]):
        return None
    return r.view(weight, (channels,), label)


def _absorb(operands: int, label: str) -> Pattern:
    def build(match: Match, r: Replacement) -> bool:
        norm = match.nodes["norm"]
        x = norm.inputs[0]
        vector = _channel(r, match.values["w"], x, label)
        if vector is None:
            return False
        groups = norm.attrs.get("groups", x.type.shape[1])
        attrs = {"groups": groups, "eps": norm.attrs.get("eps", 1e-5)}
        return r.finish("group_norm", [*norm.inputs, vector], attrs, _statistics(r, x, groups))

    def bare(node: Node) -> bool:
        if len(node.inputs) != operands:
            return False
        return node.op == "group_norm" or _per_instance(node)

    ops = "group_norm layer_norm" if operands == 1 else "group_norm"
    op = "mul" if operands == 1 else "add"
    return Pattern(
        f"group norm {label}", Apply(op, Apply(ops, name="norm", where=bare), Var("w")), build
    )


PATTERNS = (
    Pattern(
        "group norm between reshapes",
        Apply(
            "reshape",
            Apply(
                "layer_norm",
                Apply("reshape", Var("x"), name="split"),
                name="norm",
                where=_per_instance,
            ),
        ),
        _grouped,
    ),
    Pattern(
        "group norm as instance norm between reshapes",
        Apply(
            "reshape",
            Apply(
                "group_norm",
                Apply("reshape", Var("x"), name="split"),
                Var("ones"),
                Var("zeros"),
                name="norm",
                where=_per_instance,
            ),
        ),
        _grouped,
    ),
    _absorb(1, "weight"),
    _absorb(2, "bias"),
)
