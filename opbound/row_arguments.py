"""Options that choose the rows and columns of a report's table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.view import View


def add_row_options(group: argparse._ArgumentGroup) -> None:
    """Adds --top, --sort, --filter, --columns, --tree and --depth."""
    group.add_argument(
        "--top",
        type=_positive,
        metavar="N",
        help="only the first N operators; JSON and HTML always have all of them",
    )
    group.add_argument(
        "--sort",
        default="time",
        metavar="KEY",
        help="time, share, flops, bytes, sent, intensity, count, use (the largest first), operator, "
        "module, op, phase, bound, or model for the model's order (default: %(default)s)",
    )
    group.add_argument(
        "--filter",
        metavar="EXPRESSION",
        help="only operators for which it holds: 'bound == memory and time > 1ms', 'op ~ norm', "
        "'not (phase == forward) or flops >= 2G'",
    )
    group.add_argument(
        "--columns",
        metavar="NAMES",
        help="only these columns, in this order: operator,op,time,bound",
    )
    group.add_argument(
        "--tree", action="store_true", help="modules with subtotals in place of a flat list"
    )
    group.add_argument("--depth", type=_positive, metavar="N", help="levels of the tree")


def view_of_arguments(arguments: argparse.Namespace) -> View:
    """The view that the parsed arguments ask for.

    Raises:
        OpboundError: if a column, a key or the filter cannot be used.
    """
    from reports.row_filter import parse_filter
    from reports.view import View

    if arguments.filter is not None:
        # Told now, not after the model has been analysed.
        parse_filter(arguments.filter)
    columns = arguments.columns
    return View(
        top=arguments.top,
        sort=arguments.sort,
        where=arguments.filter,
        columns=tuple(name.strip() for name in columns.split(",")) if columns is not None else None,
        tree=arguments.tree or arguments.depth is not None,
        depth=arguments.depth,
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
