"""`opbound check`: a model against a budget, for CI."""

from __future__ import annotations

import argparse
from pathlib import Path

from graph_ir.errors import OpboundError
from graph_ir.garbage import no_collection
from opbound.parser import Parser

EXIT_KEPT = 0
EXIT_BROKEN = 1

_EXAMPLES = """\
examples:
  opbound init model.onnx --hardware h100-sxm-80gb --batch 8 -o opbound.toml
  opbound check model.onnx --budget opbound.toml
  opbound check model.onnx --baseline baseline.json --update-baseline
  opbound check model.onnx --baseline baseline.json --format sarif -o opbound.sarif

exit code: 0 every rule holds, 1 a rule is broken, 2 trouble
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound import output_arguments

    parser: Parser = commands.add_parser(
        "check",
        help="a model against a budget: the gate for CI",
        description="Analyses a model for every target of a budget file and says which limits it "
        "breaks: absolute ones, and growth over a baseline.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="as for `opbound analyze`")
    parser.add_argument(
        "--budget", metavar="FILE", default="opbound.toml", help="default: %(default)s"
    )
    parser.add_argument(
        "--baseline",
        metavar="FILE",
        help="what growth is counted from: written by --update-baseline",
    )
    parser.add_argument(
        "--update-baseline",
        action="store_true",
        help="write the present reports to the --baseline file; limits are checked, growth is not",
    )
    group = parser.add_argument_group("output")
    output_arguments.add_format(group, ("table", "json", "junit", "sarif", "github", "gitlab"))
    output_arguments.add_file(group)
    output_arguments.add_quiet(group)
    return parser


@no_collection()
def run(arguments: argparse.Namespace) -> int:
    """Checks, writes, and returns 0 if every rule holds, else 1."""
    from opbound.gate import check_model
    from opbound.output import Output
    from opbound.progress import progress
    from reports.gate.forms import FORMS

    _not_over_an_input(arguments)
    with Output(arguments.output) as output:
        with progress() as say:
            results = check_model(
                arguments.model,
                arguments.budget,
                arguments.baseline,
                update=arguments.update_baseline,
                progress=say,
            )
        if not arguments.quiet or arguments.output is not None:
            output.write(FORMS[arguments.format](results, arguments.model))
    return EXIT_KEPT if all(result.passed for result in results) else EXIT_BROKEN


def _not_over_an_input(arguments: argparse.Namespace) -> None:
    if arguments.output is None:
        return
    target = Path(arguments.output).resolve()
    for what, path in (
        ("the model", arguments.model),
        ("the budget", arguments.budget),
        ("the baseline", arguments.baseline),
    ):
        if path is not None and Path(path).resolve() == target:
            raise OpboundError(
                f"-o {arguments.output} is {what}: one file cannot be both, give another with -o"
            )
