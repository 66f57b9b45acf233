"""The table from aten operators to graph_ir's records.

A rule takes a `Call` and returns what the aten call's result is in the operator graph. To add an operator,
add a line to the table of the file it fits: `torch_elementwise`, `torch_movement`, `torch_lookup`,
`torch_contraction`, `torch_attention`, `torch_reduction`, `torch_linalg`, `torch_loss`, `torch_lowered`.

A custom operator (`mylib::gated_linear`) needs no line here if graph_ir has a record of its name, operands
in its order; else it goes into `EXTRA` below, by its qualified name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graph_ir.op_def import all_ops
from importers import (
    torch_attention,
    torch_contraction,
    torch_elementwise,
    torch_linalg,
    torch_lookup,
    torch_loss,
    torch_lowered,
    torch_movement,
    torch_reduction,
)
from importers.torch_call import Call, flat, is_tensor
from importers.torch_elementwise import Rule

EXTRA: dict[str, Rule] = {}
"""Rules for operators outside aten, e.g. `EXTRA["mylib.fused_mlp"] = rule`."""


def rules() -> Mapping[str, Rule]:
    """All rules; those in `EXTRA` win."""
    return {
        **torch_movement.RULES,
        **torch_lookup.RULES,
        **torch_elementwise.RULES,
        **torch_reduction.RULES,
        **torch_linalg.RULES,
        **torch_contraction.RULES,
        **torch_attention.RULES,
        **torch_loss.RULES,
        **torch_lowered.RULES,
        **EXTRA,
    }


def find_rule(target: Any, table: Mapping[str, Any]) -> Any:
    """The rule of an operator: of its overload, of its name, or of the same without in-place writing."""
    name = str(target).rsplit(".", 1)[0]
    found = table.get(str(target)) or table.get(name)
    if found is None and name.endswith("_") and not name.endswith("__"):
        found = table.get(name[:-1])
    return found


def record_rule(target: Any) -> Any:
    """For a custom operator outside aten: the record of its own name, operands in its order."""
    namespace, _, name = str(target).partition(".")
    record = name.split(".", 1)[0]
    if namespace in ("aten", "prims") or record not in all_ops():
        return None

    def rule(call: Call) -> Any:
        operands = [
            call.converter.materialize(v, call.node)
            for v in flat(call.args.values())
            if is_tensor(v)
        ]
        attrs = {k: v for k, v in call.args.items() if isinstance(v, int | float | str | bool)}
        results = call.emit(record, operands, attrs=attrs)
        return results if isinstance(call.node.meta["val"], tuple | list) else results[0]

    return rule
