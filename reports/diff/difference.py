"""The difference of two reports: changes of operators, grouped, and of the totals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from reports.diff.matching import Match, match_rows
from reports.diff.order import in_model_order
from reports.figures import OpRow
from reports.report import Report
from reports.rows import layer_pattern, worth_showing

if TYPE_CHECKING:
    from reports.diff.finding import Finding

STATES = ("added", "removed", "changed", "respelled", "moved", "renamed", "same")
"""What became of an operator. From `respelled` on they do the same work."""

_DIFFERENT = frozenset({"added", "removed", "changed"})


@dataclass(frozen=True, slots=True)
class Change:
    """Operators of one kind that changed in the same way: one, or the same one of repeated layers."""

    state: str
    matches: tuple[Match, ...]
    """Never empty."""

    @property
    def before(self) -> OpRow | None:
        """The first of them in the old report."""
        return self.matches[0].before

    @property
    def after(self) -> OpRow | None:
        """The first of them in the new report."""
        return self.matches[0].after

    @property
    def count(self) -> int:
        """How many operators."""
        return len(self.matches)

    @property
    def op(self) -> str:
        """The operator, with both names where it became another one."""
        ops = dict.fromkeys(row.op for row in (self.before, self.after) if row)
        return " → ".join(ops)

    @property
    def name(self) -> str:
        """Names as in the newer report that has them, a range of layers as `[0-31]`."""
        return self._names([m.one.label for m in self.matches])

    @property
    def old_name(self) -> str | None:
        """Names in the old report; None where it has none or the same."""
        old = [m.before.label for m in self.matches if m.before and m.renamed]
        return self._names(old) if old else None

    @staticmethod
    def _names(labels: list[str]) -> str:
        from graph_ir.fold import name_pattern

        return name_pattern(labels)

    @property
    def bound(self) -> str:
        """The bound, and where it flipped both of them."""
        bounds = dict.fromkeys(row.bound for row in (self.before, self.after) if row)
        return " → ".join(bounds)

    @property
    def flips(self) -> bool:
        """Whether another resource limits it now."""
        return bool(self.before and self.after and self.before.bound != self.after.bound)

    def total(self, key: str, *, after: bool) -> float:
        """Sum of one of the rows' quantities (`flops`, `time_s`, ...) on one side."""
        rows = (m.after if after else m.before for m in self.matches)
        return float(sum(row[key] for row in rows if row is not None))

    def change(self, *keys: str) -> float:
        """By how much the sum of these quantities grows."""
        return sum(self.total(key, after=True) - self.total(key, after=False) for key in keys)


@dataclass(frozen=True, slots=True)
class TotalChange:
    """One figure of the whole model before and after."""

    name: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def ratio(self) -> float | None:
        """Change over before; None from nothing."""
        return self.change / self.before if self.before else None


@dataclass(frozen=True)
class Difference:
    """What two reports do not have in common."""

    before: Report
    after: Report
    changes: tuple[Change, ...]
    """Of all operators that are no mere views, in the model's order."""
    totals: tuple[TotalChange, ...]
    same_when_fused: bool | None = None
    """Whether a fusing compiler makes the same of both; None where nobody looked."""

    @cached_property
    def same_work(self) -> bool:
        """Whether both models do the same.

        Names, the order of independent operators, the values of weights, and whether a product and the
        addition after it are one operator or two, do not count. Nor does how work is spelled, where a
        fusing compiler makes the same of both and even unfused they compute and move as much: three
        slices or one split. A fusion that is lost moves more, and counts.
        """
        from reports.diff.interface import same_interface

        different = self.of(*_DIFFERENT)
        keys = ("flops", "bytes_read", "bytes_written", "bytes_communicated")
        spelling = self.same_when_fused and not any(
            sum(change.change(key) for change in different) for key in keys
        )
        return not (
            (different and not spelling)
            or self.before.totals.parameters != self.after.totals.parameters
            or sorted(self.before.model.dims.values()) != sorted(self.after.model.dims.values())
            or not same_interface(self)
        )

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What happened, each with a kind and a sentence."""
        from reports.diff.findings import find

        return tuple(find(self))

    def of(self, *states: str) -> list[Change]:
        """The changes of these states."""
        return [change for change in self.changes if change.state in states]

    def count(self, state: str) -> int:
        """How many operators are in a state."""
        return sum(change.count for change in self.of(state))


def compare(before: Report, after: Report, *, same_when_fused: bool | None = None) -> Difference:
    """Matches every operator of two reports and says what changed.

    Args:
        before: the old report.
        after: the new report.
        same_when_fused: whether both models, analysed with fused execution, are the same work.
    """
    old, new = _rows(before), _rows(after)
    if not (_has_attributes(before) and _has_attributes(after)):
        # Schema 1.0 does not say them: they cannot be compared, and nothing is made of it.
        old, new = ([replace(row, attributes="") for row in rows] for rows in (old, new))
    groups: dict[tuple[Hashable, ...], list[Match]] = {}
    for match in match_rows(old, new):
        groups.setdefault(_kind(match), []).append(match)
    changes = tuple(Change(state_of(matches[0]), tuple(matches)) for matches in groups.values())
    return Difference(before, after, changes, _totals(before, after, old, new), same_when_fused)


def _rows(report: Report) -> list[OpRow]:
    return [row for row in in_model_order(report.operators) if worth_showing(row)]


def _has_attributes(report: Report) -> bool:
    return report.schema_version != "1.0"


def state_of(match: Match) -> str:
    """One of `STATES`."""
    if match.before is None:
        return "added"
    if match.after is None:
        return "removed"
    if not match.same_work:
        return "respelled" if match.respelled else "changed"
    return "moved" if match.moved else "renamed" if match.renamed else "same"


def _kind(match: Match) -> tuple[Hashable, ...]:
    """What operators have in common that are told in one line."""
    rows = [
        row
        and (
            layer_pattern(row.label),
            row.op,
            row.phase,
            row.shapes,
            row.dtypes,
            row.attributes,
            row.bound,
        )
        for row in (match.before, match.after)
    ]
    return (state_of(match), *rows)


def _totals(
    before: Report, after: Report, old: Sequence[OpRow], new: Sequence[OpRow]
) -> tuple[TotalChange, ...]:
    a, b = before.totals, after.totals
    figures: list[tuple[str, float, float]] = [
        ("step_time_s", a.step_time_s, b.step_time_s),
        ("flops", a.flops, b.flops),
        ("bytes_moved", a.bytes_read + a.bytes_written, b.bytes_read + b.bytes_written),
        ("bytes_communicated", a.bytes_communicated, b.bytes_communicated),
        ("parameters", a.parameters, b.parameters),
        ("peak_memory_bytes", before.memory.peak_bytes, after.memory.peak_bytes),
        (
            "parameter_bytes",
            before.memory.by_kind_bytes["parameters"],
            after.memory.by_kind_bytes["parameters"],
        ),
        ("operators", len(old), len(new)),
    ]
    return tuple(TotalChange(*figure) for figure in figures)
