"""What the text, Markdown and HTML forms all show: the same cells, so that they cannot disagree.

Every text that comes from a model or a file has passed `plain_text`; a form only adds the escapes
of its own syntax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.figures import OpRow
from reports.quantities import (
    bytes_text,
    percent_text,
    plain_text,
    ratio,
    scaled_text,
    shape_text,
    time_text,
)
from reports.report import Report
from reports.rows import worth_showing


@dataclass(frozen=True, slots=True)
class Cells:
    """A table without a syntax: headers, which columns are figures (set right), and rows."""

    headers: list[str]
    right: list[bool]
    rows: list[list[str]]


def header_lines(report: Report) -> list[tuple[str, str]]:
    """Where the figures come from, as pairs of a key and a line."""
    model, hardware, coverage = report.model, report.hardware, report.coverage
    sizes = [f"batch {model.batch}" if model.batch else "", model.dtype]
    sizes.insert(1, f"sequence {model.sequence}" if model.sequence else "")
    if model.prompt_tokens is not None:
        sizes.insert(2, f"{model.prompt_tokens} prompt tokens, {model.new_tokens} new tokens")
    sizes += [f"{plain_text(name)}={size}" for name, size in model.dims.items()]
    lines = [
        ("model", f"{plain_text(model.name)}  sha256 {plain_text(model.sha256)[:16]}"),
        ("source", f"{plain_text(model.source)}  ({plain_text(model.importer)})"),
        ("mode", ", ".join([report.mode, *filter(None, sizes)])),
        ("hardware", f"{plain_text(hardware.name)}  ({plain_text(hardware.file)})"),
        ("strategy", plain_text(str(report.strategy))),
        ("counting", report.totals.flops_convention),
        (
            "coverage",
            f"{_coverage(coverage.nodes)} of the nodes, "
            f"{_coverage(coverage.bytes)} of the bytes have a record",
        ),
        ("opbound", f"{report.opbound_version}, report schema {report.schema_version}"),
    ]
    return lines + [("note", plain_text(note, 400)) for note in model.notes]


def _coverage(part: float) -> str:
    # Rounding must not call 99.96 % complete.
    return "100 %" if part == 1 else f"{min(part * 100, 99.99):.2f} %"


def operator_cells(rows: Sequence[OpRow]) -> Cells:
    """One line per operator or group; communication has columns only where there is some."""
    communicates = any(row.bytes_communicated for row in rows)
    headers = ["operator", "op", "phase", "count", "shapes", "dtype", "FLOPs", "read", "written"]
    headers += ["FLOP/B", *(["sent"] if communicates else [])]
    headers += ["time", "share", "bound", "engine", "use"]
    left = {"operator", "op", "phase", "shapes", "dtype", "bound", "engine"}
    return Cells(
        headers,
        [header not in left for header in headers],
        [_operator_row(row, communicates) for row in rows],
    )


def _operator_row(row: OpRow, communicates: bool) -> list[str]:
    ratio = row.arithmetic_intensity
    sent = [bytes_text(row.bytes_communicated)] if communicates else []
    return [
        plain_text(row.label),
        plain_text(row.op),
        row.phase,
        str(row.count),
        shapes_text(row.shapes),
        plain_text(_dtypes_text(row.dtypes)),
        scaled_text(row.flops),
        bytes_text(row.bytes_read),
        bytes_text(row.bytes_written),
        "-" if ratio is None else scaled_text(ratio),
        *sent,
        time_text(row.time_s),
        percent_text(row.share),
        plain_text(row.bound),
        plain_text(row.engine),
        percent_text(row.utilization),
    ]


def shapes_text(shapes: Sequence[tuple[int, ...]], limit: int = 3) -> str:
    """The first shapes of a node, and an ellipsis if there are more."""
    shown = [shape_text(shape) for shape in shapes[:limit]]
    return " ".join([*shown, "…"] if len(shapes) > limit else shown)


def _dtypes_text(dtypes: Sequence[str]) -> str:
    return "/".join(dict.fromkeys(dtypes))


def left_out_line(report: Report, shown: Sequence[OpRow]) -> list[str]:
    """How much of the time the table does not show; nothing where it shows every row."""
    worth = [row for row in report.operators if worth_showing(row)]
    hidden, views = len(worth) - len(shown), len(report.operators) - len(worth)
    lines = []
    if hidden:
        hidden_s = max(sum(row.time_s for row in worth) - sum(row.time_s for row in shown), 0.0)
        lines.append(
            f"{hidden} more {'row takes' if hidden == 1 else 'rows take'} {time_text(hidden_s)} "
            f"({percent_text(ratio(hidden_s, report.totals.step_time_s))} of the step)"
        )
    if views:
        lines.append(f"{views} more {'row costs' if views == 1 else 'rows cost'} nothing (views)")
    return lines


def totals_cells(report: Report) -> Cells:
    """Sums of the rows' times by phase and by bound."""
    split = report.totals.time_s
    rows = [
        *_split_rows("phase", split.by_phase, report),
        *_split_rows("bound", split.by_bound, report),
    ]
    return Cells(["", "", "time", "share"], [False, False, True, True], rows)


