"""ONNX operators as canonical ones: a rule per operator, one module per family.

To add an operator, write a function with `@rule("Name", domain="...")` in the fitting module. It
gets the resolved node, emits records of `graph_ir.ops`, and returns a value per result. If onnx has
no schema for the operator, `TYPE_RULES` of that module says its result types.
"""

from __future__ import annotations

from importers.onnx_ops import (
    attention,
    channels_last,
    contraction,
    convolution,
    elementwise,
    finn,
    machine_learning,
    microsoft,
    microsoft_attention,
    microsoft_caches,
    microsoft_experts,
    microsoft_misc,
    microsoft_quantized,
    movement,
    normalization,
    quantized,
    recurrent,
    reduction,
    signal,
)
from importers.onnx_ops.emitter import RULES, Emitter

__all__ = ["RULES", "Emitter", "families"]

families = (
    attention,
    channels_last,
    contraction,
    convolution,
    elementwise,
    finn,
    machine_learning,
    microsoft,
    microsoft_attention,
    microsoft_caches,
    microsoft_experts,
    microsoft_misc,
    microsoft_quantized,
    movement,
    normalization,
    quantized,
    recurrent,
    reduction,
    signal,
)
"""The modules whose rules are registered."""
