"""Runs a budget: every target analysed and held against its limits and its baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_ir.errors import OpboundError
from opbound.analysis import Analysis
from opbound.options import Options, parse_parallel
from opbound.output import Output
from reports import Report
from reports.gate import Target, TargetResult, check_target, load_budget

if TYPE_CHECKING:
    from importers import ImportedModel

BASELINE_VERSION = 1


def check_model(
    model: str,
    budget: str,
    baseline: str | None,
    *,
    update: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[TargetResult]:
    """Checks a model against every target of a budget.

    Args:
        model: what `opbound analyze` takes.
        budget: path of the budget file.
        baseline: path of the baseline, or None.
        update: write the baseline in place of comparing with it.
        progress: is told what is being done.

    Raises:
        OpboundError: if a file cannot be read or written, or the model cannot be analysed.
    """
    if update and baseline is None:
        raise OpboundError("--update-baseline needs to know where: give --baseline FILE")
    loaded = load_budget(budget, frozenset(entry.name for entry in fields(Options)))
    known = {} if update or baseline is None else read_baseline(baseline)
    results = []
    imports: dict[Hashable, ImportedModel] = {}
    for target in loaded.targets:
        progress(f"target {target.name}")
        report = Analysis(
            model, options_of(target, budget), progress=progress, imports=imports
        ).report()
        if update:
            target = _without_growth(target)
        results.append(check_target(target, report, _baseline_of(target, known, baseline)))
    if update and baseline is not None:
        write_baseline(baseline, results)
    return results


def options_of(target: Target, budget: str) -> Options:
    """The analysis that a target asks for.

    Raises:
        OpboundError: if it cannot be; names the target.
    """
    plain: dict[str, Any] = dict(target.options)
    try:
        if isinstance(plain.get("parallel"), str):
            plain["parallel"] = parse_parallel(plain["parallel"])
        return Options(**plain)
    except (OpboundError, TypeError, AttributeError) as error:
        raise OpboundError(f"{budget}: target {target.name}: {error}") from None


def _without_growth(target: Target) -> Target:
    return replace(
        target, growth={}, parts=tuple(replace(part, growth={}) for part in target.parts)
    )


def _baseline_of(target: Target, known: Mapping[str, Report], path: str | None) -> Report | None:
    if target.name in known:
        return known[target.name]
    # A plain report is the baseline of the only target.
    if list(known) == [""]:
        return known[""]
    if known:
        raise OpboundError(
            f"{path} has no target {target.name!r}, it has {', '.join(known)}: write it anew with "
            "--update-baseline"
        )
    return None


def read_baseline(path: str) -> dict[str, Report]:
    """Reports by target; a plain report stands under the empty name.

    Raises:
        OpboundError: if the file is neither a baseline nor a report.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        plain = json.loads(text)
    except OSError as error:
        raise OpboundError(
            f"cannot read the baseline {path}: {error.strerror}; --update-baseline writes it"
        ) from None
    except ValueError as error:
        raise OpboundError(f"{path} is no baseline: {error}") from None
    if not isinstance(plain, dict) or "targets" not in plain:
        return {"": _report(text, path)}
    if plain.get("baseline_version") != BASELINE_VERSION:
        raise OpboundError(
            f"{path} is a baseline of version {plain.get('baseline_version')!r}, this opbound reads "
            f"{BASELINE_VERSION}: write it anew with --update-baseline"
        )
    if not isinstance(plain["targets"], dict):
        raise OpboundError(f"{path} is no baseline: its targets should be an object")
    return {
        name: _report(json.dumps(report), f"{path}, target {name}")
        for name, report in plain["targets"].items()
    }


def _report(text: str, where: str) -> Report:
    try:
        return Report.from_json(text)
    except OpboundError as error:
        raise OpboundError(f"{where}: {error}; --update-baseline writes it anew") from None


def write_baseline(path: str, results: list[TargetResult]) -> None:
    """Writes the reports of all targets, without timelines.

    Raises:
        OpboundError: if the file cannot be written.
    """
    bodies = [
        f"{json.dumps(result.target)}: {replace(result.report, timeline=()).to_json().strip()}"
        for result in results
    ]
    text = (
        f'{{"baseline_version": {BASELINE_VERSION}, "targets": {{\n' + ",\n".join(bodies) + "}}\n"
    )
    with Output(path) as output:
        output.write(text)
