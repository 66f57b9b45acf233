"""`opbound completion`: what a shell needs to complete commands, options and names of devices."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from graph_ir.errors import OpboundError
from opbound.parser import Parser

SHELLS = ("bash", "zsh", "fish")

_FILES = ("MODEL", "FILE", "REPORT", "BASE", "NEW", "NAME|FILE")
"""What an argument is called that takes a file."""

_EXAMPLES = """\
examples:
  eval "$(opbound completion bash)"
  opbound completion zsh > "${fpath[1]}/_opbound"
  opbound completion fish > ~/.config/fish/completions/opbound.fish
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    parser: Parser = commands.add_parser(
        "completion",
        help="a script for the shell that completes commands and options",
        description="Prints a script that completes commands, options and their values.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS))
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Prints the script and returns 0.

    Raises:
        OpboundError: if shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise OpboundError(
            "completion needs shtab: install it with pip install 'opbound[completion]'"
        ) from None
    from opbound.commands import build_parser

    parser = build_parser()
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(parser, arguments.shell) + "\n")
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
