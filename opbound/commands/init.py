"""`opbound init`: a budget file from a model as it is today."""

from __future__ import annotations

import argparse

from graph_ir.garbage import no_collection
from opbound.parser import Parser

_EXAMPLES = """\
examples:
  opbound init model.onnx --hardware h100-sxm-80gb --batch 8 -o opbound.toml
  opbound init hf:llama-3.1-8b --mode generation --margin 0.05
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import arguments, output_arguments

    parser: Parser = commands.add_parser(
        "init",
        help="write a budget file from a model as it is",
        description="Analyses a model and writes a budget file whose limits are today's figures and a "
        "margin. Edit it, commit it, and let `opbound check` watch over it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="as for `opbound analyze`")
    arguments.add_analysis(parser)
    parser.add_argument(
        "--margin",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="how much more each limit allows (default: %(default)s)",
    )
    parser.add_argument("--name", default="default", help="of the target (default: %(default)s)")
    output_arguments.add_file(parser)
    return parser


@no_collection()
def run(arguments: argparse.Namespace) -> int:
    """Analyses, writes the file, and returns 0."""
    from opbound.analysis import run as analyze
    from opbound.arguments import options_of
    from opbound.output import Output
    from opbound.progress import progress
    from reports.gate.starting import starting_budget

    options = options_of(arguments)
    with Output(arguments.output) as output:
        with progress() as say:
            report = analyze(arguments.model, options, progress=say)
        output.write(starting_budget(report, arguments.name, arguments.margin))
    return 0
