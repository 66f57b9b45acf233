"""What happened between two reports, in sentences: computed from the changes, the causes first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from reports.diff.changed import find_changed
from reports.diff.difference import Change, Difference
from reports.diff.finding import Finding, cost, first, operators
from reports.diff.interface import find_dims, find_inputs, find_settings, input_ratios
from reports.diff.replaced import MOVES, find_replaced
from reports.quantities import scaled_text


def find(difference: Difference) -> Iterator[Finding]:
    """Everything there is to say on a difference."""
    yield from find_dims(difference)
    yield from find_inputs(difference)
    yield from _weights(difference)
    yield from find_replaced(difference)
    yield from find_changed(difference.of("changed"), input_ratios(difference))
    yield from _respelled(difference)
    if difference.same_when_fused:
        text = "with --execution fused both are the same work: a fusing compiler undoes this"
        yield Finding("same-when-fused", text)
    yield from _flips(difference)
    yield from _same(difference)
    yield from find_settings(difference)


def _weights(difference: Difference) -> Iterator[Finding]:
    """Weights shared or not: the parameters change and the operators that read them do not."""
    change = difference.after.totals.parameters - difference.before.totals.parameters
    others = {c.op for c in difference.of("added", "removed")} - MOVES
    if not change or others or difference.of("changed"):
        return
    verb = "are stored apart now (untied)" if change > 0 else "are shared now (tied)"
    yield Finding(
        "untied" if change > 0 else "tied",
        f"weights of {scaled_text(abs(change))} elements {verb}: the same operators read them",
    )


def _respelled(difference: Difference) -> Iterator[Finding]:
    changes = difference.of("respelled")
    if changes:
        yield Finding(
            "respelled",
            f"{operators(changes)} spelled otherwise, with the same arithmetic: {first(changes)}; "
            f"{cost(changes)} where each operator is a kernel of its own",
        )


def _flips(difference: Difference) -> Iterator[Finding]:
    flips: dict[str, list[Change]] = defaultdict(list)
    for change in difference.changes:
        if change.flips:
            flips[change.bound].append(change)
    for bound, changes in flips.items():
        text = f"{operators(changes)} limited otherwise, {bound}: {first(changes)}"
        yield Finding("bound-flip", text)


def _same(difference: Difference) -> Iterator[Finding]:
    if not difference.same_work:
        return
    renamed = sum(match.renamed for change in difference.changes for match in change.matches)
    if renamed:
        yield Finding("renamed", f"{_have(renamed, 'has', 'have')} another name")
    moved = difference.count("moved")
    if moved:
        yield Finding("moved", f"{_have(moved, 'stands', 'stand')} elsewhere in the order")
    if difference.before.model.sha256 != difference.after.model.sha256:
        yield Finding(
            "file", "the files differ in names, texts, weights' values or spelling, not in the work"
        )


def _have(count: int, one: str, many: str) -> str:
    return f"1 operator {one}" if count == 1 else f"{count} operators {many}"
