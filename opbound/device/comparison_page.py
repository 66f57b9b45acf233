"""A comparison as a table and as JSON."""

from __future__ import annotations

import json
from typing import Any

from opbound.device.comparison import Comparison
from reports.layout import Cells
from reports.quantities import time_text
from reports.table import text_table


def comparison_plain(comparison: Comparison, about: dict[str, Any]) -> str:
    """JSON text: what was run where, sums and errors by phase, and every row; errors as fractions."""
    plain = {
        **about,
        "whole_s": comparison.whole_s,
        "unmatched_s": comparison.unmatched_s,
        "sums": {phase: _sums(comparison, phase) for phase in comparison.phases},
        "total": _sums(comparison, None),
        "rows": [
            {
                "name": row.name,
                "op": row.op,
                "phase": row.phase,
                "count": row.count,
                "shapes": [list(shape) for shape in row.shapes],
                "bound": row.bound,
                "predicted_s": row.predicted_s,
                "measured_s": row.measured_s,
                "error": row.error,
            }
            for row in comparison.rows
        ],
    }
    return json.dumps(plain, indent=1) + "\n"


def _sums(comparison: Comparison, phase: str | None) -> dict[str, Any]:
    predicted_s, measured_s = comparison.sums(phase)
    return {
        "predicted_s": predicted_s,
        "measured_s": measured_s,
        "error": predicted_s / measured_s - 1 if measured_s > 0 else None,
        "mean_abs_error": comparison.mean_error(phase),
        "abs_error_by_time": comparison.error_by_time(phase),
    }


def comparison_text(comparison: Comparison, about: dict[str, Any], top: int) -> str:
    """The slowest operators as a table, then sums and errors."""
    head = "\n".join(f"{key:<10}  {value}" for key, value in about.items())
    rows = [
        [
            row.name,
            row.op,
            row.phase,
            str(row.count),
            " ".join("x".join(map(str, shape)) or "scalar" for shape in row.shapes[:3]),
            time_text(row.predicted_s),
            time_text(row.measured_s),
            _signed(row.error),
            row.bound,
        ]
        for row in comparison.rows[:top]
    ]
    titles = ["operator", "op", "phase", "count", "shapes", "predicted", "measured", "error"]
    table = text_table(
        Cells([*titles, "bound"], [*[False] * 3, True, False, *[True] * 3, False], rows)
    )
    more = len(comparison.rows) - len(rows)
    lines = [head, "", table]
    lines += [f"... and {more} more: --top {len(comparison.rows)} shows all"] if more > 0 else []
    parts: list[str | None] = [*comparison.phases, *([None] if len(comparison.phases) > 1 else [])]
    sums = []
    for phase in parts:
        found = _sums(comparison, phase)
        sums.append(
            [
                phase or "both",
                time_text(found["predicted_s"]),
                time_text(found["measured_s"]),
                _signed(found["error"]),
                f"{100 * found['abs_error_by_time']:.0f} %",
                f"{100 * found['mean_abs_error']:.0f} %",
            ]
        )
    titles = ["sum", "predicted", "measured", "error", "by time", "mean"]
    lines += ["", text_table(Cells(titles, [False, *[True] * 5], sums)), ""]
    lines.append(
        "by time, mean: absolute errors of the operators, weighted by measured time or each alike"
    )
    predicted_s, _ = comparison.sums()
    lines.append(
        f"whole run, unprofiled: predicted {time_text(predicted_s)}, measured "
        f"{time_text(comparison.whole_s)} ({_signed(predicted_s / comparison.whole_s - 1)})"
    )
    if comparison.unmatched_s > 0:
        lines.append(
            f"profiled in no row: {time_text(comparison.unmatched_s)} (constants, and sums of "
            "gradients)"
        )
    return "\n".join(lines) + "\n"


def _signed(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:+.0f} %"
