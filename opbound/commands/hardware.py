"""`opbound hardware`: the shipped devices, and one in another technology."""

from __future__ import annotations

import argparse
import sys

from opbound.hardware_scaling import EXAMPLES, add_scale_options
from opbound.parser import Parser


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    parser: Parser = commands.add_parser(
        "hardware",
        help="list the devices, show one with its sources, or scale one to another technology",
        description="Without a name: the shipped devices and clusters. With one: every figure of "
        "it and where the figure comes from. With `scale BASE`: its file in another technology.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME|FILE|scale")
    add_scale_options(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Lists, shows or scales."""
    from opbound.hardware_page import list_devices, show_device
    from opbound.hardware_scaling import only_for_scaling, scale

    if arguments.name == "scale":
        scale(arguments)
        return 0
    only_for_scaling(arguments)
    sys.stdout.write(show_device(arguments.name) if arguments.name else list_devices())
    return 0
