"""Options that say in which form and where a command writes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

TABLE_FORMATS = ("table", "json", "csv", "markdown")
"""Forms of whatever is a table; a report has more."""


def add_file(group: argparse._ActionsContainer) -> None:
    """Adds the option that names the file to write."""
    group.add_argument("-o", "--output", metavar="FILE", help="write there, whole or not at all")


def add_format(group: argparse._ActionsContainer, formats: Sequence[str]) -> None:
    """Adds the option that chooses the form, and a short one for programs."""
    group.add_argument("--format", choices=formats, default=formats[0], help="default: %(default)s")
    if "json" in formats:
        group.add_argument(
            "--json",
            dest="format",
            action="store_const",
            const="json",
            default=argparse.SUPPRESS,
            help="short for --format json",
        )


def add_quiet(group: argparse._ActionsContainer) -> None:
    """Adds the option that leaves the exit code to speak."""
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="print nothing but errors; a file given with -o is written",
    )


def add_rows(group: argparse._ArgumentGroup, every: str) -> None:
    """Adds the choice between one row for the same operator of repeated layers and a row for each."""
    rows = group.add_mutually_exclusive_group()
    rows.add_argument(
        "--group",
        dest="every_node",
        action="store_false",
        default=False,
        help="the same operator of repeated layers once, with a count (the default)",
    )
    rows.add_argument("--every-node", dest="every_node", action="store_true", help=every)
