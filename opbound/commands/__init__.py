"""The commands beside `analyze`: each a file with `add`, which says what can be typed, and `run`."""

from __future__ import annotations

import argparse
from importlib import import_module

from opbound.parser import Parser

COMMANDS = (
    *("diff", "check", "init", "explain", "crossover", "plot", "doctor"),
    *("calibrate", "measure", "completion"),
)


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds every command's parser; its `run` gets the parsed arguments and returns the exit code."""
    for name in COMMANDS:
        module = import_module(f"opbound.commands.{name}")
        parser: Parser = module.add(commands)
        parser.set_defaults(run=module.run)
