"""Two models or saved reports, analysed alike and compared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from graph_ir.errors import DimensionError
from opbound.analysis import Analysis
from opbound.options import Options
from opbound.saved_reports import saved_report

if TYPE_CHECKING:
    from importers import ImportedModel
    from reports import Report
    from reports.diff import Difference

Progress = Callable[[str], None]


@dataclass
class _Side:
    """One of the two."""

    model: str
    saved: Report | None
    options: Options
    imports: dict[Hashable, ImportedModel] = field(default_factory=dict)

    def report(self, progress: Progress, like: Report | None = None) -> Report:
        """The saved report, or that of the model.

        Args:
            progress: is told what is being done.
            like: has the sizes of inputs that the model leaves open.
        """
        if self.saved is not None:
            return self.saved
        if like is not None:
            shapes = {t.name: t.shape for t in like.model.inputs}
            self.options = replace(self.options, input_shapes=shapes)
        return Analysis(self.model, self.options, progress=progress, imports=self.imports).report()


def difference_of(
    base: str,
    new: str,
    options: Options,
    progress: Progress = lambda _: None,
    typed: Mapping[str, Any] = MappingProxyType({}),
) -> Difference:
    """What changed from one model or saved report to another.

    Models are analysed with the same options: those given, and beside a saved report those that it was
    made with. A dim that only one of the models leaves open gets the size that it has in the other.

    Args:
        base: the old one.
        new: the new one.
        options: of the analysis.
        progress: is told what is being done.
        typed: options that were asked for by name though they are the default.

    Raises:
        OpboundError: if one of them cannot be read or analysed.
    """
    from reports.diff import compare

    saved = [saved_report(path) for path in (base, new)]
    known = next((report for report in saved if report is not None), None)
    if known is not None and None in saved:
        options = Options.from_plain({**known.options, **options.to_plain(), **typed})
    sides = [_Side(path, report, options) for path, report in zip((base, new), saved, strict=True)]
    before, after = _reports(sides, progress)
    progress("matching the operators")
    difference = compare(before, after)
    if known is not None or options.execution != "eager" or not _perhaps_spelling(difference):
        return difference
    for side in sides:
        side.options = replace(side.options, execution="fused")
    fused = compare(*(side.report(progress) for side in sides))
    return compare(before, after, same_when_fused=fused.same_work)


def _perhaps_spelling(difference: Difference) -> bool:
    """Whether a fusing compiler might make the same of both: it is worth asking."""
    if difference.same_work:
        return False
    kinds = {finding.kind for finding in difference.findings}
    flops = next(total.change for total in difference.totals if total.name == "flops")
    return bool(kinds & {"lost-fusion", "gained-fusion"} or ("replaced" in kinds and not flops))


def _reports(sides: list[_Side], progress: Progress) -> tuple[Report, Report]:
    base, new = sides
    try:
        before = base.report(progress)
    except DimensionError:
        after = new.report(progress)
        if base.options.input_shapes or not after.model.inputs:
            raise
        return base.report(progress, like=after), after
    try:
        return before, new.report(progress)
    except DimensionError:
        if new.options.input_shapes or not before.model.inputs:
            raise
        return before, new.report(progress, like=before)
