"""A pipeline, rank by rank: times, memory, and the step drawn with letters."""

from __future__ import annotations

from reports.figures import PipelineRank
from reports.layout import Cells
from reports.quantities import bytes_text, percent_text, plain_text, ratio, time_text
from reports.report import Report

COLUMNS = 96
"""Characters over which a step is drawn."""

_LETTERS = {"forward": "F", "backward": "B", "optimizer": "U"}


def pipeline_tables(report: Report) -> list[tuple[str, Cells]]:
    """A title with its table; none without a pipeline."""
    if not report.pipeline:
        return []
    schedule = plain_text(report.strategy.schedule or "")
    least = min(rank.peak_bytes for rank in report.pipeline)
    headers = ["rank", "stages", "layers", "forward", "backward", "waits", "in flight"]
    headers += ["parameters", "activations", "peak", "over least", "overhead", "recompute"]
    rows = [_row(rank, report.totals.step_time_s, least) for rank in report.pipeline]
    right = [header not in ("stages", "recompute") for header in headers]
    title = f"Pipeline, rank by rank ({schedule}; passes of one micro-batch)"
    return [(title, Cells(headers, right, rows))]


def _row(rank: PipelineRank, step_s: float, least: int) -> list[str]:
    kinds = rank.by_kind_bytes
    return [
        str(rank.rank),
        " ".join(map(str, rank.stages)),
        str(rank.layers),
        time_text(rank.forward_s),
        time_text(rank.backward_s),
        percent_text(ratio(rank.waiting_s, step_s)),
        str(rank.in_flight),
        bytes_text(kinds.get("parameters", 0)),
        bytes_text(kinds.get("activations", 0)),
        bytes_text(rank.peak_bytes) + ("" if rank.fits else "  DOES NOT FIT"),
        bytes_text(rank.peak_bytes - least),
        bytes_text(rank.overhead_bytes),
        plain_text(rank.recompute),
    ]


def pipeline_drawing(report: Report, columns: int = COLUMNS) -> list[str]:
    """One line per rank: what it does most at each time of the step; none without a pipeline."""
    if not report.pipeline:
        return []
    end_s = max((e.start_s + e.duration_s for e in report.timeline), default=0.0)
    if end_s <= 0:
        return []
    each_s = end_s / columns
    lines = []
    for rank in report.pipeline:
        shares: list[dict[str, float]] = [{} for _ in range(columns)]
        for event in report.timeline:
            if event.stage != rank.rank or event.phase not in _LETTERS:
                continue
            letter = "W" if event.name.endswith("weights") else _LETTERS[event.phase]
            start, stop = event.start_s, event.start_s + event.duration_s
            for i in range(int(start / each_s), min(int(stop / each_s) + 1, columns)):
                part = min(stop, (i + 1) * each_s) - max(start, i * each_s)
                shares[i][letter] = shares[i].get(letter, 0.0) + part
        letters = (
            max(s, key=lambda key: s[key]) if sum(s.values()) > each_s / 2 else "." for s in shares
        )
        lines.append(f"{rank.rank:>4} {''.join(letters)}")
    meaning = "F forward, B backward, W gradients of weights, U update, . waits"
    return [*lines, f"     {meaning}; {time_text(each_s)} per letter"]
