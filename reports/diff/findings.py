"""What happened between two reports, in sentences: computed from the changes, the weightiest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from itertools import zip_longest

from reports.diff.difference import Change, Difference
from reports.diff.matching import work
from reports.quantities import bytes_text, plain_text, scaled_text, time_text

_MOVES = frozenset({"transpose", "copy", "cast", "reshape", "concat", "split", "slice", "pad"})
_QUANTISING = frozenset({"quantize", "dequantize"})


def find(difference: Difference) -> Iterator[str]:
    """Sentences on the difference."""
    yield from _dims(difference)
    yield from _weights(difference)
    yield from _dtypes(difference)
    yield from _shapes(difference)
    yield from _replaced(difference)
    yield from _flips(difference)
    yield from _same(difference)
    yield from _settings(difference)


def _dims(difference: Difference) -> Iterator[str]:
    before, after = difference.before.model.dims, difference.after.model.dims
    for name in sorted(set(after) - set(before)):
        yield f"the dim {plain_text(name)} has become dynamic (bound to {after[name]} here)"
    for name in sorted(set(before) - set(after)):
        yield f"the dim {plain_text(name)} is fixed now (it was dynamic, bound to {before[name]})"


def _weights(difference: Difference) -> Iterator[str]:
    change = difference.after.totals.parameters - difference.before.totals.parameters
    if not change or difference.of("added", "removed", "changed"):
        return
    # The operators are the same, so the same weights are read: fewer or more of them are stored.
    verb = "are stored apart now (untied)" if change > 0 else "are shared now (tied)"
    yield (
        f"weights of {scaled_text(abs(change))} elements {verb}: "
        "the operators are the same, the parameters are not"
    )


def _dtypes(difference: Difference) -> Iterator[str]:
    """Operators whose shapes stayed and whose dtypes did not."""
    groups: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for change in difference.of("changed"):
        if change.before and change.after and change.before.dtypes != change.after.dtypes:
            for old, new in zip(change.before.dtypes, change.after.dtypes, strict=False):
                if old != new:
                    groups[old, new].append(change)
                    break
    for (old, new), changes in groups.items():
        moved = sum(change.change("bytes_read", "bytes_written") for change in changes)
        yield (
            f"{_operators(changes)} {old} → {new}: {_first(changes)}; {_signed_bytes(moved)} moved"
        )


def _shapes(difference: Difference) -> Iterator[str]:
    """Operators that became wider, narrower or longer."""
    groups: dict[tuple[int, int] | None, list[Change]] = defaultdict(list)
    for change in difference.of("changed"):
        if change.before is None or change.after is None:
            continue
        for old, new in zip_longest(change.before.shapes, change.after.shapes):
            if old != new:
                groups[_sizes(old, new)].append(change)
                break
    for sizes, changes in groups.items():
        flops = sum(change.change("flops") for change in changes)
        became = "became another shape"
        if sizes is not None:
            became = f"{'grew' if sizes[1] > sizes[0] else 'shrank'} from {sizes[0]} to {sizes[1]}"
        yield f"{_operators(changes)} {became}: {_first(changes)}; {_signed(flops)} FLOPs"


def _sizes(old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> tuple[int, int] | None:
    """The first dim that differs, before and after; None where the rank differs."""
    if old is None or new is None or len(old) != len(new):
        return None
    return next(((a, b) for a, b in zip(old, new, strict=True) if a != b), None)


def _replaced(difference: Difference) -> Iterator[str]:
    """What was taken out and put in, place by place; the same at many places in one sentence."""
    places: dict[int, tuple[list[Change], list[Change]]] = defaultdict(lambda: ([], []))
    for change in difference.of("removed", "added"):
        for match in change.matches:
            side = places[match.place][change.state == "added"]
            side.append(Change(change.state, (match,)))
    kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Change]] = defaultdict(list)
    for removed, added in places.values():
        key = (tuple(c.op for c in removed), tuple(c.op for c in added))
        kinds[key] += removed + added
    known = {
        work(match.before)
        for change in difference.changes
        for match in change.matches
        if match.before is not None and match.after is not None
    }
    for (old, new), changes in kinds.items():
        yield _sentence(old, new, changes, known)


def _sentence(
    old: tuple[str, ...],
    new: tuple[str, ...],
    changes: list[Change],
    known: set[tuple[Hashable, ...]],
) -> str:
    moved = sum(change.change("bytes_read", "bytes_written") for change in changes)
    time_s = sum(change.change("time_s") for change in changes)
    cost = f"{_signed_bytes(moved)} moved, {_signed_time(time_s)}"
    where = plain_text(changes[0].name)
    parts = max(len(old) + len(new), 1)
    times = f" {len(changes) // parts} times" if len(changes) > parts else ""
    if set(old) ^ set(new) and (set(old) | set(new)) & _QUANTISING:
        verb = "put in" if set(new) & _QUANTISING else "taken out"
        return f"quantisation was {verb}{times}: {_list(old)} → {_list(new)} at {where}; {cost}"
    if old and new:
        word = (
            "a fused operator is written out"
            if len(new) > len(old)
            else "operators became a fused one"
            if len(new) < len(old)
            else "operators were replaced"
        )
        return f"{word}{times}: {_list(old)} → {_list(new)} at {where}; {cost}"
    if old:
        return f"taken out{times}: {_list(old)} at {where}; {cost}"
    if set(new) <= _MOVES:
        return f"data is moved more than before{times}: {_list(new)} at {where}; {cost}"
    copies = all(work(match.one) in known for change in changes for match in change.matches)
    what = "a duplicate of operators that were there" if copies else "put in"
    return f"{what}{times}: {_list(new)} at {where}; {cost}"


def _flips(difference: Difference) -> Iterator[str]:
    flips: dict[str, list[Change]] = defaultdict(list)
    for change in difference.changes:
        if change.flips:
            flips[change.bound].append(change)
    for bound, changes in flips.items():
        yield f"{_operators(changes)} limited otherwise, {bound}: {_first(changes)}"


def _same(difference: Difference) -> Iterator[str]:
    if not difference.same_work:
        return
    renamed = difference.count("renamed") + sum(
        m.renamed for change in difference.of("moved") for m in change.matches
    )
    moved = difference.count("moved")
    details = [
        f"{renamed} operators have another name" if renamed else "",
        f"{moved} stand elsewhere in the order" if moved else "",
    ]
    told = " and ".join(filter(None, details))
    if told:
        yield told


def _settings(difference: Difference) -> Iterator[str]:
    """What else differs and explains other times: device, strategy, versions."""
    a, b = difference.before, difference.after
    for what, old, new in (
        ("importer", a.model.importer, b.model.importer),
        ("hardware", a.hardware.name, b.hardware.name),
        ("mode", a.mode, b.mode),
        ("strategy", str(a.strategy), str(b.strategy)),
        ("batch", a.model.batch, b.model.batch),
        ("opbound version", a.opbound_version, b.opbound_version),
    ):
        if old != new:
            yield f"{what}: {plain_text(str(old))} → {plain_text(str(new))}"


def _operators(changes: Iterable[Change]) -> str:
    count = sum(change.count for change in changes)
    return "1 operator" if count == 1 else f"{count} operators"


def _first(changes: list[Change]) -> str:
    """The change that costs most, by name."""
    most = max(changes, key=lambda change: abs(change.change("time_s")))
    rest = len(changes) - 1
    return plain_text(most.name) + (f" and {rest} more" if rest else "")


def _list(ops: tuple[str, ...], limit: int = 6) -> str:
    if not ops:
        return "nothing"
    return ", ".join(ops[:limit]) + (f" and {len(ops) - limit} more" if len(ops) > limit else "")


def _sign(value: float) -> str:
    return "+" if value >= 0 else "-"


def _signed(value: float) -> str:
    return _sign(value) + scaled_text(abs(value))


def _signed_bytes(value: float) -> str:
    return _sign(value) + bytes_text(abs(value))


def _signed_time(value: float) -> str:
    return _sign(value) + time_text(abs(value))
