"""What a search for a strategy found, as tables: the fastest, what was left out, and each axis' part."""

from __future__ import annotations

from reports.layout import Cells
from reports.quantities import bytes_text, plain_text, scaled_text, time_text
from reports.search_info import SearchInfo


def search_tables(search: SearchInfo | None) -> list[tuple[str, Cells]]:
    """Titles with their tables, for people; none without a search."""
    tables: list[tuple[str, Cells]] = []
    if search is None:
        return tables
    if search.rows:
        title = (
            f"Strategies, the fastest first ({search.priced} of {search.candidates} priced "
            f"in {time_text(search.seconds)})"
        )
        rows = [
            [
                plain_text(row.strategy),
                time_text(row.step_time_s),
                bytes_text(row.peak_bytes),
                "yes" if row.fits else "NO",
            ]
            for row in search.rows
        ]
        cells = Cells(["strategy", "step", "peak memory", "fits"], [False, True, True, False], rows)
        tables.append((title, cells))
    if search.left_out:
        rows = [
            [plain_text(o.reason), str(o.count), plain_text(o.example)] for o in search.left_out
        ]
        cells = Cells(["left out because", "count", "for example"], [False, True, False], rows)
        tables.append(("Other strategies", cells))
    if search.axes:
        rows = [
            [
                plain_text(a.axis),
                "split" if a.chosen else "whole",
                f"{a.nodes} of {a.candidates}",
                scaled_text(a.flops),
                time_text(a.cost_s),
                time_text(a.other_s),
            ]
            for a in search.axes
        ]
        headers = ["logical axis", "is", "operators", "FLOPs", "cost", "the other way"]
        tables.append(
            (
                "Axes on the mesh axis auto (cost: one micro-batch, nodes and messages in turn)",
                Cells(headers, [False, False, *[True] * 4], rows),
            )
        )
    return tables
