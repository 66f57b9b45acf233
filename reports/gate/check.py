"""Holds a report against a target: each limit is a rule that passes or fails."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from graph_ir.errors import OpboundError
from reports.figures import OpRow
from reports.gate.budget import Part, Target
from reports.gate.metrics import METRICS, Metric
from reports.quantities import percent_text, plain_text
from reports.report import Report

_MOST_NODES = 20
"""Forbidden operators that are named one by one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule and what it found."""

    rule: str
    """`step-time`, `growth-flops`, `forbidden-operator`, ..."""
    passed: bool
    message: str
    node: str | None = None
    """The operator that is to blame most; None for the whole model."""
    value: float | None = None
    limit: float | None = None
    part: str = ""
    """The part of the model that the rule is about; empty for all of it."""


@dataclass(frozen=True, slots=True)
class TargetResult:
    """All findings of one target."""

    target: str
    report: Report
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no rule is broken."""
        return all(finding.passed for finding in self.findings)


def check_target(target: Target, report: Report, baseline: Report | None) -> TargetResult:
    """Checks one target.

    Args:
        target: the limits.
        report: of the model, analysed as the target says.
        baseline: what growth is counted from; None where there is none.

    Raises:
        OpboundError: if growth is limited and there is no baseline, or a metric is not to be had.
    """
    findings = _limits("", target.limits, report, report.operators)
    notes: list[str] = []
    grows = target.growth or any(part.growth for part in target.parts)
    if grows and baseline is None:
        raise OpboundError(
            f"target {target.name}: growth needs a baseline; give --baseline FILE, which "
            "--update-baseline writes"
        )
    if baseline is not None and baseline.opbound_version != report.opbound_version:
        notes.append(_version_note(baseline, report))
    # A model that is byte for byte the baseline's cannot have grown: then opbound's figures moved.
    lenient = baseline is not None and _moved_by_version(baseline, report)
    if baseline is not None:
        findings += _growth("", target.growth, report, baseline, None, lenient)
    for part in target.parts:
        found = [row for row in report.operators if _in(part, row)]
        if not found:
            notes.append(f"no operator is in the part {plain_text(str(part))}")
        findings += _limits(str(part), part.limits, report, found)
        if baseline is not None:
            findings += _growth(str(part), part.growth, report, baseline, part, lenient)
    findings += _forbidden(target, report)
    return TargetResult(target.name, report, tuple(findings), tuple(notes))


def _limits(
    part: str, limits: Mapping[str, float], report: Report, rows: Sequence[OpRow]
) -> list[Finding]:
    findings = []
    for name, limit in limits.items():
        metric = METRICS[name]
        value = _value(metric, report, rows, whole=not part)
        passed = value <= limit
        verb = "is within" if passed else "is over"
        findings.append(
            Finding(
                _rule(name),
                passed,
                f"{_told(part)}{_words(name)} {metric.show(value)} {verb} {metric.show(limit)}",
                None if passed else _to_blame(metric, rows),
                value,
                limit,
                part,
            )
        )
    return findings


def _growth(
    name_of_part: str,
    growth: Mapping[str, float],
    report: Report,
    baseline: Report,
    part: Part | None,
    lenient: bool,
) -> list[Finding]:
    findings = []
    for name, share in growth.items():
        metric = METRICS[name]
        now = _value(metric, report, _rows(report, part), whole=part is None)
        before = _value(metric, baseline, _rows(baseline, part), whole=part is None)
        limit = before * (1 + share)
        # Rounding of sums is no growth.
        passed = now <= limit * (1 + 1e-9)
        grown = f"{now / before - 1:+.1%}".replace("%", " %") if before else "from nothing"
        text = (
            f"{_told(name_of_part)}{_words(name)} {metric.show(before)} → {metric.show(now)} "
            f"({grown}, allowed +{percent_text(share)})"
        )
        if not passed and lenient:
            text += "; the model is the baseline's: the figures of opbound moved"
        findings.append(Finding(f"growth-{_rule(name)}", passed or lenient, text, None, now, limit))
    return findings


def _told(part: str) -> str:
    return f"{plain_text(part)}: " if part else ""


def _to_blame(metric: Metric, rows: Sequence[OpRow]) -> str | None:
    """The operator that has most of a metric; None where it is no sum over operators."""
    if metric.of_rows is None or metric.unit == "share" or not rows:
        return None
    of_rows = metric.of_rows
    return max(rows, key=lambda row: of_rows([row])).label


def _rows(report: Report, part: Part | None) -> list[OpRow]:
    return [row for row in report.operators if part is None or _in(part, row)]


def _value(metric: Metric, report: Report, rows: Sequence[OpRow], *, whole: bool) -> float:
    if not whole and metric.of_rows is not None:
        return metric.of_rows(rows)
    value = metric.of_report(report) if metric.of_report is not None else None
    if value is None:
        raise OpboundError(
            f"{metric.name} ({metric.about}) is not to be had for {plain_text(report.model.source)} "
            f"in {report.mode} mode: take it out of the budget"
        )
    return value


def _in(part: Part, row: OpRow) -> bool:
    if part.operator is not None and row.op != part.operator:
        return False
    if part.module is None:
        return True
    paths = [one.module for one in row.instances] or [row.module]
    return any(_below(path, part.module) for path in paths)


def _below(path: str, pattern: str) -> bool:
    """Whether the path or one of the modules that it lies in matches."""
    ends = [match.start() for match in re.finditer(r"[./]", path)]
    return any(fnmatchcase(path[:end], pattern) for end in (*ends, len(path)))


def _forbidden(target: Target, report: Report) -> list[Finding]:
    kinds = [(row, {row.op.split(":")[0]}) for row in report.operators]
    dtypes = [(row, set(row.dtypes)) for row in report.operators]
    return [
        *_having("forbidden-operator", target.forbid_operators, kinds),
        *_having("forbidden-dtype", target.forbid_dtypes, dtypes),
    ]


def _having(
    rule: str, words: Sequence[str], found: Sequence[tuple[OpRow, set[str]]]
) -> Iterator[Finding]:
    for word in words:
        rows = [row for row, has in found if word in has]
        if not rows:
            yield Finding(rule, True, f"no operator has {plain_text(word)}")
        for row in rows[:_MOST_NODES]:
            label = plain_text(row.label)
            yield Finding(rule, False, f"{label} has {plain_text(word)}", row.label)
        if len(rows) > _MOST_NODES:
            more = f"{len(rows) - _MOST_NODES} more operators have {plain_text(word)}"
            yield Finding(rule, False, more)


def _moved_by_version(baseline: Report, report: Report) -> bool:
    same_model = baseline.model.sha256 == report.model.sha256
    return same_model and baseline.opbound_version != report.opbound_version


def _version_note(baseline: Report, report: Report) -> str:
    return (
        f"the baseline was made by opbound {baseline.opbound_version}, this is "
        f"{report.opbound_version}: figures may have moved with it; renew the baseline with "
        "--update-baseline"
    )


def _rule(name: str) -> str:
    return name.replace("_", "-")


def _words(name: str) -> str:
    return name.replace("_", " ")