def _split_rows(title: str, times_s: Mapping[str, float], report: Report) -> list[list[str]]:
    ordered = sorted(times_s.items(), key=lambda item: -item[1])
    return [
        [
            f"by {title}" if index == 0 else "",
            plain_text(name),
            time_text(time_s),
            percent_text(ratio(time_s, report.totals.step_time_s)),
        ]
        for index, (name, time_s) in enumerate(ordered)
    ]


def total_lines(report: Report) -> list[tuple[str, str]]:
    """The step in one look, as pairs of a key and a line."""
    totals = report.totals
    bubble_s = totals.bubble_time_s
    lines = [
        (
            "step",
            f"{time_text(totals.step_time_s)} = {time_text(totals.compute_time_s)} computing, "
            f"{time_text(totals.exposed_communication_s)} exposed communication, "
            f"{time_text(bubble_s)} pipeline bubble ({percent_text(ratio(bubble_s, totals.step_time_s))})",
        ),
        (
            "rate",
            f"{scaled_text(totals.flops_per_s, 'FLOP/s')} per device, "
            f"MFU {percent_text(totals.mfu)}",
        ),
        (
            "work",
            f"{scaled_text(totals.flops)} FLOPs, {bytes_text(totals.bytes_read)} read, "
            f"{bytes_text(totals.bytes_written)} written, "
            f"{bytes_text(totals.bytes_communicated)} communicated per device",
        ),
        ("parameters", f"{scaled_text(totals.parameters)} in the whole model"),
    ]
    if totals.energy_j is not None:
        watts = ratio(totals.energy_j, totals.step_time_s)
        lines.append(
            (
                "energy",
                f"about {scaled_text(totals.energy_j, 'J')} per device and step, {scaled_text(watts, 'W')}",
            )
        )
    if totals.prefill_time_s is not None and totals.decode_time_s is not None:
        each = totals.time_per_token_s
        token = f", {time_text(each)} per token" if each is not None else ""
        lines.append(
            (
                "generation",
                f"prefill {time_text(totals.prefill_time_s)}, "
                f"decode {time_text(totals.decode_time_s)}{token}",
            )
        )
    return lines


def memory_cells(report: Report) -> Cells:
    """Memory by kind, its peak, what comes beside the tensors, and all against the capacity."""
    memory = report.memory

    def row(name: str, size: int) -> list[str]:
        return [name, bytes_text(size), _part(size, memory.capacity_bytes)]

    verdict = "fits" if memory.fits else "DOES NOT FIT"
    rows = [row(kind.replace("_", " "), size) for kind, size in memory.by_kind_bytes.items()]
    rows.append(row("peak", memory.peak_bytes))
    rows += [row(kind, size) for kind, size in memory.overhead_bytes.items()]
    if memory.overhead_bytes:
        rows.append(row("with overhead", memory.total_bytes))
    rows.append(["capacity", bytes_text(memory.capacity_bytes), verdict])
    return Cells(["", "bytes", "of capacity"], [False, True, True], rows)


def _part(part_bytes: int, whole_bytes: int) -> str:
    return percent_text(part_bytes / whole_bytes) if whole_bytes else "-"
