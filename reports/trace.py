"""The simulated step as a trace: JSON that Perfetto and Chrome's tracing page read.

Format: "Trace Event Format", Google, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
(complete events `X`, metadata `M`, flows `s` and `f`; times in microseconds).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from graph_ir.errors import OpboundError
from reports.figures import TimelineEvent
from reports.quantities import plain_text
from reports.report import Report

_MICROSECONDS = 1e6


def render_trace(report: Report) -> str:
    """The timeline as a process per pipeline stage (a rank of it), a thread per stream.

    Raises:
        OpboundError: if the report has no timeline, as in generation mode.
    """
    if not report.timeline:
        raise OpboundError(
            f"a report in {report.mode} mode has no timeline to trace: use mode inference or training"
        )
    streams = list(dict.fromkeys(event.stream for event in report.timeline))
    rows = {row.name: row for row in report.operators}
    events = [*_names(report, streams)]
    for event in report.timeline:
        events.append(_complete(event, streams, rows.get(event.name)))
    events += _flows(report.timeline, streams)
    totals = report.totals
    trace = {
        "displayTimeUnit": "ns",
        "otherData": {
            "opbound": report.opbound_version,
            "model": plain_text(report.model.name),
            "hardware": plain_text(report.hardware.name),
            "strategy": plain_text(str(report.strategy)),
            "step_time_s": totals.step_time_s,
            "flops": totals.flops,
            "bytes_read": totals.bytes_read,
            "bytes_written": totals.bytes_written,
            "bytes_communicated": totals.bytes_communicated,
        },
        "traceEvents": events,
    }
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in events)
    head = json.dumps({k: v for k, v in trace.items() if k != "traceEvents"}, allow_nan=False)
    return f'{head[:-1]}, "traceEvents": [\n{lines}\n]}}\n'


def _names(report: Report, streams: list[str]) -> Iterator[dict[str, Any]]:
    for stage in sorted({event.stage for event in report.timeline}):
        yield {
            "ph": "M",
            "name": "process_name",
            "pid": stage,
            "tid": 0,
            "args": {"name": f"rank of pipeline stage {stage}"},
        }
        for thread, stream in enumerate(streams):
            yield {
                "ph": "M",
                "name": "thread_name",
                "pid": stage,
                "tid": thread,
                "args": {"name": plain_text(stream)},
            }


def _complete(event: TimelineEvent, streams: list[str], row: Any) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if event.microbatch is not None:
        details["microbatch"] = event.microbatch
    if row is not None:
        details |= {
            "op": plain_text(row.op),
            "bound": row.bound,
            "flops": row.flops // row.count,
            "bytes_read": row.bytes_read // row.count,
            "bytes_written": row.bytes_written // row.count,
            "bytes_communicated": row.bytes_communicated // row.count,
        }
    return {
        "ph": "X",
        "name": plain_text(event.name),
        "cat": event.phase,
        "pid": event.stage,
        "tid": streams.index(event.stream),
        "ts": event.start_s * _MICROSECONDS,
        "dur": event.duration_s * _MICROSECONDS,
        "args": details,
    }


def _flows(timeline: tuple[TimelineEvent, ...], streams: list[str]) -> Iterator[dict[str, Any]]:
    """An arrow from the end of each awaited event to the start of the one that waits."""
    number = 0
    for event in timeline:
        for place in event.after:
            before = timeline[place]
            number += 1
            common = {"cat": "data", "name": "waits for", "id": number}
            # An arrow binds to the slice that encloses its time: just inside both ends.
            inside_s = before.start_s + before.duration_s * (1 - 1e-6)
            yield {
                "ph": "s",
                "pid": before.stage,
                "tid": streams.index(before.stream),
                "ts": inside_s * _MICROSECONDS,
                **common,
            }
            yield {
                "ph": "f",
                "bp": "e",
                "pid": event.stage,
                "tid": streams.index(event.stream),
                "ts": event.start_s * _MICROSECONDS,
                **common,
            }
