"""Operators that are in both reports and do other work: what became of their shapes and dtypes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from graph_ir.errors import OpboundError
from reports.diff.difference import Change
from reports.diff.finding import Finding, cost, first, operators
from reports.diff.matching import op_kind, structure
from reports.figures import OpRow

Pair = tuple[int, int]
_WINDOWED = frozenset({"conv", "conv_transpose", "deform_conv", "max_pool", "avg_pool"})


def find_changed(changes: Sequence[Change], inputs: set[Pair]) -> Iterator[Finding]:
    """One sentence for each way in which operators changed.

    Args:
        changes: of the state `changed`.
        inputs: by what the model's inputs grew: changes of the same ratio follow from them.
    """
    heads = _regrouped(changes)
    groups: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for change in changes:
        if change.before is not None and change.after is not None:
            for way in _ways(change.before, change.after, inputs, heads):
                groups[way].append(change)
    _join_resized(groups)
    for (kind, how), own in groups.items():
        yield Finding(kind, f"{operators(own)} {how}: {first(own)}; {cost(own)}")


def _ways(old: OpRow, new: OpRow, inputs: set[Pair], heads: set[Pair]) -> Iterator[tuple[str, str]]:
    """The kinds of a change, and how to say them: an operator may be wider and of another dtype."""
    if len(old.shapes) != len(new.shapes):
        yield "operands", "with more or fewer operands"
        return
    if old.dtypes != new.dtypes:
        yield _dtype(old, new)
    if old.dtypes == new.dtypes or old.shapes != new.shapes or structure(old) != structure(new):
        yield _way(old, new, inputs, heads)


def _way(old: OpRow, new: OpRow, inputs: set[Pair], heads: set[Pair]) -> tuple[str, str]:
    """What became of the shapes and the attributes."""
    if op_kind(old.op) and old.op in _WINDOWED and _window(old) != _window(new):
        return "window", f"with another window ({_window_change(old, new)})"
    pairs = _pairs(old, new)
    if old.shapes != new.shapes and not pairs:
        return "reshaped", "became another rank"
    if pairs and all(any(a * y == b * x for x, y in inputs) for a, b in pairs):
        return "resized", "followed the model's inputs"
    if pairs and heads and pairs <= heads:
        (a, b), (c, d), *_ = sorted(heads)
        return "heads", f"split otherwise ({a} x {c} → {b} x {d})"
    if pairs:
        a, b = _leading(old, new, pairs)
        weight = _weight(old) != _weight(new)
        kind = "resized" if not weight else "wider" if b > a else "narrower"
        return kind, f"{'grew' if b > a else 'shrank'} from {a} to {b}"
    if structure(old) != structure(new):
        return "attributes", f"({old.op}) {_attributes(old, new)}"
    if old.count != new.count:
        return "count", f"run {new.count} times in place of {old.count}"
    return "cost", "moved or computed otherwise"


def _dtype(old: OpRow, new: OpRow) -> tuple[str, str]:
    from graph_ir.tensor_type import DType

    a, b = next(
        (pair for pair in zip(old.dtypes, new.dtypes, strict=False) if pair[0] != pair[1]),
        (old.dtypes[-1], new.dtypes[-1]),
    )
    how = f"{a} → {b}"
    try:
        before, after = DType.parse(a), DType.parse(b)
    except OpboundError:
        return "dtype", how
    if before.is_float and not after.is_float:
        return "quantised", how
    if after.is_float and not before.is_float:
        return "dequantised", how
    if after.bits == before.bits:
        return "dtype", how
    return ("wider-dtype" if after.bits > before.bits else "narrower-dtype"), how


def _pairs(old: OpRow, new: OpRow) -> set[Pair]:
    """Sizes before and after, where they differ; empty where the rank does."""
    if [len(s) for s in old.shapes] != [len(s) for s in new.shapes]:
        return set()
    return {
        (a, b)
        for before, after in zip(old.shapes, new.shapes, strict=True)
        for a, b in zip(before, after, strict=True)
        if a != b
    }


def _weight(row: OpRow) -> tuple[int, ...]:
    """The operand that makes a layer wide: a product's second, a table's first."""
    kind = op_kind(row.op)
    if kind == "contraction" and len(row.shapes) > 1:
        # A product of two activations (attention's scores) has a batch in both.
        matrix = len(row.shapes[1]) <= 2 or row.op in _WINDOWED
        return row.shapes[1] if matrix else ()
    return row.shapes[0] if kind == "gather" and row.shapes else ()


def _leading(old: OpRow, new: OpRow, pairs: set[Pair]) -> Pair:
    """The pair to group by: that of the result, on which the rest of the model depends."""
    for before, after in zip(reversed(old.shapes), reversed(new.shapes), strict=True):
        for a, b in zip(reversed(before), reversed(after), strict=True):
            if a != b:
                return a, b
    return min(pairs)


def _regrouped(changes: Sequence[Change]) -> set[Pair]:
    """Sizes of heads where the heads' number changes and all of them together do not."""
    found: set[Pair] = set()
    for change in changes:
        old, new = change.before, change.after
        if old is None or new is None:
            continue
        if op_kind(old.op) == "contraction" and _weight(old) != _weight(new):
            return set()
        pairs = sorted(_pairs(old, new))
        if len(pairs) == 2 and pairs[0][0] * pairs[1][0] == pairs[0][1] * pairs[1][1]:
            found.update(pairs)
    return found


def _window(row: OpRow) -> tuple[tuple[int, ...], str]:
    kernel = row.shapes[1][2:] if row.op in _WINDOWED and len(row.shapes) > 2 else ()
    return kernel, structure(row)


def _window_change(old: OpRow, new: OpRow) -> str:
    (kernel, _), (other, _) = _window(old), _window(new)
    sizes = (
        f"kernel {'x'.join(map(str, kernel))} → {'x'.join(map(str, other))}"
        if kernel != other
        else ""
    )
    return ", ".join(filter(None, (sizes, _attributes(old, new))))


def _attributes(old: OpRow, new: OpRow) -> str:
    """The attributes that differ, before and after."""
    before, after = structure(old).split(" "), structure(new).split(" ")
    gone = " ".join(a for a in before if a not in after) or "none"
    come = " ".join(a for a in after if a not in before) or "none"
    return "" if before == after else f"{gone} → {come}"


def _join_resized(groups: dict[tuple[str, str], list[Change]]) -> None:
    """Activations between layers that became wider belong to these."""
    for (kind, how), own in list(groups.items()):
        for wider in ("wider", "narrower"):
            if kind == "resized" and (wider, how) in groups:
                groups[wider, how] += own
                del groups[kind, how]
                break
