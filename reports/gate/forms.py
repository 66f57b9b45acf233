"""What a gate found, in the forms that people and CI systems read. The same findings, the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from reports.gate.check import Finding, TargetResult
from reports.layout import Cells
from reports.quantities import plain_text
from reports.table import text_table

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

_RULES = {
    "forbidden-operator": "An operator that the budget forbids is in the model.",
    "forbidden-dtype": "An operator has a dtype that the budget forbids.",
}


def table_form(results: Sequence[TargetResult], model: str) -> str:
    """Every rule with its verdict, for people."""
    rows = [
        [
            "ok" if finding.passed else "FAILED",
            plain_text(result.target),
            finding.rule,
            finding.message,
        ]
        for result, finding in _all(results)
    ]
    failed = sum(not finding.passed for _, finding in _all(results))
    notes = [f"note: {result.target}: {note}" for result in results for note in result.notes]
    verdict = (
        f"{failed} of {len(rows)} rules are broken" if failed else f"all {len(rows)} rules hold"
    )
    table = text_table(Cells(["", "target", "rule", "finding"], [False] * 4, rows))
    return "\n".join([f"{plain_text(model)}: {verdict}", "", table, *notes]) + "\n"


def json_form(results: Sequence[TargetResult], model: str) -> str:
    """All findings as JSON."""
    plain = {
        "schema_version": "1.0",
        "model": model,
        "passed": all(result.passed for result in results),
        "targets": [
            {
                "name": result.target,
                "passed": result.passed,
                "notes": list(result.notes),
                "findings": [_plain(finding) for finding in result.findings],
            }
            for result in results
        ],
    }
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "passed": finding.passed,
        "message": finding.message,
        "part": finding.part or None,
        "node": finding.node,
        "value": finding.value,
        "limit": finding.limit,
    }


def junit_form(results: Sequence[TargetResult], model: str) -> str:
    """JUnit XML: a suite per target, a case per rule."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<testsuites name="opbound check">']
    for result in results:
        broken = sum(not finding.passed for finding in result.findings)
        lines.append(
            f"  <testsuite name={_attribute(result.target)} tests={_attribute(len(result.findings))} "
            f'failures={_attribute(broken)} errors="0">'
        )
        for finding in result.findings:
            lines += _case(finding, model, result.target)
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>"]) + "\n"


def _case(finding: Finding, model: str, target: str) -> Iterator[str]:
    name = " ".join(filter(None, (finding.rule, finding.part)))
    if finding.rule.startswith("forbidden") and finding.node is not None:
        name = f"{name} {finding.node}"
    opening = f"    <testcase classname={_attribute(f'{model}.{target}')} name={_attribute(name)}"
    if finding.passed:
        yield f"{opening}/>"
        return
    yield f"{opening}>"
    message = _attribute(finding.message)
    yield f"      <failure message={message}>{escape(plain_text(finding.message, 1000))}</failure>"
    yield "    </testcase>"


def _attribute(value: object) -> str:
    return quoteattr(plain_text(str(value), 1000))


def sarif_form(results: Sequence[TargetResult], model: str) -> str:
    """SARIF 2.1.0: a result per broken rule, at the model's file and the operator."""
    rules = sorted({finding.rule for _, finding in _all(results)})
    version = results[0].report.opbound_version if results else ""
    log = {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "opbound",
                        "semanticVersion": version,
                        "rules": [_sarif_rule(rule) for rule in rules],
                    }
                },
                "results": [
                    _sarif_result(result.target, finding, model, rules.index(finding.rule))
                    for result, finding in _all(results)
                    if not finding.passed
                ],
                "properties": {"targets": [_sarif_target(result) for result in results]},
            }
        ],
    }
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _sarif_target(result: TargetResult) -> dict[str, Any]:
    """What was analysed and what it costs: a property bag, which SARIF leaves to the tool."""
    report = result.report
    totals = report.totals
    return {
        "name": plain_text(result.target),
        "hardware": plain_text(report.hardware.name),
        "mode": report.mode,
        "modelSha256": report.model.sha256,
        "stepTimeS": totals.step_time_s,
        "flops": totals.flops,
        "bytesRead": totals.bytes_read,
        "bytesWritten": totals.bytes_written,
        "bytesCommunicated": totals.bytes_communicated,
        "parameters": totals.parameters,
        "peakMemoryBytes": report.memory.peak_bytes,
        "notes": [plain_text(note, 1000) for note in result.notes],
    }


def _sarif_rule(rule: str) -> dict[str, Any]:
    about = _RULES.get(rule) or (
        f"{rule.removeprefix('growth-')} grows more than the budget allows."
        if rule.startswith("growth-")
        else f"{rule} is over the budget."
    )
    return {"id": rule, "shortDescription": {"text": about}}


def _sarif_result(target: str, finding: Finding, model: str, index: int) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(model)}, "region": {"startLine": 1}}
    }
    if finding.node is not None:
        name = plain_text(finding.node)
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "element"}]
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": "error",
        "message": {"text": f"{plain_text(target)}: {finding.message}"},
        "locations": [location],
        "partialFingerprints": {"opbound/v1": _fingerprint(target, finding)},
    }


def _uri(model: str) -> str:
    from urllib.parse import quote

    return quote(model.replace("\\", "/"), safe="/:")


def _fingerprint(target: str, finding: Finding) -> str:
    """The same for the same rule at the same operator, whatever the figures are."""
    key = "\0".join((target, finding.rule, finding.part, finding.node or ""))
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def github_form(results: Sequence[TargetResult], model: str) -> str:
    """Workflow commands that GitHub shows as annotations."""
    lines = [
        f"::error file={_property(model)},title={_property(f'opbound {finding.rule}')}::"
        f"{_data(f'{result.target}: {finding.message}')}"
        for result, finding in _all(results)
        if not finding.passed
    ]
    lines += [
        f"::notice file={_property(model)},title=opbound::{_data(f'{result.target}: {note}')}"
        for result in results
        for note in result.notes
    ]
    return "".join(f"{line}\n" for line in lines)


def _data(text: str) -> str:
    return plain_text(text, 1000).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def gitlab_form(results: Sequence[TargetResult], model: str) -> str:
    """GitLab's code quality report."""
    issues = [
        {
            "description": f"{plain_text(result.target)}: {finding.message}",
            "check_name": finding.rule,
            "fingerprint": _fingerprint(result.target, finding),
            "severity": "major",
            "location": {"path": model, "lines": {"begin": 1}},
        }
        for result, finding in _all(results)
        if not finding.passed
    ]
    return json.dumps(issues, indent=2) + "\n"


FORMS: dict[str, Callable[[Sequence[TargetResult], str], str]] = {
    "table": table_form,
    "json": json_form,
    "junit": junit_form,
    "sarif": sarif_form,
    "github": github_form,
    "gitlab": gitlab_form,
}


def _all(results: Sequence[TargetResult]) -> Iterator[tuple[TargetResult, Finding]]:
    for result in results:
        for finding in result.findings:
            yield result, finding
