"""ONNX operators as canonical ones: a rule per operator, one module per family.

To add an operator, write a function with `@rule("Name", domain="...")` in the fitting module. It
gets the resolved node, emits records of `graph_ir.ops`, and returns a value per result. If onnx has
no schema for the operator, `TYPE_RULES` of that module says its result types.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from importers.onnx_ops.emitter import RULES, Emitter, Rule
from importers.onnx_ops.foreign import rule_without_name
from importers.onnx_values import OnnxNode

__all__ = ["RULES", "TYPE_RULES", "Emitter", "rule_of"]

# Importing a module registers its rules.
_FAMILIES = [
    import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
]

TYPE_RULES: Mapping[tuple[str, str], Callable[[OnnxNode], Sequence[Any]]] = {
    key: function
    for family in _FAMILIES
    for key, function in getattr(family, "TYPE_RULES", {}).items()
}
"""(domain, operator) -> types of its results, for operators that onnx has no schema for."""


def rule_of(domain: str, op_type: str) -> Rule | None:
    """The operator's rule, or that of its domain; None if it can only be `unknown` on request."""
    return RULES.get((domain, op_type)) or rule_without_name(domain, op_type)
