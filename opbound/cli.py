"""The command line. Exit code 0: fine; 1: a gate failed; 2: wrong input, told in one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from graph_ir.errors import OpboundError

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
    from opbound.commands import build_parser

    arguments = build_parser().parse_args(argv)
    if arguments.command is None:
        raise OpboundError("say what to do: `opbound analyze MODEL`, `opbound hardware` or --help")
    return int(arguments.run(arguments))


def _fail(message: str) -> int:
    from reports.quantities import plain_text

    line = " ".join(message.split("\n"))
    sys.stderr.write(f"opbound: error: {plain_text(line, limit=2000)}\n")
    return EXIT_WRONG_INPUT
