"""`opbound annotate`: an ONNX file with the figures on every node."""

from __future__ import annotations

import argparse

from opbound.parser import Parser


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import arguments

    parser: Parser = commands.add_parser(
        "annotate",
        help="an ONNX file with the figures on every node, for Netron",
        description="Analyses an ONNX file on one device and writes a copy in which every node "
        "carries its time, bound, FLOPs and bytes as metadata. Viewers show it, runtimes skip it.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="an ONNX file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the copy, whole or not at all"
    )
    arguments.add_one_device_analysis(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Writes the annotated copy."""
    from opbound.arguments import options_of
    from opbound.output import Output
    from opbound.progress import progress

    options = options_of(arguments)
    with Output(arguments.output) as output:
        from opbound.annotate import annotate

        with progress() as say:
            annotate(arguments.model, options, output, arguments.output, say)
    return 0
