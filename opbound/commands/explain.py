"""`opbound explain`: what limits a model or an operator, and what would change it."""

from __future__ import annotations

import argparse

from graph_ir.garbage import no_collection
from opbound.parser import Parser

_EXAMPLES = """\
examples:
  opbound explain report.json
  opbound explain report.json model.layers.[0-31].mlp.down_proj
  opbound explain model.onnx --batch 32 --hardware a100-sxm-80gb
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import arguments, output_arguments

    parser: Parser = commands.add_parser(
        "explain",
        help="what limits it, what was assumed, and what would change it",
        description="Says in words what limits a model or one operator, which figures went in, and "
        "what each of the usual changes would gain: the model is analysed again with every change. "
        "A saved report is analysed as it was made; the options are for a model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("report", metavar="REPORT", help="a saved report (JSON), or a model")
    parser.add_argument("node", metavar="NODE", nargs="?", help="an operator or a module")
    arguments.add_analysis(parser)
    group = parser.add_argument_group("output")
    output_arguments.add_format(group, ("table", "json"))
    output_arguments.add_file(group)
    return parser


@no_collection()
def run(arguments: argparse.Namespace) -> int:
    """Explains and returns 0."""
    from opbound.arguments import options_of
    from opbound.explaining import explain, explain_saved
    from opbound.output import Output
    from opbound.progress import progress
    from opbound.saved_reports import saved_report
    from reports.explanation import explanation_json, explanation_text

    with Output(arguments.output) as output:
        report = saved_report(arguments.report)
        with progress() as say:
            if report is not None:
                found = explain_saved(report, arguments.node, say)
            else:
                found = explain(arguments.report, options_of(arguments), arguments.node, say)
        form = explanation_json if arguments.format == "json" else explanation_text
        output.write(form(found))
    return 0
