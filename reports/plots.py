"""Figures for papers, by matplotlib: roofline, memory over the step, scaling over devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from reports.quantities import bytes_text, plain_text, scaled_text
from reports.report import Report
from reports.rows import worth_showing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; the marker says the same without colour.
_STYLES = {
    "compute": ("#0072b2", "o"),
    "memory": ("#d55e00", "s"),
    "network": ("#9a4f96", "D"),
    "latency": ("#6b7280", "^"),
    "host": ("#e69f00", "v"),
    "unknown": ("#b00020", "x"),
}
_KINDS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#8a8f98", "#56b4e9", "#f0e442")


def plot(kind: str, reports: Sequence[Report]) -> Figure:
    """Draws one figure.

    Args:
        kind: a key of `PLOTS`.
        reports: one for `roofline` and `memory`; `scaling` wants one per number of devices.

    Raises:
        OpboundError: if matplotlib is not installed, or the reports do not fit the figure.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OpboundError(
            "plots need matplotlib: install it with pip install 'opbound[plot]'"
        ) from None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    PLOTS[kind](figure.add_subplot(), reports)
    return figure


def _one(reports: Sequence[Report]) -> Report:
    if len(reports) != 1:
        raise OpboundError(f"this figure shows one report, {len(reports)} were given")
    return reports[0]


def roofline(axes: Axes, reports: Sequence[Report]) -> None:
    """Achieved FLOP/s over FLOPs per byte, below the ceilings; the area of a mark is its time."""
    report = _one(reports)
    rows = [r for r in report.operators if r.flops and r.time_s and r.arithmetic_intensity]
    if not rows:
        raise OpboundError("no operator of this report computes anything: there is no roofline")
    longest_s = max(row.time_s for row in rows)
    for bound, (colour, marker) in _STYLES.items():
        own = [row for row in rows if row.bound.partition(":")[0] == bound]
        if own:
            axes.scatter(
                [row.arithmetic_intensity or 0.0 for row in own],
                [row.flops / row.time_s for row in own],
                s=[6 + 300 * row.time_s / longest_s for row in own],
                c=colour,
                marker=marker,
                alpha=0.7,
                label=bound,
                linewidths=0.5,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    compute = [c for c in report.hardware.ceilings if c.kind == "compute"]
    roof = max([c.per_s for c in compute], default=axes.get_ylim()[1])
    for ceiling in report.hardware.ceilings:
        colour = _STYLES[ceiling.kind][0]
        if ceiling.kind == "compute":
            axes.axhline(ceiling.per_s, color=colour, linewidth=1)
            place = (high, ceiling.per_s)
            text = f"{plain_text(ceiling.name)} {scaled_text(ceiling.per_s, 'FLOP/s')}"
        else:
            ridge = roof / ceiling.per_s
            high = max(high, ridge)
            axes.plot([low, ridge], [low * ceiling.per_s, roof], color=colour, linewidth=1)
            place = (ridge, roof)
            text = f"{plain_text(ceiling.name)} {bytes_text(ceiling.per_s)}/s"
        axes.annotate(text, place, fontsize=7, color=colour, ha="right", va="bottom")
    axes.set_xlim(low, high * 1.5)
    axes.set_xlabel("FLOP per byte")
    axes.set_ylabel("FLOP/s")
    axes.set_title(_title(report), fontsize=9)
    axes.legend(fontsize=7, loc="lower right")


def memory(axes: Axes, reports: Sequence[Report]) -> None:
    """Memory of the fullest device while a micro-batch passes, by kind, below the capacity."""
    report = _one(reports)
    use = report.memory
    profile = use.profile
    times = list(profile.time_s) if profile else [0.0, report.totals.step_time_s]
    lines = {
        kind: list(profile.by_kind_bytes[kind])
        if profile and kind in profile.by_kind_bytes
        else [size] * len(times)
        for kind, size in use.by_kind_bytes.items()
    }
    shown = {kind: line for kind, line in lines.items() if any(line)}
    axes.stackplot(
        [t * 1e3 for t in times],
        [[size / 1e9 for size in line] for line in shown.values()],
        labels=[kind.replace("_", " ") for kind in shown],
        colors=_KINDS,
    )
    if use.capacity_bytes < 3 * use.peak_bytes:
        axes.axhline(use.capacity_bytes / 1e9, color="#b00020", linestyle="--", label="capacity")
    axes.set_xlabel("busy time while one micro-batch passes (ms)")
    axes.set_ylabel("memory (GB)")
    axes.set_title(_title(report), fontsize=9)
    axes.legend(fontsize=7)


def scaling(axes: Axes, reports: Sequence[Report]) -> None:
    """Samples per second over the number of devices, beside perfect scaling from the smallest."""
    if len(reports) < 2 or len({r.strategy.devices for r in reports}) < 2:
        raise OpboundError("a scaling figure needs reports of two or more numbers of devices")
    ordered = sorted(reports, key=lambda report: report.strategy.devices)
    devices = [report.strategy.devices for report in ordered]
    rates = [(report.model.batch or 1) / report.totals.step_time_s for report in ordered]
    axes.plot(devices, rates, "o-", color="#0072b2", label="predicted")
    perfect = [rates[0] * count / devices[0] for count in devices]
    axes.plot(devices, perfect, "--", color="#6b7280", label="perfect")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(devices, [str(count) for count in devices])
    axes.set_xlabel("devices")
    axes.set_ylabel("samples per second")
    axes.set_title(_title(ordered[0]), fontsize=9)
    axes.legend(fontsize=7)


def bounds(axes: Axes, reports: Sequence[Report]) -> None:
    """Time of each report by bound, one bar each: devices, strategies or models beside each other."""
    names = [f"{plain_text(r.model.name, 24)}\n{plain_text(r.hardware.name, 24)}" for r in reports]
    below = [0.0] * len(reports)
    for bound, (colour, _) in _STYLES.items():
        times = [
            sum(
                r.time_s
                for r in report.operators
                if r.bound.partition(":")[0] == bound and worth_showing(r)
            )
            for report in reports
        ]
        if any(times):
            axes.bar(
                names,
                [t * 1e3 for t in times],
                bottom=[b * 1e3 for b in below],
                color=colour,
                label=bound,
            )
            below = [b + t for b, t in zip(below, times, strict=True)]
    axes.set_ylabel("operators' time (ms)")
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(fontsize=7)


PLOTS: dict[str, Callable[[Axes, Sequence[Report]], None]] = {
    "roofline": roofline,
    "memory": memory,
    "scaling": scaling,
    "bounds": bounds,
}


def _title(report: Report) -> str:
    return f"{plain_text(report.model.name)} on {plain_text(report.hardware.name)}, {report.mode}"
