"""The command line. Exit code 0: fine; 1: a gate failed; 2: wrong input, told in one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from graph_ir.garbage import no_collection

if TYPE_CHECKING:
    import argparse

    from opbound.output import Output
    from reports import Report
    from reports.view import View

EXIT_OK = 0
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter gets an escape, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        # Warnings of the libraries underneath are not the user's business.
        warnings.simplefilter("ignore")
    try:
        code = _run(argv)
        sys.stdout.flush()
    except OpboundError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader (head, a pager) has seen enough. Nothing may be flushed to it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        _fail("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        # A fault of opbound itself is told in one line too; who reports it needs the traceback.
        if os.environ.get("OPBOUND_DEBUG"):
            raise
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return _fail("not enough memory for these sizes: give a smaller batch, sequence or dim")
        return _fail(
            f"internal error: {type(error).__name__}: {error}; set OPBOUND_DEBUG=1 to see where, "
            "and report it with the model"
        )
    return code


def _run(argv: Sequence[str] | None) -> int:
    from opbound.arguments import build_parser

    arguments = build_parser().parse_args(argv)
    if arguments.command == "analyze":
        return _analyze(arguments)
    if arguments.command == "graph":
        return _graph(arguments)
    if arguments.command == "annotate":
        return _annotate(arguments)
    if arguments.command == "hardware":
        return _hardware(arguments)
    if arguments.command == "validate":
        return _validate(arguments)
    if arguments.command is not None:
        return int(arguments.run(arguments))
    raise OpboundError("say what to do: `opbound analyze MODEL`, `opbound hardware` or --help")


@no_collection()
def _analyze(arguments: argparse.Namespace) -> int:
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
        _write(report, view, arguments, output)
    return EXIT_OK


def _write(report: Report, view: View, arguments: argparse.Namespace, output: Output) -> None:
    if arguments.format == "json":
        output.write(report.to_json())
    elif arguments.format == "csv":
        output.write(report.to_csv(view=view))
    elif arguments.format == "markdown":
        output.write(report.to_markdown(view=view))
    elif arguments.format == "html":
        output.write(report.to_html())
    elif arguments.format == "trace":
        output.write(report.to_trace())
    elif output.is_terminal:
        output.show_table(report, view)
    else:
        output.write(report.to_text(view=view))


def _graph(arguments: argparse.Namespace) -> int:
    from opbound.arguments import options_of
    from opbound.output import Output
    from opbound.progress import progress

    options = options_of(arguments)
    with Output(arguments.output) as output:
        from opbound.graph_page import graph_page

        with progress() as say:
            page = graph_page(
                arguments.model, options, every_node=arguments.every_node, progress=say
            )
        output.write(page)
    return EXIT_OK


def _annotate(arguments: argparse.Namespace) -> int:
    from opbound.arguments import options_of
    from opbound.output import Output
    from opbound.progress import progress

    options = options_of(arguments)
    with Output(arguments.output) as output:
        from opbound.annotate import annotate

        with progress() as say:
            annotate(arguments.model, options, output, arguments.output, say)
    return EXIT_OK


def _hardware(arguments: argparse.Namespace) -> int:
    from opbound.hardware_page import list_devices, show_device
    from opbound.hardware_scaling import only_for_scaling, scale

    if arguments.name == "scale":
        scale(arguments)
        return EXIT_OK
    only_for_scaling(arguments)
    sys.stdout.write(show_device(arguments.name) if arguments.name else list_devices())
    return EXIT_OK


def _validate(arguments: argparse.Namespace) -> int:
    from opbound.output import Output
    from opbound.progress import progress
    from opbound.validate_command import validate

    with Output(arguments.output) as output, progress() as say:
        output.write(validate(arguments.format, say))
    return EXIT_OK


def _fail(message: str) -> int:
    from reports.quantities import plain_text

    line = " ".join(message.split("\n"))
    sys.stderr.write(f"opbound: error: {plain_text(line, limit=2000)}\n")
    return EXIT_WRONG_INPUT
