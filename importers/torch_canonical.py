"""The table from aten operators to graph_ir's records.

A rule takes a `Call` and returns what the aten call's result is in the operator graph. To add an operator,
add a line to the table of the file it fits: `torch_elementwise`, `torch_movement`, `torch_contraction`,
`torch_reduction`. A custom operator (`mylib::gated_linear`) needs no line here if graph_ir has a record of
its name and operands in its order; else it goes into `EXTRA` below, by its qualified name.
"""

from __future__ import annotations

from collections.abc import Mapping

from importers import torch_contraction, torch_elementwise, torch_movement, torch_reduction
from importers.torch_elementwise import Rule

EXTRA: dict[str, Rule] = {}
"""Rules for operators outside aten, e.g. `EXTRA["mylib.fused_mlp"] = rule`."""


def rules() -> Mapping[str, Rule]:
    """All rules; those in `EXTRA` win."""
    return {
        **torch_movement.RULES,
        **torch_elementwise.RULES,
        **torch_reduction.RULES,
        **torch_contraction.RULES,
        **EXTRA,
    }
