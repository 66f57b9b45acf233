"""The reference of the command line, from its parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from markup import sentence

_HEAD = """\
# Command line

Made from the program's own parser. `opbound COMMAND --help` prints the same, `opbound --version` the version.

Exit codes: 0 all is well; 1 a gate says no (`opbound check` found a broken rule, `opbound diff` found a
difference, `opbound doctor` misses something that opbound needs); 2 the input or an option cannot be used,
told in one line on standard error; 130 interrupted.
"""


def page() -> str:
    """The page."""
    return _HEAD + "".join(f"\n## opbound {name}\n{_command(p)}" for name, p in commands().items())


def commands() -> dict[str, argparse.ArgumentParser]:
    """Each command's parser by its name."""
    from opbound.commands import build_parser

    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise TypeError("the parser has no commands")


def _command(parser: argparse.ArgumentParser) -> str:
    usage = argparse.HelpFormatter(parser.prog, width=100)
    usage.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    parts = [f"\n{sentence(parser.description or '')}\n\n```text\n{usage.format_help()}```\n"]
    for group in parser._action_groups:
        entries = list(_entries(parser, group))
        if entries:
            parts.append(f"\n**{str(group.title).capitalize()}**\n\n" + "\n".join(entries))
    if parser.epilog:
        parts.append(f"\n```text\n{parser.epilog.strip()}\n```\n")
    return "".join(parts)


def _entries(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> Iterator[str]:
    for action in group._group_actions:
        if action.help == argparse.SUPPRESS:
            continue
        yield f"`{_typed(action)}`\n:   {sentence(_help(parser, action)) or 'One of these.'}\n"


def _typed(action: argparse.Action) -> str:
    value = action.metavar or (action.choices and "|".join(map(str, action.choices)))
    if not action.option_strings:
        return str(value or action.dest)
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    return f"{names} {value or action.dest.upper()}"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return (action.help or "") % {**vars(action), "prog": parser.prog}
