"""`opbound diff`: what changed between two models or reports."""

from __future__ import annotations

import argparse

from graph_ir.errors import OpboundError
from graph_ir.garbage import no_collection
from opbound.parser import Parser

EXIT_SAME = 0
EXIT_DIFFERENT = 1

_EXAMPLES = """\
examples:
  opbound diff main.onnx branch.onnx --hardware h100-sxm-80gb --batch 8
  opbound diff baseline.json model.onnx --format markdown -o comment.md
  opbound diff hf:llama-2-7b hf:llama-3.1-8b --sequence 2048 --format html -o compare.html

exit code: 0 the same work (names aside), 1 it differs, 2 trouble
"""

_CHOSEN = ("hardware", "mode", "schedule", "balance", "recompute", "execution")
"""Options that have a value when nothing is typed."""


class _Untyped(str):
    """A default: a saved report's own option goes before it, but not before the same word typed."""

    __slots__ = ()


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import arguments, output_arguments

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
    for name in _CHOSEN:
        parser.set_defaults(**{name: _Untyped(parser.get_default(name))})
    group = parser.add_argument_group("output")
    output_arguments.add_format(group, ("table", "json", "markdown", "html"))
    output_arguments.add_file(group)
    output_arguments.add_quiet(group)
    group.add_argument(
        "--labels",
        nargs=2,
        metavar=("BASE", "NEW"),
        help="what the two are called in the output (default: as typed)",
    )
    group.add_argument("--top", type=int, metavar="N", help="only the N costliest changes")
    return parser


@no_collection()
def run(arguments: argparse.Namespace) -> int:
    """Compares, writes, and returns 0 for the same work, else 1."""
    from opbound.arguments import options_of
    from opbound.diffing import difference_of
    from opbound.output import Output
    from opbound.progress import progress
    from reports.diff import diff_html, diff_json, diff_markdown, diff_text

    old, new = arguments.labels or (arguments.base, arguments.new)
    labels = (old, new)
    options = options_of(arguments)
    chosen = {name: getattr(arguments, name) for name in _CHOSEN}
    typed = {name: value for name, value in chosen.items() if not isinstance(value, _Untyped)}
    if arguments.top is not None and arguments.top < 0:
        raise OpboundError(f"--top {arguments.top}: give 0 or more")
    with Output(arguments.output) as output:
        with progress() as say:
            difference = difference_of(arguments.base, arguments.new, options, say, typed)
        if arguments.format == "json":
            text = diff_json(difference, labels)
        elif arguments.format == "markdown":
            text = diff_markdown(difference, labels, top=arguments.top)
        elif arguments.format == "html":
            text = diff_html(difference, labels)
        else:
            text = diff_text(difference, labels, top=arguments.top)
        if not arguments.quiet or arguments.output is not None:
            output.write(text)
    return EXIT_SAME if difference.same_work else EXIT_DIFFERENT
