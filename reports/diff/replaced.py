"""Operators that are in one report only: fusions lost, layers added, casts and transposes put in."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from math import gcd

from reports.diff.difference import Change, Difference
from reports.diff.finding import Finding, cost, first, listed
from reports.diff.matching import Match, op_kind, work
from reports.quantities import plain_text

MOVES = frozenset(
    {"transpose", "copy", "reshape", "expand", "concat", "split", "slice", "pad", "flip"}
)
_QUANTISING = frozenset({"quantize", "dequantize", "apply_scales"})
_ACTIVATIONS = frozenset(
    {"gelu", "gelu_tanh", "silu", "mish", "hardswish", "hardsigmoid", "softplus"}
)
"""Elementwise operators that frontends may write out as several."""
_MOST_PARTS = 24
"""As many operators as one is written out to at most: attention with a mask and scales."""

_LAYER = 4
"""Distinct operators that make a repeated layer, rather than a branch that was copied."""


def find_replaced(difference: Difference) -> Iterator[Finding]:
    """Sentences on what was taken out and put in: whole stories first, then place by place."""
    left = [
        Change(change.state, (match,))
        for change in difference.of("removed", "added")
        for match in change.matches
    ]
    known = Counter(
        work(match.before)
        for change in difference.changes
        for match in change.matches
        if match.before is not None and match.after is not None
    )
    for story in (_quantised, _layers, _fusions, _norm_folded):
        told = yield from story(left, known)
        ids = set(map(id, told))
        left = [change for change in left if id(change) not in ids]
    yield from _places(left, known)


Story = Generator[Finding, None, list[Change]]
Known = Counter[tuple[Hashable, ...]]


def _split(changes: Iterable[Change]) -> tuple[list[Change], list[Change]]:
    """What was removed, and what was added."""
    changes = list(changes)
    return (
        [change for change in changes if change.state == "removed"],
        [change for change in changes if change.state == "added"],
    )


def _ops(changes: Sequence[Change]) -> list[str]:
    return [change.op for change in changes]


def _quantised(left: list[Change], known: Known) -> Story:
    removed, added = _split(left)
    put = {op for op in _ops(added) if op in _QUANTISING}
    gone = {op for op in _ops(removed) if op in _QUANTISING}
    if bool(put) == bool(gone):
        return []
    kind, verb = ("quantised", "put in") if put else ("dequantised", "taken out")
    own = _at_places(left, put | gone)
    old, new = _split(own)
    text = f"quantisation was {verb}: {listed(_ops(old))} → {listed(_ops(new))}"
    yield Finding(kind, f"{text} at {first(own)}; {cost(own)}")
    return own


def _at_places(left: Sequence[Change], ops: set[str]) -> list[Change]:
    """All changes at the places where one of these operators came or went."""
    places = {change.matches[0].place for change in left if change.op in ops}
    return [change for change in left if change.matches[0].place in places]


def _layers(left: list[Change], known: Known) -> Story:
    """More or fewer repetitions of a layer: each operator of it is among those that stayed."""
    told: list[Change] = []
    for own, kind, verb in zip(
        _split(left), ("layers-removed", "layers-added"), ("taken out", "added"), strict=True
    ):
        other = [c for c in left if c.state != own[0].state] if own else []
        counts = Counter(work(change.matches[0].one) for change in own)
        if other or len(counts) < _LAYER or any(key not in known for key in counts):
            continue
        layers = 0
        for count in counts.values():
            layers = gcd(layers, count)
        text = f"{layers} repeated layer{'s' if layers > 1 else ''} {verb}"
        yield Finding(kind, f"{text}: {len(own)} operators at {first(own)}; {cost(own)}")
        told += own
    return told


def _fusions(left: list[Change], known: Known) -> Story:
    """One operator for several, or several for one."""
    told: list[Change] = []
    for state, kind in (("removed", "lost-fusion"), ("added", "gained-fusion")):
        fused = [
            change
            for change in left
            if change.state == state and _is_fused(change.op) and _is_whole(change, left)
        ]
        ops = set(_ops(fused))
        parts = [change for change in _at_places(left, ops) if change.state != state]
        if not 2 * len(fused) <= len(parts) <= _MOST_PARTS * len(fused) or not fused:
            continue
        # An anchor in their midst may have set some of the parts apart.
        kinds = set(_ops(parts))
        parts = [change for change in left if change.state != state and change.op in kinds]
        one, several = listed(_ops(fused)), listed(_ops(parts))
        text = (
            f"a fusion was lost: {one} → {several}"
            if kind == "lost-fusion"
            else f"operators were fused: {several} → {one}"
        )
        own = [*fused, *parts]
        yield Finding(kind, f"{text} at {first(fused)}; {cost(own)}")
        told += own
    return told


def _is_fused(op: str) -> bool:
    return op_kind(op) in ("normalization", "attention") or op in _ACTIVATIONS


def _is_whole(change: Change, left: Sequence[Change]) -> bool:
    """Whether all that stands in its place could be its parts."""
    kinds = {"elementwise", "reduction", ""} | {op_kind(op) for op in MOVES}
    if op_kind(change.op) == "attention":
        kinds |= {"contraction", "normalization"}
    place = change.matches[0].place
    others = [c for c in left if c.matches[0].place == place and c.state != change.state]
    return all(op_kind(c.op) in kinds for c in others)


def _norm_folded(left: list[Change], known: Known) -> Story:
    """A batch norm's scale goes into the weights before it, and leaves at most a bias."""
    removed, added = _split(left)
    norms = [change for change in removed if change.op == "batch_norm"]
    if not norms or "batch_norm" in _ops(added):
        return []
    places = {change.matches[0].place for change in norms}
    biases = [c for c in added if c.op == "add" and c.matches[0].place in places]
    if any(c.matches[0].place in places and c not in biases for c in added):
        return []
    own = [*norms, *biases]
    text = f"{listed(_ops(norms))} folded into the product before it"
    yield Finding("norm-folded", f"{text} at {first(norms)}; {cost(own)}")
    return own


