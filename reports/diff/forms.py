"""A difference as a table, Markdown, JSON and HTML."""

from __future__ import annotations

import json
from typing import Any

from reports.diff.difference import STATES, Change, Difference, TotalChange
from reports.layout import Cells
from reports.markdown import escape, markdown_table
from reports.quantities import bytes_text, percent_text, plain_text, scaled_text, time_text
from reports.table import text_table

DIFF_SCHEMA_VERSION = "1.0"

_MOST_FINDINGS = 20

_TELLING = ("added", "removed", "changed")


def diff_text(difference: Difference, labels: tuple[str, str], *, top: int | None = None) -> str:
    """The difference as plain text.

    Args:
        difference: what to show.
        labels: what the old and the new report are called.
        top: how many changes to show, the costliest first; None shows all.
    """
    lines = [f"base  {plain_text(labels[0])}", f"new   {plain_text(labels[1])}", ""]
    lines += [_verdict(difference), *(f"- {line}" for line in _told(difference)), ""]
    lines += [text_table(_total_cells(difference)), ""]
    shown, rest = _shown(difference, top)
    if shown:
        lines += [text_table(_change_cells(shown)), *rest]
    return "\n".join(lines).rstrip() + "\n"


def diff_markdown(
    difference: Difference, labels: tuple[str, str], *, top: int | None = None
) -> str:
    """The difference for a pull request's comment; names from the model are escaped."""
    old, new = (escape(plain_text(label)) for label in labels)
    parts = [f"### opbound: {old} → {new}", f"**{_verdict(difference)}**"]
    parts += ["\n".join(f"- {escape(line)}" for line in _told(difference))]
    parts += [markdown_table(_total_cells(difference))]
    shown, rest = _shown(difference, top)
    if shown:
        parts += [markdown_table(_change_cells(shown)), *rest]
    return "\n\n".join(filter(None, parts)) + "\n"


def diff_json(difference: Difference, labels: tuple[str, str]) -> str:
    """The difference as JSON: verdict, findings, totals and every change but `same`."""
    plain = {
        "schema_version": DIFF_SCHEMA_VERSION,
        "same_work": difference.same_work,
        "base": _source(difference.before, labels[0]),
        "new": _source(difference.after, labels[1]),
        "findings": [finding._asdict() for finding in difference.findings],
        "totals": {
            total.name: {
                "base": total.before,
                "new": total.after,
                "change": total.change,
                "ratio": total.ratio,
            }
            for total in difference.totals
        },
        "operators": {state: difference.count(state) for state in reversed(STATES)},
        "changes": [_change(c) for c in difference.changes if c.state != "same" or c.flips],
    }
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"


def diff_html(difference: Difference, labels: tuple[str, str]) -> str:
    """Both reports side by side with the changes, as one HTML file."""
    from reports.html_page import render_comparison

    changes = [
        {
            "name": change.name,
            "op": change.op,
            "state": change.state,
            "bound": change.bound,
            "before_s": change.total("time_s", after=False),
            "after_s": change.total("time_s", after=True),
            "flops": change.change("flops"),
            "bytes": change.change("bytes_read", "bytes_written"),
        }
        for change in difference.changes
    ]
    return render_comparison(difference.before, difference.after, labels, changes)


def _source(report: Any, label: str) -> dict[str, Any]:
    return {
        "label": label,
        "source": report.model.source,
        "sha256": report.model.sha256,
        "importer": report.model.importer,
        "hardware": report.hardware.name,
        "mode": report.mode,
        "opbound_version": report.opbound_version,
    }


def _change(change: Change) -> dict[str, Any]:
    keys = ("flops", "bytes_read", "bytes_written", "bytes_communicated", "time_s")
    sides: dict[str, Any] = {}
    for name, row, after in (("base", change.before, False), ("new", change.after, True)):
        sides[name] = row and {
            "name": change.name if after or change.old_name is None else change.old_name,
            "op": row.op,
            "shapes": [list(shape) for shape in row.shapes],
            "dtypes": list(row.dtypes),
            "bound": row.bound,
            **{key: change.total(key, after=after) for key in keys},
        }
    return {"state": change.state, "count": change.count, "bound_flips": change.flips, **sides}


def _told(difference: Difference) -> list[str]:
    """The findings that a person reads: two other models would have hundreds."""
    rest = len(difference.findings) - _MOST_FINDINGS
    more = [f"and {rest} more findings, in the JSON form"] if rest > 0 else []
    return [*map(str, difference.findings[:_MOST_FINDINGS]), *more]


def _verdict(difference: Difference) -> str:
    if difference.same_work:
        return "The same work."
    counts = [f"{difference.count(state)} {state}" for state in _TELLING if difference.count(state)]
    return "The work differs: " + (", ".join(counts) or "the operators are the same") + "."


def _shown(difference: Difference, top: int | None) -> tuple[list[Change], list[str]]:
    changes = [c for c in difference.changes if c.state in _TELLING or c.flips]
    ordered = sorted(changes, key=lambda c: -abs(c.change("time_s")))[:top]
    hidden = len(changes) - len(ordered)
    return ordered, [f"{hidden} more changes are not shown."] if hidden else []


def _total_cells(difference: Difference) -> Cells:
    rows = [
        [total.name.replace("_", " ").removesuffix(" s"), *_figures(total)]
        for total in difference.totals
    ]
    return Cells(["", "base", "new", "change", ""], [False, True, True, True, True], rows)


def _figures(total: TotalChange) -> list[str]:
    def show(value: float) -> str:
        if total.name.endswith("_s"):
            return time_text(value)
        return bytes_text(value) if "bytes" in total.name else scaled_text(value)

    sign = "+" if total.change > 0 else "-" if total.change < 0 else ""
    part = "" if not total.change or total.ratio is None else sign + percent_text(abs(total.ratio))
    change = sign + show(abs(total.change)) if total.change else "0"
    return [show(total.before), show(total.after), change, part]


def _change_cells(changes: list[Change]) -> Cells:
    headers = ["", "operator", "op", "count", "shapes", "FLOPs", "bytes", "time", "bound"]
    right = [header in ("count", "FLOPs", "bytes", "time") for header in headers]
    return Cells(headers, right, [_change_row(change) for change in changes])


def _change_row(change: Change) -> list[str]:
    def signed(value: float, text: str) -> str:
        return f"{'+' if value > 0 else '-' if value < 0 else ''}{text}"

    flops = change.change("flops")
    moved = change.change("bytes_read", "bytes_written")
    time_s = change.change("time_s")
    return [
        change.state,
        plain_text(change.name),
        plain_text(change.op),
        str(change.count),
        _shapes(change),
        signed(flops, scaled_text(abs(flops))),
        signed(moved, bytes_text(abs(moved))),
        signed(time_s, time_text(abs(time_s))),
        plain_text(change.bound),
    ]


def _shapes(change: Change) -> str:
    from reports.layout import shapes_text

    texts = [shapes_text(row.shapes) for row in (change.before, change.after) if row]
    return " → ".join(dict.fromkeys(texts))
