"""Which operator of one report is which of another: by structure, and by name where names agree with it.

A name is no proof: exporters number nodes, and a node put in shifts all numbers after it. So operators
match first by their work in the order of the model (a longest common subsequence), where names decide
only if they cost no match; then by their work wherever they stand; and what is left, place by place, as
changed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from graph_ir.errors import OpboundError
from reports.figures import OpRow

Key = Callable[[OpRow], Hashable]

_NO_STRUCTURE = re.compile(
    r"(?<!\S)(view|epilogue|inplace|scalar_first|during=\S+|\w+=-?(\d+\.\d*(e[-+]?\d+)?|\d+e[-+]?\d+|inf|nan))(?!\S)\s?"
)


@dataclass(frozen=True, slots=True)
class Match:
    """One operator in both reports, or in one of them."""

    before: OpRow | None
    after: OpRow | None
    moved: bool = False
    """Whether it stands elsewhere in the order of the model."""
    place: int = 0
    """Index of the last operator of the old report before it that is in both: what was taken out and put
    in at one place belongs together."""

    @property
    def one(self) -> OpRow:
        """The operator in the newer report that has it."""
        row = self.after or self.before
        if row is None:
            raise ValueError("a match of nothing with nothing")
        return row

    @property
    def same_work(self) -> bool:
        """Whether both do the same."""
        both = self.before is not None and self.after is not None
        return both and work(self.before) == work(self.after)  # type: ignore[arg-type]

    @property
    def respelled(self) -> bool:
        """Whether both compute the same and move other bytes: a product that adds its bias, or does not."""
        if self.before is None or self.after is None or self.same_work:
            return False
        kinds = {op_kind(self.before.op), op_kind(self.after.op)}
        joined = kinds <= {"contraction"} or kinds <= {"elementwise"}
        return joined and arithmetic(self.before) == arithmetic(self.after)

    @property
    def renamed(self) -> bool:
        """Whether both have it, under two names."""
        both = self.before is not None and self.after is not None
        return both and self.before.label != self.after.label  # type: ignore[union-attr]


def work(row: OpRow) -> tuple[Hashable, ...]:
    """What an operator does, whatever it is called."""
    moved = (row.bytes_read, row.bytes_written, row.bytes_communicated)
    return (row.op, row.phase, row.count, row.shapes, row.dtypes, row.flops, structure(row), *moved)


def arithmetic(row: OpRow) -> tuple[Hashable, ...]:
    """What an operator computes, however a product is spelled and whatever goes through memory.

    `linear` and `matmul` are one, on rows of tokens or on samples of them: how many elements the operands
    and the result have, and the FLOPs, say what a product contracts.
    """
    kind = op_kind(row.op)
    if kind not in ("contraction", "elementwise") or structure(row):
        return (row.op, row.phase, row.count, row.shapes, row.dtypes, row.flops, structure(row))
    op = "product" if kind == "contraction" else row.op
    # In any order: an addition's operands may stand either way round, and a row does not say which
    # of its shapes are results.
    tensors = tuple(sorted(zip(map(prod, row.shapes), row.dtypes, strict=True)))
    return (op, row.phase, row.count, tensors, row.flops)


@cache
def op_kind(op: str) -> str:
    """The kind of an operator's record; empty without one."""
    from graph_ir.op_def import op_def

    try:
        return op_def(op).kind
    except OpboundError:
        return ""


def structure(row: OpRow) -> str:
    """The attributes that say which elements meet which.

    Left out: decimal numbers (an epsilon, a scale: values, as a weight's are) and how it is run.
    """
    return _structure(row.attributes)


@cache
def _structure(attributes: str) -> str:
    return _NO_STRUCTURE.sub("", attributes).strip()


def match_rows(before: Sequence[OpRow], after: Sequence[OpRow]) -> list[Match]:
    """Matches the operators of two reports, one row per node, in the order of the newer one.

    Every row is in exactly one match.
    """
    partner: dict[int, int] = {}
    old: list[int] = list(range(len(before)))
    new: list[int] = list(range(len(after)))

    def join(pairs: Iterable[tuple[int, int]]) -> None:
        nonlocal old, new
        partner.update(pairs)
        taken = set(partner.values())
        old = [i for i in old if i not in partner]
        new = [j for j in new if j not in taken]

    def by(key: Key) -> tuple[list[Hashable], list[Hashable]]:
        return [key(before[i]) for i in old], [key(after[j]) for j in new]

    works = [work(row) for row in before], [work(row) for row in after]
    join(_same_work(before, after, *works))
    moved_from = len(partner)
    join(_equal(old, new, *by(work)))
    moved = set(list(partner)[moved_from:]) | _out_of_order(partner)
    # At one place of the model an operator of the same kind is taken for the old one, changed: first
    # what computes the same, then what has the same shapes, then any.
    places = _places(partner, moved, len(before), len(after))
    names = tuple({(row.label, row.op) for row in rows} for rows in (before, after))
    keys: tuple[Key, ...] = (
        # Sizes alone are no evidence against a name: at another batch a small map has what a large one had.
        lambda row: (
            arithmetic(row),
            row.label if all((row.label, row.op) in n for n in names) else "",
        ),
        lambda row: (row.op, row.phase, row.shapes),
        lambda row: (row.op, row.phase),
    )
    for key in keys:
        old_keys = [(places[0][i], key(before[i])) for i in old]
        join(_equal(old, new, old_keys, [(places[1][j], key(after[j])) for j in new]))
    join(_equal(old, new, *by(lambda row: (row.label, row.op, row.phase))))
    return _matches(before, after, partner, moved, places)


