"""What limits the model, and what it would gain: computed from the rows' terms, then said in words.

A node's time is the largest of its compute, memory and network terms, plus its launch latency, plus
what its shape loses on the limiting resource (partly filled tiles, idle processors). To
lift a limit is to take that one term away everywhere and to price the step again, so that the next
limit shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from reports.figures import MemoryUse, OpRow
from reports.quantities import bytes_text, percent_text, plain_text, time_text

BUBBLE = "bubble"
"""Stands beside the rows' bounds: time in which a pipeline stage waits for another."""

_KIND_WORDS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "kv_cache": "KV cache",
    "workspace": "workspace",
    "communication": "buffers of communication",
    "context": "the driver's context",
    "libraries": "the libraries' workspaces",
    "communicators": "the communicators' buffers",
    "allocator": "the allocator's segments",
}


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """The step of the busiest rank: its rows, and what the simulation made of them."""

    rows: Sequence[OpRow]
    step_time_s: float
    exposed_communication_s: float
    bubble_fraction: float

    @cached_property
    def exposed_part(self) -> float:
        """The part of all communication that the step waits for; the rest is hidden."""
        total_s = sum(row.time_s for row in self.rows if row.phase == "communication")
        return min(1.0, self.exposed_communication_s / total_s) if total_s else 1.0

    def visible(self, row: OpRow) -> float:
        """The part of a row's time that the step waits for."""
        return self.exposed_part if row.phase == "communication" else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The bound that costs the most time, and what the step would be without it."""

    bound: str
    time_s: float
    """Time that the step spends in rows of this bound."""
    row: OpRow | None
    """The row of this bound that takes the longest; None for the pipeline bubble."""
    lifted_step_s: float
    next_bound: str | None
    """What would limit the step then; None where nothing is left."""


def find_limit(parts: StepParts, reprice: Callable[[str], float] | None = None) -> Limit:
    """Finds the bound with the largest share of the step and prices the step without it.

    Args:
        parts: the step.
        reprice: simulates the step again without one bound; None scales the step with the rows.
    """
    spent = _spent_by_bound(parts, _own_times(parts.rows))
    bound = max(spent, key=lambda name: spent[name])
    if bound == BUBBLE:
        rest = {name: time_s for name, time_s in spent.items() if name != BUBBLE}
        return Limit(
            bound=bound,
            time_s=spent[bound],
            row=None,
            lifted_step_s=parts.step_time_s - spent[bound],
            next_bound=max(rest, key=lambda name: rest[name], default=None),
        )
    lifted = [lift(row.terms_s, row.time_s, row.bound, bound) for row in parts.rows]
    spent_then = _spent_by_bound(parts, lifted)
    busy_s = sum(time_s for name, time_s in spent.items() if name != BUBBLE)
    busy_then_s = sum(time_s for name, time_s in spent_then.items() if name != BUBBLE)
    # A bubble is a multiple of a stage's own time, so the step shrinks with the busy time.
    step_s = reprice(bound) if reprice else parts.step_time_s * busy_then_s / busy_s
    candidates = [row for row in parts.rows if row.bound == bound]
    return Limit(
        bound=bound,
        time_s=spent[bound],
        row=max(candidates, key=lambda row: row.time_s),
        lifted_step_s=step_s,
        next_bound=max(spent_then, key=lambda name: spent_then[name]) if busy_then_s else None,
    )


def _own_times(rows: Iterable[OpRow]) -> list[tuple[str, float]]:
    return [(row.bound, row.time_s) for row in rows]


def lift(
    terms_s: Mapping[str, float], time_s: float, own_bound: str, bound: str
) -> tuple[str, float]:
    """What a node's bound and time become once `bound` costs nothing any more.

    Args:
        terms_s: the node's time by bound.
        time_s: its time.
        own_bound: its present bound.
        bound: what is taken away.
    """
    if bound not in terms_s:
        # Without terms (an unknown operator) only its own bound can be taken away.
        return (own_bound, 0.0 if own_bound == bound else time_s)
    left = {name: term_s for name, term_s in terms_s.items() if name != bound}
    if not any(left.values()):
        return (own_bound, 0.0)
    # What the shape loses on the limiting resource stays with that resource.
    loss_s = 0.0 if _limiter(terms_s) == bound else time_s - _ideal_s(terms_s)
    return (max(left, key=lambda name: left[name]), min(time_s, _ideal_s(left) + loss_s))


def _limiter(terms_s: Mapping[str, float]) -> str | None:
    rates = {name: term_s for name, term_s in terms_s.items() if name != "latency"}
    return max(rates, key=lambda name: rates[name], default=None)


def _ideal_s(terms_s: Mapping[str, float]) -> float:
    """The time of these terms without losses: the largest, and the latency before it."""
    limiter = _limiter(terms_s)
    return terms_s.get("latency", 0.0) + (terms_s[limiter] if limiter else 0.0)


def _spent_by_bound(parts: StepParts, times: Sequence[tuple[str, float]]) -> dict[str, float]:
    visible = [parts.visible(row) for row in parts.rows]
    spent: dict[str, float] = {}
    for (bound, time_s), part in zip(times, visible, strict=True):
        spent[bound] = spent.get(bound, 0.0) + time_s * part
    bubble_s = parts.bubble_fraction * parts.step_time_s
    return {**spent, BUBBLE: bubble_s} if bubble_s else spent


def conclude(
    parts: StepParts,
    memory: MemoryUse,
    hardware: str,
    mode: str,
    reprice: Callable[[str], float] | None = None,
) -> tuple[str, ...]:
    """The three closing sentences: the limit, the gain without it, and the memory."""
    if not parts.step_time_s:
        return (
            f"Nothing limits this model on {plain_text(hardware)}: all its operators are views.",
            "There is no limit to lift.",
            _memory_sentence(memory),
        )
    limit = find_limit(parts, reprice)
    work = {"training": "training step", "generation": "generation"}.get(mode, "step")
    return (
        _limit_sentence(limit, parts, hardware, work),
        _gain_sentence(limit, parts, work),
        _memory_sentence(memory),
    )


def _limit_sentence(limit: Limit, parts: StepParts, hardware: str, work: str) -> str:
    share = percent_text(limit.time_s / parts.step_time_s)
    where = f"On {plain_text(hardware)}, {bound_words(limit.bound)} limits this model"
    if limit.row is None:
        return f"{where}: {share} of the {work} is spent waiting."
    row_s = limit.row.time_s * parts.visible(limit.row)
    largest = f"{plain_text(limit.row.label)} ({limit.row.op}, "
    return (
        f"{where}: {share} of the {work} goes to operators that it bounds, the largest of them "
        f"{largest}{percent_text(row_s / parts.step_time_s)})."
    )


def _gain_sentence(limit: Limit, parts: StepParts, work: str) -> str:
    if limit.lifted_step_s <= 0 or limit.next_bound is None:
        return f"Without that limit nothing measurable of the {work} would be left."
    gain = parts.step_time_s / limit.lifted_step_s
    then = (
        f"{bound_words(limit.next_bound)} would limit it"
        if limit.next_bound != limit.bound
        else "the rest of it would still be the same limit"
    )
    return (
        f"Without that limit the {work} would take {time_text(limit.lifted_step_s)} instead of "
        f"{time_text(parts.step_time_s)}, {gain:.2f} times as fast, and {then}."
    )


def _memory_sentence(memory: MemoryUse) -> str:
    kind, kind_bytes = _largest({**memory.by_kind_bytes, **memory.overhead_bytes})
    used = (
        f"{bytes_text(memory.total_bytes)} of {bytes_text(memory.capacity_bytes)} per device, "
        f"the largest part {_KIND_WORDS[kind]} ({bytes_text(kind_bytes)})"
    )
    if memory.fits:
        return f"It fits: the peak is {used}."
    return (
        f"It does not fit: the peak is {used}, "
        f"{memory.total_bytes / memory.capacity_bytes:.2f} times what a device has."
    )


def _largest(by_kind_bytes: Mapping[str, int]) -> tuple[str, int]:
    return max(by_kind_bytes.items(), key=lambda item: item[1])


def bound_words(bound: str) -> str:
    """A bound in words: 'memory:dram' becomes 'dram bandwidth'."""
    kind, _, detail = bound.partition(":")
    if kind == "memory":
        return f"{detail or 'memory'} bandwidth"
    if kind == "network":
        return f"the {detail or 'network'} link"
    return {
        "compute": "arithmetic throughput",
        # Of launches, of the first byte, of the steps of a collective.
        "latency": "latency",
        "host": "the host, which issues the kernels,",
        BUBBLE: "the pipeline bubble",
        "unknown": "operators without a record (their cost is unknown)",
    }.get(kind, bound)
