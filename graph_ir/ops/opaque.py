"""Operators that opbound does not know, admitted on request: only their operands' and results' bytes count."""

from __future__ import annotations

from graph_ir.op_def import OpDef, register
from graph_ir.ops.gather import _whole

register(
    # Attribute `frontend`: the operator's name in the model.
    OpDef("unknown", "opaque", _whole, flops=0, engine="vector"),
)
