"""The report as data: what one analysis says, in base units with the unit in every name.

These classes are the JSON form read as Python: `report.totals.flops` is `["totals"]["flops"]` in
the file, and each record also answers to its JSON key, so that both spellings work in a notebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from reports.figures import MemoryUse, OpRow, PipelineRank, TimelineEvent, Totals
from reports.records import Record
from reports.search_info import SearchInfo
from reports.setting import Coverage, HardwareInfo, ModelInfo, StrategyInfo

if TYPE_CHECKING:
    from pathlib import Path

    from pandas import DataFrame

    from reports.view import View

SCHEMA_VERSION = "1.2"
"""Version of the JSON form; the major number grows when a key changes its meaning or goes away."""

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Record):
    """What one analysis found. Made by `reports.build_report`, or read back by `from_json`."""

    schema_version: str = SCHEMA_VERSION
    opbound_version: str
    model: ModelInfo
    hardware: HardwareInfo
    strategy: StrategyInfo
    mode: str
    options: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    """What was asked for, where it is not the default: enough to analyse the model again."""
    coverage: Coverage
    totals: Totals
    memory: MemoryUse
    operators: tuple[OpRow, ...]
    timeline: tuple[TimelineEvent, ...] = ()

    pipeline: tuple[PipelineRank, ...] | None = None
    """The ranks along the pipeline, where there is one."""
    search: SearchInfo | None = None
    """Of `--parallel auto`: the other strategies, and why this one."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form as plain dicts, lists, numbers and strings."""
        from reports.json_form import to_plain

        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_json(self) -> str:
        """The JSON form as text; its schema is `reports/report.schema.json` in the package."""
        from reports.json_form import dump_report

        return dump_report(self)

    @staticmethod
    def from_json(text: str) -> Report:
        """Reads `to_json`'s text back.

        Raises:
            OpboundError: if the text is not a report of a schema version that this opbound reads.
        """
        from reports.json_form import load_report

        return load_report(text)

    def every_node(self) -> Report:
        """The same report with one row per node in place of one per group."""
        from dataclasses import replace

        from reports.rows import expand_rows

        return replace(self, operators=expand_rows(self.operators))

    def to_text(
        self, *, top: int | None = None, width: int | None = None, view: View | None = None
    ) -> str:
        """The report as plain text: header, operators by time, totals, conclusions."""
        from reports.table import render_text

        return render_text(self, top=top, width=width, view=view)

    def to_markdown(self, *, top: int | None = None, view: View | None = None) -> str:
        """The report as Markdown."""
        from reports.markdown import render_markdown

        return render_markdown(self, top=top, view=view)

    def to_csv(self, *, top: int | None = None, view: View | None = None) -> str:
        """The operators as CSV, one line per row, in base units."""
        from reports.csv_rows import render_csv

        return render_csv(self, top=top, view=view)

    def to_html(self) -> str:
        """The report as one HTML file with charts, which needs no network."""
        from reports.html_page import render_page

        return render_page(self)

    def to_trace(self) -> str:
        """The simulated step as Chrome's trace events, for Perfetto."""
        from reports.trace import render_trace

        return render_trace(self)

    def to_dataframe(self) -> DataFrame:
        """The operators as a pandas DataFrame, one row each, in base units.

        Raises:
            OpboundError: if pandas is not installed.
        """
        from reports.dataframe import operators_dataframe

        return operators_dataframe(self)

    def save(self, path: str | Path) -> None:
        """Writes the JSON form to a file."""
        from pathlib import Path

        Path(path).write_text(self.to_json(), encoding="utf-8")

    def __str__(self) -> str:
        return self.to_text(top=30)

    def _repr_html_(self) -> str:
        from reports.html_fragment import render_html

        return render_html(self, top=30)
