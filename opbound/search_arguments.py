"""Options of `analyze` that ask another question than what each operator costs, and their pages."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError

if TYPE_CHECKING:
    from opbound.analysis import Progress
    from reports.pages import Page

PAGES = ("place", "explain")


def add_search_options(group: argparse._ArgumentGroup) -> None:
    """Adds --place and --explain to a group of options."""
    group.add_argument(
        "--place",
        metavar="devices=N",
        help="put whole operators on N devices so that the last one ends as early as can be; "
        "method=greedy takes the list schedule, seconds=S (60) limits the exact search",
    )

    group.add_argument(
        "--explain",
        metavar="NODE",
        help="say why this operator is split as it is, which collectives that causes, and what "
        "every other way would cost",
    )


def page_wanted(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for a page of their own."""
    return any(getattr(arguments, name, None) is not None for name in PAGES)


def write_page(arguments: argparse.Namespace) -> int:
    """Writes the page that is asked for, and returns the exit code.

    Raises:
        OpboundError: if the model, the hardware or an option cannot be used.
    """
    from opbound.output import Output
    from opbound.output_arguments import TABLE_FORMATS
    from opbound.progress import progress

    if arguments.format not in TABLE_FORMATS:
        raise OpboundError(
            f"this page has no --format {arguments.format}; choose one of {', '.join(TABLE_FORMATS)}"
        )
    with Output(arguments.output) as output, progress() as say:
        output.write(_page(arguments, say).to(arguments.format))
    return 0


def _page(arguments: argparse.Namespace, say: Progress) -> Page:
    from opbound.arguments import options_of

    options = options_of(arguments)
    if arguments.explain is not None:
        if arguments.place is not None:
            raise OpboundError("--explain and --place are two pages: leave one of them out")
        from opbound.node_split import explain_node
        from reports.node_split import node_page

        return node_page(explain_node(arguments.model, options, arguments.explain, say))
    from opbound.placement import parse_place, placed
    from reports.placement import placement_page

    report = placed(arguments.model, options, parse_place(arguments.place), say)
    return placement_page(report, arguments.top)
