"""Two reports compared: which operators changed, and what that does to the totals."""

from reports.diff.difference import Change, Difference, TotalChange, compare
from reports.diff.finding import Finding
from reports.diff.forms import diff_html, diff_json, diff_markdown, diff_text

__all__ = [
    "Change",
    "Difference",
    "Finding",
    "TotalChange",
    "compare",
    "diff_html",
    "diff_json",
    "diff_markdown",
    "diff_text",
]
