"""`opbound analyze`: what every operator costs and what bounds it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from graph_ir.garbage import no_collection
from opbound.parser import Parser

if TYPE_CHECKING:
    from opbound.output import Output
    from reports import Report
    from reports.view import View

EXAMPLES = """\
examples:
  opbound analyze model.onnx --hardware a100-sxm-80gb --batch 32
  opbound analyze hf:llama-3.1-8b --mode generation --prompt-tokens 1000 --new-tokens 200
  opbound analyze hf:gpt3-175b --mode training --batch 64 --parallel dp=1,tp=8,pp=8 --dtype bf16
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import arguments, output_arguments
    from opbound.row_arguments import add_row_options
    from opbound.search_arguments import add_search_options

    parser: Parser = commands.add_parser(
        "analyze",
        help="report of every operator: cost, bound, time",
        description="Imports a model, splits it over devices, prices every operator and says what "
        "bounds it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments.add_model(parser)
    arguments.add_analysis(parser)
    add_search_options(parser.add_argument_group("search"))
    group = parser.add_argument_group("output")
    output_arguments.add_format(group, (*output_arguments.TABLE_FORMATS, "html", "trace"))
    output_arguments.add_file(group)
    add_row_options(group)
    output_arguments.add_rows(group, "one row per operator")
    return parser


@no_collection()
def run(arguments: argparse.Namespace) -> int:
    """Analyses, or searches where the arguments ask for it, and writes the report."""
    from opbound.arguments import options_of
    from opbound.output import Output
    from opbound.progress import progress
    from opbound.row_arguments import view_of_arguments
    from opbound.search_arguments import page_wanted, write_page

    if page_wanted(arguments):
        return write_page(arguments)
    options = options_of(arguments)
    view = view_of_arguments(arguments)
    # Opened before the work: nobody waits a minute to learn that the folder does not exist.
    with Output(arguments.output) as output:
        from opbound.analysis import run

        with progress() as say:
            report = run(arguments.model, options, progress=say)
        if arguments.every_node:
            report = report.every_node()
        _write(report, view, arguments.format, output)
    return 0


def _write(report: Report, view: View, form: str, output: Output) -> None:
    if form == "json":
        output.write(report.to_json())
    elif form == "csv":
        output.write(report.to_csv(view=view))
    elif form == "markdown":
        output.write(report.to_markdown(view=view))
    elif form == "html":
        output.write(report.to_html())
    elif form == "trace":
        output.write(report.to_trace())
    elif output.is_terminal:
        output.show_table(report, view)
    else:
        output.write(report.to_text(view=view))
