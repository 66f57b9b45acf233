"""`opbound diff`: what changed between two models or reports."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from opbound.parser import Parser

if TYPE_CHECKING:
    from reports import Report

EXIT_SAME = 0
EXIT_DIFFERENT = 1

_EXAMPLES = """\
examples:
  opbound diff main.onnx branch.onnx --hardware h100-sxm-80gb --batch 8
  opbound diff baseline.json model.onnx --format markdown -o comment.md
  opbound diff hf:llama-2-7b hf:llama-3.1-8b --sequence 2048 --format html -o compare.html

exit code: 0 the same work (names aside), 1 it differs, 2 trouble
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import arguments

    parser: Parser = commands.add_parser(
        "diff",
        help="what changed between two models, or two saved reports",
        description="Matches the operators of two models, by name, else by structure, and says which "
        "were added, removed or changed, and what that does to time, FLOPs, bytes, memory and bounds. "
        "A file of `opbound analyze --format json` is read as it is; models are analysed with the "
        "options below, both alike, where nothing else is said as a saved report was.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("base", metavar="BASE", help="the old model or its report (JSON)")
    parser.add_argument("new", metavar="NEW", help="the new model or its report (JSON)")
    arguments.add_analysis(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format",
        choices=("table", "json", "markdown", "html"),
        default="table",
        help="default: %(default)s",
    )
    arguments.add_file(group)
    group.add_argument("--top", type=int, metavar="N", help="only the N costliest changes")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Compares, writes, and returns 0 for the same work, else 1."""
    from opbound.output import Output
    from opbound.progress import progress
    from reports.diff import compare, diff_html, diff_json, diff_markdown, diff_text

    labels = (arguments.base, arguments.new)
    with Output(arguments.output) as output:
        with progress() as say:
            before = read_or_analyze(arguments.base, arguments, say)
            after = read_or_analyze(arguments.new, arguments, say)
            say("matching the operators")
            difference = compare(before, after)
        if arguments.format == "json":
            output.write(diff_json(difference, labels))
        elif arguments.format == "markdown":
            output.write(diff_markdown(difference, labels, top=arguments.top))
        elif arguments.format == "html":
            output.write(diff_html(difference, labels))
        else:
            output.write(diff_text(difference, labels, top=arguments.top))
    return EXIT_SAME if difference.same_work else EXIT_DIFFERENT


def read_or_analyze(
    model: str, arguments: argparse.Namespace, say: Callable[[str], None]
) -> Report:
    """The report of a model, or the report itself where a saved one is given.

    Raises:
        OpboundError: if it is neither.
    """
    from opbound.saved_reports import saved_report

    found = saved_report(model)
    if found is not None:
        return found
    from opbound.analysis import run as analyze
    from opbound.arguments import options_of

    return analyze(model, options_of(arguments), progress=say)
