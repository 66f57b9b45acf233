"""Where hybrid data and model parallelism overtakes data parallelism alone.

Time to accuracy = step time x steps per epoch x epochs. With N workers of one device: speed-up
SU_N = N SE_N E_1 / E_N over one device, where SE_N = T_1 / T_N is the efficiency of a step and E_N are
the epochs that a batch of N mini-batches needs. With N workers of M devices each, whose step is SU^M times as
fast: SU^M N SE_N E_1 / E_N on M N devices. So hybrid wins on the same M N devices if and only if
SU^M > M (SE_MN / SE_N) (E_N / E_MN).

Source: Pal et al. 2019, arXiv 1907.13257.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reports.layout import Cells
from reports.pages import Page
from reports.quantities import percent_text, plain_text, time_text
from reports.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossoverRow(Record):
    """One number of devices."""

    devices: int
    data_parallel: float | None
    """Speed-up to accuracy over one device; None where the epochs of its batch are not known."""
    hybrid: float | None
    efficiency: float
    """SE of data parallelism over all devices."""
    epochs: float | None
    """Of data parallelism over all devices."""
    needed: float | None
    """Speed-up within a worker beyond which hybrid wins."""
    hybrid_wins: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover(Record):
    """The comparison over numbers of devices."""

    opbound_version: str
    model: str
    hardware: str
    batch: int
    """Mini-batch of one worker."""
    worker_devices: int
    worker_speedup: float
    step_time_s: float
    """Of one worker of one device."""
    crossover: int | None
    """The least number of devices from which on hybrid wins; None: it does not."""
    rows: tuple[CrossoverRow, ...]


def crossover_rows(
    steps_s: Mapping[int, float],
    epochs: Callable[[int], float | None],
    worker_devices: int,
    worker_speedup: float,
) -> tuple[CrossoverRow, ...]:
    """One row per number of devices that is a multiple of a worker's.

    Args:
        steps_s: step time of data parallelism by number of workers, 1 among them.
        epochs: epochs to accuracy by number of workers; None where it is not known.
        worker_devices: M.
        worker_speedup: SU^M.
    """
    rows = []
    first = epochs(1)
    for devices in sorted(steps_s):
        workers, rest = divmod(devices, worker_devices)
        if rest or workers not in steps_s:
            continue
        se = {n: steps_s[1] / steps_s[n] for n in (devices, workers)}
        all_, few = epochs(devices), epochs(workers)
        alone = devices * se[devices] * first / all_ if first and all_ else None
        hybrid = worker_speedup * workers * se[workers] * first / few if first and few else None
        needed = worker_devices * se[devices] / se[workers] * few / all_ if few and all_ else None
        rows.append(
            CrossoverRow(
                devices=devices,
                data_parallel=alone,
                hybrid=hybrid,
                efficiency=se[devices],
                epochs=all_,
                needed=needed,
                # Where a batch is too large to reach the accuracy at all, only hybrid is left.
                hybrid_wins=hybrid is not None and (alone is None or hybrid > alone),
            )
        )
    return tuple(rows)


def crossover_of(rows: tuple[CrossoverRow, ...]) -> int | None:
    """The least number of devices from which on hybrid wins."""
    found = None
    for row in reversed(rows):
        if not row.hybrid_wins:
            break
        found = row.devices
    return found


def crossover_page(found: Crossover) -> Page:
    """The comparison for people."""
    where = f"from {found.crossover} devices on" if found.crossover else "at none of these sizes"
    summary = [
        ("model", plain_text(found.model)),
        ("hardware", plain_text(found.hardware)),
        ("worker", f"mini-batch {found.batch}, {time_text(found.step_time_s)} on one device"),
        (
            "hybrid",
            f"workers of {found.worker_devices} devices are {found.worker_speedup:.3f} times as fast",
        ),
        ("crossover", f"hybrid is faster to accuracy {where}"),
    ]
    rows = [
        [
            str(r.devices),
            _times(r.data_parallel),
            _times(r.hybrid),
            percent_text(r.efficiency),
            "-" if r.epochs is None else f"{r.epochs:.1f}",
            _times(r.needed),
            "hybrid" if r.hybrid_wins else "data parallel",
        ]
        for r in found.rows
    ]
    headers = ["devices", "data parallel", "hybrid", "efficiency", "epochs", "needs", "faster"]
    cells = Cells(headers, [*[True] * 6, False], rows)
    title = f"opbound: hybrid parallelism of {plain_text(found.model)}"
    return Page(
        title, summary, [("Speed-up to accuracy over one device", cells)], (), found, found.rows
    )


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