def _places(left: Sequence[Change], known: Known) -> Iterator[Finding]:
    """What was taken out and put in, place by place; the same at many places in one sentence."""
    places: dict[int, list[Change]] = defaultdict(list)
    for change in left:
        places[change.matches[0].place].append(change)
    kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], list[list[Change]]] = defaultdict(list)
    for changes in places.values():
        old, new = _split(changes)
        kinds[tuple(_ops(old)), tuple(_ops(new))].append(changes)
    for (old_ops, new_ops), groups in kinds.items():
        changes = [change for group in groups for change in group]
        kind, told = _word(old_ops, new_ops, _matches(changes), known)
        times = f" at {len(groups)} places" if len(groups) > 1 else ""
        where = plain_text(changes[0].name)
        yield Finding(kind, f"{told}{times}, the first at {where}; {cost(changes)}")


def _matches(changes: Iterable[Change]) -> list[Match]:
    return [match for change in changes for match in change.matches]


def _word(
    old: tuple[str, ...], new: tuple[str, ...], matches: Sequence[Match], known: Known
) -> tuple[str, str]:
    ops = set(old) | set(new)
    if old and new:
        return "replaced", f"{listed(old)} became {listed(new)}"
    if ops <= {"cast"}:
        kind, verb = ("cast", "put in") if new else ("cast-removed", "taken out")
        return kind, f"{listed(new or old)} {verb}"
    if ops <= MOVES | {"cast"}:
        if new:
            return "data-movement", f"data is moved more than before: {listed(new)} put in"
        return "data-movement-removed", f"data is moved less than before: {listed(old)} taken out"
    if old:
        return "removed", f"{listed(old)} taken out"
    if all(work(match.one) in known for match in matches):
        return "duplicate", f"a duplicate of operators that were there: {listed(new)} put in"
    return "added", f"{listed(new)} put in"
