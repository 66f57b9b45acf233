"""`opbound graph`: the operator graph that is priced, as text."""

from __future__ import annotations

import argparse

from opbound.parser import Parser


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import arguments, output_arguments

    parser: Parser = commands.add_parser(
        "graph",
        help="the operator graph that is priced, as text",
        description="Prints the operator graph of one micro-batch: every node with its results' "
        "types, repeated layers once. With --parallel the graph of one rank per pipeline stage.",
        allow_abbrev=False,
    )
    arguments.add_model(parser)
    arguments.add_analysis(parser)
    group = parser.add_argument_group("output")
    output_arguments.add_file(group)
    output_arguments.add_rows(group, "one node per operator")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Prints the graph."""
    from opbound.arguments import options_of
    from opbound.output import Output
    from opbound.progress import progress

    options = options_of(arguments)
    with Output(arguments.output) as output:
        from opbound.graph_page import graph_page

        with progress() as say:
            page = graph_page(
                arguments.model, options, every_node=arguments.every_node, progress=say
            )
        output.write(page)
    return 0
