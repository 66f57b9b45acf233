"""`opbound validate`: predictions beside published measurements."""

from __future__ import annotations

import argparse

from opbound.parser import Parser


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import output_arguments

    parser: Parser = commands.add_parser(
        "validate",
        help="predictions beside published measurements, with errors",
        description="Runs published measurements through the whole program and prints predicted "
        "beside measured. Takes some minutes, with progress.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("output")
    output_arguments.add_format(group, output_arguments.TABLE_FORMATS)
    output_arguments.add_file(group)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Predicts every row and writes the tables."""
    from opbound.output import Output
    from opbound.progress import progress
    from opbound.validate_command import validate

    with Output(arguments.output) as output, progress() as say:
        output.write(validate(arguments.format, say))
    return 0
