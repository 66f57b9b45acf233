"""`opbound crossover`: data parallelism alone against workers of several devices."""

from __future__ import annotations

import csv
from dataclasses import replace
from math import log
from pathlib import Path

from graph_ir.errors import OpboundError
from opbound._version import __version__
from opbound.analysis import Analysis, Progress
from opbound.bench import Bench
from opbound.options import Options
from opbound.placement import Request, placement_of
from reports.crossover import Crossover, crossover_of, crossover_rows


def read_epochs(path: str) -> dict[int, float]:
    """Reads a CSV file with the columns batch and epochs.

    Raises:
        OpboundError: if there is no such file, or it holds something else.
    """
    try:
        rows = list(csv.reader(Path(path).read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise OpboundError(f"cannot read the epochs from {path}: {error}") from None
    found: dict[int, float] = {}
    for number, row in enumerate((r for r in rows if any(c.strip() for c in r)), start=1):
        try:
            batch, epochs = int(row[0]), float(row[1])
        except (ValueError, IndexError):
            if number == 1:
                continue  # A header.
            raise OpboundError(
                f"{path}, row {number}: {','.join(row)!r} is not batch,epochs"
            ) from None
        if batch < 1 or not 0 < epochs < float("inf"):
            raise OpboundError(f"{path}, row {number}: batch and epochs must be positive")
        found[batch] = epochs
    if not found:
        raise OpboundError(f"{path} names no batch: write rows of batch,epochs")
    return found


def epochs_at(curve: dict[int, float], batch: int) -> float | None:
    """Epochs of a batch: between two given ones on the line through them, both axes logarithmic."""
    if batch in curve:
        return curve[batch]
    below = max((b for b in curve if b < batch), default=None)
    above = min((b for b in curve if b > batch), default=None)
    if below is None or above is None:
        return None
    part = log(batch / below) / log(above / below)
    return float(curve[below] * (curve[above] / curve[below]) ** part)


def crossover(
    model: object,
    options: Options,
    curve: dict[int, float],
    request: Request,
    devices: int,
    speedup: float | None = None,
    progress: Progress = lambda _: None,
) -> Crossover:
    """Compares both ways for 1, 2, 4, ... devices.

    Args:
        model: what `importers.load` takes.
        options: of the training of one worker; `batch` is its mini-batch.
        curve: epochs to accuracy by global batch.
        request: the placement within a worker.
        devices: up to how many.
        speedup: of a worker over one device; None: that of the placement.
        progress: is told what is being done.

    Raises:
        OpboundError: if the model, the hardware or an option cannot be used.
    """
    if options.batch is None:
        raise OpboundError(
            "crossover compares batches: give the mini-batch of one worker with --batch"
        )
    if options.devices > 1 or options.auto is not None:
        raise OpboundError("crossover compares numbers of workers: leave --parallel out")
    mini = options.batch

    def known(workers: int) -> float | None:
        return epochs_at(curve, mini * workers)

    if known(1) is None:
        raise OpboundError(
            f"the epochs of one worker's batch of {mini} are not among the given ones"
        )
    counts = [1]
    while counts[-1] * 2 <= devices:
        counts.append(counts[-1] * 2)
    if request.devices not in counts[1:]:
        raise OpboundError(
            f"workers of {request.devices} devices: give a power of 2 up to {devices}"
        )
    if speedup is None:
        analysis = Analysis(model, options, progress=progress)
        forward = analysis.imported(options.mode, options.sequence).graph
        speedup = placement_of(analysis, forward, request).speedup
    bench = Bench(model, replace(options, batch=mini * counts[-1]), None, progress)
    steps_s = {}
    for count in counts:
        progress(f"pricing {count} workers")
        parallel = {"dp": count} if count > 1 else {}
        varied = replace(options, batch=mini * count, parallel=parallel)
        steps_s[count] = bench.measure(varied).step_time_s
    rows = crossover_rows(steps_s, known, request.devices, speedup)
    return Crossover(
        opbound_version=__version__,
        model=bench.imported(mini, options.mode, options.sequence, None).name,
        hardware=bench.whole.hardware.name,
        batch=mini,
        worker_devices=request.devices,
        worker_speedup=speedup,
        step_time_s=steps_s[1],
        crossover=crossover_of(rows),
        rows=rows,
    )
