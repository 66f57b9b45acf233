"""`opbound measure`: a model run on the device at hand, predicted beside measured."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_ir.errors import OpboundError
from opbound.commands.calibrate import add_target, target_of
from opbound.parser import Parser

if TYPE_CHECKING:
    from collections.abc import Callable

    from costing.hardware import Hardware
    from importers import ImportedModel
    from opbound.device.target import Target

_ONNX = (".onnx", ".onnxtxt", ".pb")
_EXAMPLES = """\
examples:
  opbound measure model.onnx --device cpu --hardware my-device.yaml
  opbound measure my_package.models:build --backward --hardware my-device.yaml
  opbound measure hf:bert-base --dtype fp32 --device cuda:0 --hardware my-gpu.yaml --format json
"""


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    from opbound.arguments import add_sizes
    from opbound.output_arguments import add_file

    parser: Parser = commands.add_parser(
        "measure",
        help="run a model here and compare every operator with its prediction",
        description="Runs a model on this machine, operator by operator (torch.profiler; for ONNX files "
        "onnxruntime's) and as a whole, and prints predicted beside measured. Weights without contents "
        "get random ones.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="an ONNX file, hf:NAME, or package.module:factory"
    )
    add_target(parser)
    parser.add_argument(
        "--hardware",
        metavar="NAME|FILE",
        help="what predicts (default: the device is calibrated quickly first)",
    )
    parser.add_argument(
        "--backward", action="store_true", help="measure the backward pass too (torch models)"
    )
    parser.add_argument(
        "--repeats", type=int, default=10, metavar="N", help="profiled runs (default: %(default)s)"
    )
    add_sizes(parser, generation=False)
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=("table", "json"), default="table")
    group.add_argument(
        "--top", type=int, default=30, metavar="N", help="rows of the table (default: %(default)s)"
    )
    add_file(group)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Imports, runs, compares, prints, and returns 0."""
    from opbound.device.comparison import compare
    from opbound.device.comparison_page import comparison_plain, comparison_text
    from opbound.output import Output
    from opbound.progress import progress

    if arguments.repeats < 1 or arguments.top < 1:
        raise OpboundError("--repeats and --top are counts: give 1 or more")
    onnx = Path(arguments.model).suffix in _ONNX
    if onnx and arguments.backward:
        raise OpboundError(
            "--backward needs a torch model: onnxruntime runs ONNX files forward only"
        )
    if arguments.dtype and not arguments.model.startswith("hf:"):
        raise OpboundError(
            "--dtype: a model is measured in its own dtype; only hf: is built in another"
        )
    with Output(arguments.output) as output, progress() as say:
        target = target_of(arguments)
        imported = _imported(arguments, keep=not onnx)
        hardware = _hardware(arguments, target, say)
        measured = _run(arguments, imported, target, onnx, say)
        say("comparing")
        found = compare(
            imported.graph, imported.made, hardware, measured, backward=arguments.backward
        )
        about = _about(imported, target, hardware)
        if arguments.format == "json":
            output.write(comparison_plain(found, about))
        else:
            output.write(comparison_text(found, about, arguments.top))
    return 0


def _imported(arguments: argparse.Namespace, *, keep: bool) -> ImportedModel:
    from importers import load
    from opbound.model_answers import answers_of
    from opbound.options import parse_dim

    answers: Any = answers_of(arguments)
    return load(
        arguments.model,
        batch=arguments.batch,
        sequence=arguments.sequence,
        dims=dict(map(parse_dim, arguments.dim)),
        dtype=arguments.dtype,
        mode="training" if arguments.backward else "inference",
        allow_unknown=True,
        keep_program=keep,
        **answers,
    )


def _hardware(
    arguments: argparse.Namespace, target: Target, say: Callable[[str], None]
) -> Hardware:
    from costing.hardware_file import load_hardware

    if arguments.hardware is not None:
        return load_hardware(arguments.hardware)
    from opbound.device.calibration import calibrate

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "this-device.yaml"
        path.write_text(calibrate(target, path.stem, say, quick=True), encoding="utf-8")
        return load_hardware(str(path))


def _run(
    arguments: argparse.Namespace,
    imported: ImportedModel,
    target: Target,
    onnx: bool,
    say: Callable[[str], None],
) -> Any:
    if onnx:
        from opbound.device.onnx_run import run_onnx

        say("running the file in onnxruntime")
        shapes = {v.name: v.type.shape for v in imported.graph.inputs if v.kind == "input"}
        return run_onnx(Path(arguments.model), shapes, target, repeats=arguments.repeats)
    from opbound.device.torch_run import run_program

    return run_program(
        imported.program,
        target,
        backward=arguments.backward,
        repeats=arguments.repeats,
        progress=say,
    )


def _about(imported: ImportedModel, target: Target, hardware: Hardware) -> dict[str, Any]:
    return {
        "model": imported.name,
        "source": imported.source,
        "measured": target.origin.removeprefix("opbound calibrate "),
        "hardware": hardware.name,
        "importer": imported.importer,
    }
