"""The report of a placement: which device runs which operator, what crosses, and how good that is."""

from __future__ import annotations

from dataclasses import dataclass

from reports.layout import Cells
from reports.pages import Page
from reports.quantities import bytes_text, percent_text, plain_text, ratio, time_text
from reports.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRow(Record):
    """One operator."""

    name: str
    op: str
    device: int
    start_s: float
    """In the forward pass."""
    time_s: float
    """Of its forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRow(Record):
    """One value that crosses devices; in training its gradient comes back."""

    value: str
    source: int
    target: int
    bytes: int
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementReport(Record):
    """What a placement gives."""

    opbound_version: str
    model: str
    sha256: str
    hardware: str
    mode: str
    devices: int
    method: str
    speedup: float
    """Over one device."""
    makespan_s: float
    """Time of one step: forward, and in training backward with every operator's update."""
    one_device_s: float
    critical_path_s: float
    """Time on any number of devices with free transfers."""
    bound_s: float
    """No placement of these pieces is faster."""
    gap: float
    """How much of the time a better placement could save at most."""
    greedy_s: float
    """Time of the list schedule (HEFT) that the search began with."""
    pieces: int
    """What was placed as a whole: operators, or chains of them."""
    segments: int
    """Parts between operators that everything passes through, searched one by one."""
    operators: tuple[PlacedRow, ...]
    transfers: tuple[TransferRow, ...]
    notes: tuple[str, ...] = ()


def placement_page(report: PlacementReport, top: int | None = None) -> Page:
    """The report for people.

    Args:
        report: what to print.
        top: number of operators and of transfers to show, in the order in which they run.
    """
    tables = [
        ("Devices", _devices(report)),
        ("Transfers", _transfers(report, top)),
        ("Operators, as they start", _operators(report, top)),
    ]
    title = f"opbound: placement of {plain_text(report.model)}"
    return Page(title, _summary(report), tables, report.notes, report, report.operators)


def _summary(report: PlacementReport) -> list[tuple[str, str]]:
    most = ratio(report.one_device_s, report.critical_path_s)
    return [
        ("model", f"{plain_text(report.model)}  sha256 {plain_text(report.sha256)[:16]}"),
        ("hardware", plain_text(report.hardware)),
        ("placement", f"{report.mode}, {report.devices} devices, {report.method}"),
        (
            "speed-up",
            f"{report.speedup:.3f}x: {time_text(report.makespan_s)} instead of "
            f"{time_text(report.one_device_s)} on one device",
        ),
        (
            "critical path",
            f"{time_text(report.critical_path_s)}, so no number of devices gives more than {most:.3f}x",
        ),
        (
            "bound",
            f"no placement of these pieces takes less than {time_text(report.bound_s)} "
            f"(gap {percent_text(report.gap)})",
        ),
        ("greedy", f"the list schedule takes {time_text(report.greedy_s)}"),
        (
            "pieces",
            f"{len(report.operators)} operators as {report.pieces} pieces (a chain of operators may be "
            f"one), searched in {report.segments} parts",
        ),
    ]


def _devices(report: PlacementReport) -> Cells:
    rows = []
    for device in range(report.devices):
        own = [row for row in report.operators if row.device == device]
        sent = sum(t.bytes for t in report.transfers if t.source == device)
        busy_s = sum(row.time_s for row in own)
        rows.append([str(device), str(len(own)), time_text(busy_s), bytes_text(sent)])
    headers = ["device", "operators", "busy forward", "sends forward"]
    return Cells(headers, [True] * 4, rows)


def _transfers(report: PlacementReport, top: int | None) -> Cells:
    rows = [
        [
            plain_text(t.value),
            str(t.source),
            str(t.target),
            bytes_text(t.bytes),
            time_text(t.time_s),
        ]
        for t in report.transfers[:top]
    ]
    return Cells(["value", "from", "to", "bytes", "time"], [False, *[True] * 4], rows)


def _operators(report: PlacementReport, top: int | None) -> Cells:
    rows = [
        [
            plain_text(r.name),
            plain_text(r.op),
            str(r.device),
            time_text(r.start_s),
            time_text(r.time_s),
        ]
        for r in report.operators[:top]
    ]
    return Cells(["operator", "op", "device", "start", "time"], [False, False, *[True] * 3], rows)
