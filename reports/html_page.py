"""The report as one HTML file that opens from disk: charts, tables and data, no network.

The page's data lie in it compressed. Names from the model are only ever data there: the page's script
makes text nodes of them, never markup, and a content security policy forbids everything from outside.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from reports.html_data import page_report
from reports.html_fragment import render_html
from reports.quantities import plain_text
from reports.report import Report

_SCRIPTS = ("elements.js", "operator_table.js", "charts.js", "changes.js", "page.js")
FALLBACK_ROWS = 50
"""Operators that a browser without scripts shows."""


def render_page(report: Report) -> str:
    """The page of one report."""
    name = plain_text(report.model.name)
    subtitle = f"{plain_text(report.hardware.name)} · {report.mode} · {report.strategy}"
    return _page(f"{name} on {plain_text(report.hardware.name)}", subtitle, [report], [name], ())


def render_comparison(
    before: Report, after: Report, labels: tuple[str, str], changes: Sequence[dict[str, Any]] = ()
) -> str:
    """The page of two reports side by side.

    Args:
        before: the report on the left.
        after: the report on the right.
        labels: what to call them.
        changes: matched operators: `name`, `op`, `state`, `bound`, `before_s`, `after_s`, and the
            differences in `flops` and `bytes`.
    """
    names = [plain_text(label) for label in labels]
    subtitle = f"{names[0]} on the left, {names[1]} on the right"
    return _page(f"{names[0]} and {names[1]}", subtitle, [before, after], names, changes)


def _page(
    title: str,
    subtitle: str,
    reports: Sequence[Report],
    labels: Sequence[str],
    changes: Sequence[dict[str, Any]],
) -> str:
    data = {
        "title": title,
        "subtitle": plain_text(subtitle),
        "reports": [page_report(r, label) for r, label in zip(reports, labels, strict=True)],
        "changes": [{k: _safe(v) for k, v in change.items()} for change in changes],
    }
    packed = gzip.compress(json.dumps(data, allow_nan=False).encode(), mtime=0)
    return Template(_asset("page.html")).substitute(
        version=escape(reports[0].opbound_version),
        title=escape(title),
        style=_asset("page.css"),
        fallback="".join(render_html(report, top=FALLBACK_ROWS) for report in reports),
        data=base64.b64encode(packed).decode(),
        charts=_asset("echarts", "echarts.min.js"),
        script='"use strict";\n' + "\n".join(map(_asset, _SCRIPTS)),
    )


def _safe(value: Any) -> Any:
    return plain_text(value) if isinstance(value, str) else value


def _asset(*path: str) -> str:
    return files("reports").joinpath("assets", *path).read_text(encoding="utf-8")
