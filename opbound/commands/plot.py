"""`opbound plot`: figures for papers."""

from __future__ import annotations

import argparse
from pathlib import Path

from graph_ir.errors import OpboundError
from opbound.parser import Parser

KINDS = ("roofline", "memory", "scaling", "bounds")
_FORMATS = ("png", "svg", "pdf")
_EXAMPLES = """\
examples:
  opbound plot report.json -o roofline.svg
  opbound plot report.json --kind memory -o memory.png
  opbound plot gpus-8.json gpus-64.json gpus-512.json --kind scaling -o scaling.pdf
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    parser: Parser = commands.add_parser(
        "plot",
        help="figures of saved reports as PNG, SVG or PDF",
        description="Draws figures of saved reports (opbound analyze --format json) with matplotlib.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("reports", metavar="REPORT", nargs="+", help="saved reports (JSON)")
    parser.add_argument("--kind", choices=KINDS, default="roofline", help="default: %(default)s")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="its ending says the format"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Draws, writes, and returns 0."""
    import io

    from opbound.output import Output
    from opbound.saved_reports import saved_report
    from reports.plots import plot

    form = Path(arguments.output).suffix.lstrip(".").lower()
    if form not in _FORMATS:
        raise OpboundError(f"-o {arguments.output}: give a name that ends in {', '.join(_FORMATS)}")
    reports = []
    for path in arguments.reports:
        report = saved_report(path)
        if report is None:
            raise OpboundError(
                f"{path} is no saved report: write one with --format json -o FILE.json"
            )
        reports.append(report)
    with Output(arguments.output) as output:
        drawn = io.BytesIO()
        # The same report gives the same bytes: no date in the file.
        metadata = (
            {"Date": None} if form == "svg" else {"CreationDate": None} if form == "pdf" else {}
        )
        figure = plot(arguments.kind, reports)
        import matplotlib

        # Nor a random number: the salt goes into the names of an SVG's parts.
        with matplotlib.rc_context({"svg.hashsalt": "opbound"}):
            figure.savefig(drawn, format=form, dpi=200, metadata=metadata)
        output.write_bytes(drawn.getvalue())
    return 0
