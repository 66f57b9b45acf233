"""`opbound crossover`: where workers of several devices overtake data parallelism alone."""

from __future__ import annotations

import argparse
from dataclasses import replace

from opbound.parser import Parser

_EXAMPLES = """\
examples:
  opbound crossover model.onnx --batch 64 --epochs epochs.csv --place devices=2
  opbound crossover model.onnx --batch 64 --epochs epochs.csv --speedup 1.32 --devices 1024
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import arguments, output_arguments

    parser: Parser = commands.add_parser(
        "crossover",
        help="when to spend devices on model parallelism instead of a larger batch",
        description="A larger batch needs more epochs, so data parallelism gains less and less. Compares "
        "it with workers of several devices, over which the operators of the model are placed, by the "
        "time to accuracy. The epochs by global batch are yours to give.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="what `opbound analyze` takes")
    arguments.add_analysis(parser)
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--epochs", metavar="FILE", required=True, help="CSV of batch,epochs: epochs to accuracy"
    )
    group.add_argument(
        "--place",
        metavar="devices=N",
        default="devices=2",
        help="devices of a worker, and how operators are placed on them (default: %(default)s)",
    )
    group.add_argument(
        "--speedup",
        type=float,
        metavar="F",
        help="of a worker over one device, in place of the placement's",
    )
    group.add_argument(
        "--devices",
        type=int,
        default=256,
        metavar="N",
        help="up to how many (default: %(default)s)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=output_arguments.TABLE_FORMATS,
        default="table",
        help="default: %(default)s",
    )
    output_arguments.add_file(output)
    parser.set_defaults(mode="training")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Compares and returns 0."""
    from graph_ir.errors import OpboundError
    from opbound.arguments import options_of
    from opbound.crossover import crossover, read_epochs
    from opbound.output import Output
    from opbound.placement import parse_place
    from opbound.progress import progress
    from reports.crossover import crossover_page

    if arguments.speedup is not None and not 0 < arguments.speedup < float("inf"):
        raise OpboundError(f"--speedup {arguments.speedup} is not a positive number")
    curve = read_epochs(arguments.epochs)
    request = parse_place(arguments.place)
    options = replace(options_of(arguments), mode="training")
    with Output(arguments.output) as output, progress() as say:
        found = crossover(
            arguments.model, options, curve, request, arguments.devices, arguments.speedup, say
        )
        output.write(crossover_page(found).to(arguments.format))
    return 0