def _same_work(
    before: Sequence[OpRow],
    after: Sequence[OpRow],
    old_works: Sequence[Hashable],
    new_works: Sequence[Hashable],
) -> list[tuple[int, int]]:
    """Pairs of the same work: with the help of names where that finds as many in order as without."""
    old, new = range(len(before)), range(len(after))
    named = _equal(
        old,
        new,
        [(row.label, key) for row, key in zip(before, old_works, strict=True)],
        [(row.label, key) for row, key in zip(after, new_works, strict=True)],
    )
    if len(named) == min(len(before), len(after)):
        # Every operator has its name still: what changed place has moved.
        return named
    partner = dict(named)
    anchors = sorted(set(partner) - _out_of_order(partner))
    by_name: list[tuple[int, int]] = []
    i = j = 0
    for anchor in (*anchors, None):
        end_i, end_j = (len(before), len(after)) if anchor is None else (anchor, partner[anchor])
        by_name += _aligned(
            range(i, end_i), range(j, end_j), old_works[i:end_i], new_works[j:end_j]
        )
        if anchor is not None:
            by_name.append((anchor, end_j))
        i, j = end_i + 1, end_j + 1
    by_work = _aligned(old, new, old_works, new_works)
    return by_name if len(by_name) >= len(by_work) else by_work


def _equal(
    old: Sequence[int],
    new: Sequence[int],
    old_keys: Sequence[Hashable],
    new_keys: Sequence[Hashable],
) -> list[tuple[int, int]]:
    """Pairs of equal keys; equal ones among themselves in order."""
    waiting: dict[Hashable, deque[int]] = defaultdict(deque)
    for j, key in zip(new, new_keys, strict=True):
        waiting[key].append(j)
    return [
        (i, waiting[key].popleft()) for i, key in zip(old, old_keys, strict=True) if waiting[key]
    ]


def _aligned(
    old: Sequence[int],
    new: Sequence[int],
    old_keys: Sequence[Hashable],
    new_keys: Sequence[Hashable],
) -> list[tuple[int, int]]:
    """Pairs of a longest common subsequence of the keys."""
    if not old_keys or not new_keys:
        return []
    from rapidfuzz.distance import LCSseq

    numbers: dict[Hashable, int] = {}
    left = [numbers.setdefault(key, len(numbers)) for key in old_keys]
    right = [numbers.setdefault(key, len(numbers)) for key in new_keys]
    pairs = []
    for step in LCSseq.opcodes(left, right):
        if step.tag == "equal":
            pairs += list(
                zip(
                    old[step.src_start : step.src_end],
                    new[step.dest_start : step.dest_end],
                    strict=True,
                )
            )
    return pairs


def _out_of_order(partner: dict[int, int]) -> set[int]:
    """Old indices outside a longest run of pairs whose order is the same in both."""
    order = sorted(partner)
    tails: list[int] = []
    ends: list[int] = []
    above: dict[int, int | None] = {}
    for i in order:
        at = bisect_left(tails, partner[i])
        above[i] = ends[at - 1] if at else None
        tails[at : at + 1] = [partner[i]]
        ends[at : at + 1] = [i]
    kept: set[int] = set()
    last: int | None = ends[-1] if ends else None
    while last is not None:
        kept.add(last)
        last = above[last]
    return set(order) - kept


def _places(
    partner: dict[int, int], moved: set[int], old_count: int, new_count: int
) -> tuple[list[int], list[int]]:
    """For each index of both, the last old index before it that has stayed where it was."""
    stayed = {i: j for i, j in partner.items() if i not in moved}
    back = {j: i for i, j in stayed.items()}
    places: tuple[list[int], list[int]] = ([], [])
    for count, anchors, found in (
        (old_count, {i: i for i in stayed}, places[0]),
        (new_count, back, places[1]),
    ):
        last = -1
        for index in range(count):
            last = anchors.get(index, last)
            found.append(last)
    return places


def _matches(
    before: Sequence[OpRow],
    after: Sequence[OpRow],
    partner: dict[int, int],
    moved: set[int],
    places: tuple[list[int], list[int]],
) -> list[Match]:
    back = {j: i for i, j in partner.items()}
    found = []
    for j, row in enumerate(after):
        i = back.get(j)
        old = before[i] if i is not None else None
        found.append(((places[1][j], 1, j), Match(old, row, i in moved, places[1][j])))
    for i, row in enumerate(before):
        if i not in partner:
            found.append(((places[0][i], 0, i), Match(row, None, False, places[0][i])))
    return [match for _, match in sorted(found, key=lambda pair: pair[0])]
