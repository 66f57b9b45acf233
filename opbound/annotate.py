"""`opbound annotate`: an ONNX file with its figures on every node, for viewers such as Netron."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from opbound._version import __version__
from opbound.analysis import Progress, run
from opbound.options import Options
from reports.layout import header_lines
from reports.quantities import bytes_text, percent_text, scaled_text, time_text
from reports.rows import worth_showing

if TYPE_CHECKING:
    from opbound.output import Output
    from reports import OpRow, Report

SUFFIX = ".onnx"
_LAST_PART = re.compile(r"(_\d+|[./][^./]*)$")


def annotate(model: str, options: Options, output: Output, target: str, say: Progress) -> None:
    """Analyses an ONNX file and writes a copy with notes on every node.

    Args:
        model: path of a binary ONNX file.
        options: sizes, machine and execution; one device.
        output: where the copy goes.
        target: path of `output`.
        say: is told what is being done.

    Raises:
        OpboundError: if the model is no ONNX file, or cannot be analysed or copied.
    """
    from importers.onnx_annotate import annotated, check_place, node_names

    path = Path(model)
    if model.startswith("hf:") or not (path.suffix == SUFFIX or path.is_file()):
        raise OpboundError(f"{model} is no ONNX file: only those can be annotated")
    check_place(path, Path(target))
    report = run(model, options, progress=say).every_node()
    say("writing the notes")
    names = node_names(path)
    rows = rows_by_node(report.operators, frozenset(names))
    shared = {name: names.count(name) for name in rows if names.count(name) > 1}
    of_nodes = [_node_notes(rows.get(name, []), shared.get(name, 1)) for name in names]
    for piece in annotated(path, of_nodes, _model_notes(report)):
        output.write_bytes(piece)


def rows_by_node(rows: Sequence[OpRow], names: Collection[str]) -> dict[str, list[OpRow]]:
    """The rows of each node of the file.

    A node may become several operators, whose names continue the node's: a bias after a convolution
    (`Conv_3.bias`), the body of a function or a loop (`Gelu_7/Mul`), its repetitions (`Mul_1`).

    Args:
        rows: of single operators.
        names: of the file's nodes.
    """
    found: dict[str, list[OpRow]] = {}
    for row in rows:
        name = row.name
        while name and name not in names:
            shorter = _LAST_PART.sub("", name)
            name = shorter if shorter != name else ""
        if name:
            found.setdefault(name, []).append(row)
    return found


def _node_notes(rows: Sequence[OpRow], sharing: int) -> dict[str, str]:
    """What a viewer shows beside a node; nothing for one that leaves no operator."""
    if not rows:
        return {}
    slowest = max(rows, key=lambda row: row.time_s)
    flops = sum(row.flops for row in rows)
    read, written = (
        sum(getattr(row, f"bytes_{way}") for row in rows) for way in ("read", "written")
    )
    time_s = sum(row.time_s for row in rows)
    share = sum(row.share for row in rows)
    summary = (
        f"{time_text(time_s)} ({percent_text(share)} of the step), bound by {slowest.bound} on "
        f"{slowest.engine}: {scaled_text(flops)} FLOPs, {bytes_text(read)} read, "
        f"{bytes_text(written)} written"
    )
    notes = {
        "summary": summary if any(map(worth_showing, rows)) else "costs nothing (a view)",
        "time_s": repr(time_s),
        "share": repr(share),
        "bound": slowest.bound,
        "engine": slowest.engine,
        "flops": str(flops),
        "bytes_read": str(read),
        "bytes_written": str(written),
    }
    if sharing > 1:
        notes["shared"] = f"sums over the {sharing} nodes of this name"
    return notes


def _model_notes(report: Report) -> dict[str, str]:
    """Where the figures come from."""
    header = dict(header_lines(report))
    totals = report.totals
    return {
        "version": __version__,
        **{key: header[key] for key in ("mode", "hardware", "strategy", "coverage")},
        "counting": totals.flops_convention,
        "step_time_s": repr(totals.step_time_s),
        "conclusion": " ".join(totals.conclusions),
    }
