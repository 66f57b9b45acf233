"""`opbound calibrate`: a hardware file of the device at hand, measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from opbound.parser import Parser

if TYPE_CHECKING:
    from opbound.device.target import Target

_EXAMPLES = """\
examples:
  opbound calibrate --device cpu -o my-device.yaml
  opbound calibrate --device cuda:0 -o my-gpu.yaml
  opbound analyze hf:bert-base --hardware my-device.yaml
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    parser: Parser = commands.add_parser(
        "calibrate",
        help="measure this machine's CPU or GPU and write its hardware file",
        description="Measures products of every dtype, copies of growing size, elementwise functions, "
        "launches, and collectives where there are several GPUs; writes a hardware file in which the "
        "source of every figure is its measurement. Takes a minute to five; end other work first.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_target(parser)
    parser.add_argument("--quick", action="store_true", help="seconds, with coarser figures")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the hardware file (.yaml) to write"
    )
    return parser


def add_target(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which device is measured."""
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda:N", help="default: cpu")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="that a CPU computes with (default: torch's own)"
    )


def target_of(arguments: argparse.Namespace) -> Target:
    """The device that the arguments name.

    Raises:
        OpboundError: if there is none.
    """
    from opbound.device.target import busy_note, open_target

    if arguments.threads is not None and arguments.threads < 1:
        raise OpboundError(f"--threads {arguments.threads}: give 1 or more")
    target = open_target(arguments.device, arguments.threads)
    note = busy_note(target)
    if note is not None:
        sys.stderr.write(f"opbound: note: {note}\n")
    return target


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes, and returns 0."""
    from opbound.device.calibration import calibrate
    from opbound.output import Output
    from opbound.progress import progress

    path = Path(arguments.output)
    if path.suffix not in (".yaml", ".yml"):
        raise OpboundError(f"-o {arguments.output}: a hardware file's name ends in .yaml")
    with Output(arguments.output) as output, progress() as say:
        output.write(calibrate(target_of(arguments), path.stem, say, quick=arguments.quick))
    return 0
