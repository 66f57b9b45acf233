"""The commands: each a file with `add`, which says what can be typed, and `run`."""

from __future__ import annotations

import argparse
from importlib import import_module

from opbound._version import __version__
from opbound.commands.analyze import EXAMPLES
from opbound.help_text import complete_help
from opbound.parser import Parser

COMMANDS = (
    *("analyze", "graph", "annotate", "hardware", "validate"),
    *("diff", "check", "init", "explain", "crossover", "plot", "doctor"),
    *("calibrate", "measure", "completion"),
)


def build_parser() -> Parser:
    """The parser of the whole command line.

    A command's `run` gets the parsed arguments, which hold it as `run`, and returns the exit code.
    """
    parser = Parser(
        prog="opbound",
        description="Says what limits every operator of a model on the hardware it will run on.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"opbound {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"opbound.commands.{name}")
        command: Parser = module.add(commands)
        command.set_defaults(run=module.run)
    complete_help(parser, commands.choices)
    return parser
