"""`opbound doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib import metadata

from opbound.parser import Parser

# Distribution -> (what it is for, how to get it; None where opbound itself requires it).
PARTS: dict[str, tuple[str, str | None]] = {
    "numpy": ("numbers", None),
    "networkx": ("graphs", None),
    "onnx": ("ONNX files", None),
    "tabulate": ("tables", None),
    "rich": ("colours and progress", None),
    "PyYAML": ("hardware files", None),
    "rapidfuzz": ("opbound diff", None),
    "torch": ("PyTorch modules, exported programs, hf:", "opbound[torch]"),
    "transformers": ("hf: architectures", "opbound[hf]"),
    "diffusers": ("diffusion models", "opbound[diffusion]"),
    "matplotlib": ("opbound plot", "opbound[plot]"),
    "pandas": ("report.to_dataframe()", "opbound[dataframe]"),
    "shtab": ("opbound completion", "opbound[completion]"),
    "onnxruntime": ("opbound measure of ONNX files", "onnxruntime"),
}


def add(commands: argparse._SubParsersAction[Parser]) -> Parser:
    """Adds the command to the parser."""
    parser: Parser = commands.add_parser(
        "doctor",
        help="versions, optional parts, what is missing",
        description="Says which versions are installed, which optional parts are missing and how to "
        "get them, and whether every shipped hardware file can be read. Exit code 1 if something that "
        "opbound needs is missing.",
        allow_abbrev=False,
    )
    from opbound import output_arguments

    output_arguments.add_format(parser, ("table", "json"))
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Looks, prints, and returns 1 if a required part is missing."""
    from opbound._version import __version__

    found = {name: _version(name) for name in PARTS}
    broken = _broken_hardware()
    missing = [name for name, (_, extra) in PARTS.items() if extra is None and found[name] is None]
    if arguments.format == "json":
        plain = {
            "opbound": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "parts": found,
            "broken_hardware_files": broken,
        }
        sys.stdout.write(json.dumps(plain, indent=2) + "\n")
    else:
        sys.stdout.write(_text(__version__, found, broken))
    return 1 if missing or broken else 0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _broken_hardware() -> dict[str, str]:
    from costing.hardware_file import list_hardware, load_hardware
    from graph_ir.errors import OpboundError

    broken = {}
    for name in list_hardware():
        try:
            load_hardware(name)
        except OpboundError as error:
            broken[name] = str(error)
    return broken


def _text(version: str, found: dict[str, str | None], broken: dict[str, str]) -> str:
    from reports.layout import Cells
    from reports.table import text_table

    rows = []
    for name, (purpose, extra) in PARTS.items():
        state = found[name] or ("MISSING" if extra is None else "not installed")
        hint = "" if found[name] else f"pip install '{extra or name}'"
        rows.append([name, state, purpose, hint])
    head = f"opbound {version}, Python {platform.python_version()}, {platform.platform()}"
    table = text_table(Cells(["part", "version", "for", ""], [False] * 4, rows))
    files = [f"hardware file {name}: {why}" for name, why in broken.items()]
    verdict = files or ["all shipped hardware files can be read"]
    return "\n".join([head, "", table, "", *verdict]) + "\n"
