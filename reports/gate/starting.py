"""A budget to start with: today's figures and a margin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from graph_ir.errors import OpboundError
from reports.gate.metrics import METRICS
from reports.report import Report

_LIMITED = (
    "step_time",
    "time_per_token",
    "peak_memory",
    "parameters",
    "file_size",
    "flops",
    "bytes_moved",
)
_EXACT = ("operators", "unknown_operators")


def starting_budget(report: Report, name: str, margin: float) -> str:
    """The text of a budget file that the report just keeps.

    Args:
        report: the model as it is.
        name: of the target.
        margin: how much more than today's figures the limits allow: 0.1 is 10 %.

    Raises:
        OpboundError: if the margin is negative.
    """
    if not margin >= 0:
        raise OpboundError(f"--margin is {margin}: give a share of 0 or more, for example 0.1")
    lines = [
        f"# What {json.dumps(report.model.name)} may cost: its figures of today and {margin:.0%} more.",
        "# `opbound check MODEL` holds the model against it.",
        "",
        "[[target]]",
        f"name = {_toml(name)}",
        *(f"{key} = {_toml(value)}" for key, value in report.options.items()),
    ]
    if "hardware" not in report.options:
        lines.append(f"hardware = {_toml(report.hardware.name)}")
    lines += ["", "[target.limits]"]
    for key in (*_LIMITED, *_EXACT):
        metric = METRICS[key]
        value = metric.of_report(report) if metric.of_report else None
        if value is not None:
            limit = value if key in _EXACT else value * (1 + margin)
            lines.append(f"{key} = {_number(limit)}  # {metric.show(limit)}")
    lines += [
        "",
        "# Over the baseline that `opbound check --update-baseline` writes:",
        "# [target.growth]",
        '# step_time = "2 %"',
        "",
        "# Of a module or a kind of operator:",
        "# [[target.part]]",
        '# operator = "transpose"',
        "# limits = { operators = 0 }",
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Four digits, rounded up, so that the model of today keeps its limit."""
    if value == int(value) and value < 1e4:
        return str(int(value))
    digits = f"{value:.3e}"
    rounded = float(digits)
    if rounded < value:
        mantissa, _, power = digits.partition("e")
        rounded = float(f"{float(mantissa) + 0.001:.3f}e{power}")
    return repr(rounded) if rounded < 1e15 and rounded != int(rounded) else f"{rounded:.0f}"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    # A JSON string, number or list of them is the same in TOML.
    return json.dumps(value)
