"""What --help says below the options: examples, exit codes, environment."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

_EXAMPLES = {
    "graph": """\
examples:
  opbound graph model.onnx
  opbound graph hf:llama-3.1-8b --parallel tp=8 --dtype bf16 -o graph.txt
""",
    "annotate": """\
examples:
  opbound annotate model.onnx --hardware h100-sxm-80gb --batch 8 -o priced.onnx
""",
    "validate": """\
examples:
  opbound validate
  opbound validate --format markdown -o accuracy.md
""",
    "doctor": """\
examples:
  opbound doctor
  opbound doctor --json

exit code: 0 all is there, 1 something that opbound needs is missing, 2 trouble
""",
}

_EXIT_CODES = "exit code: 0 done, 2 trouble, told in one line; nothing is written then\n"

_ENVIRONMENT = """\
exit codes:
  0  done; of diff: the same work; of check: every rule holds
  1  diff: the work differs; check: a rule is broken; doctor: something is missing
  2  trouble, told in one line on standard error; no file is written
  130  interrupted

environment:
  NO_COLOR       no colours in the terminal
  COLUMNS        width of tables, where the terminal does not say
  OPBOUND_DEBUG  show where a fault of opbound itself happened
"""


def complete_help(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]
) -> None:
    """Gives every command examples and exit codes, where its own file does not say them."""
    parser.epilog = "\n".join(filter(None, (parser.epilog, _ENVIRONMENT)))
    for name, command in commands.items():
        text = command.epilog or _EXAMPLES.get(name, "")
        if "exit code" not in text:
            text = "\n".join(filter(None, (text, _EXIT_CODES)))
        command.epilog = text
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.description = _wrapped(command.description or "")


def _wrapped(text: str) -> str:
    """The formatter keeps lines as they are, so that examples stay: paragraphs are wrapped here."""
    if "\n" in text:
        return text
    from textwrap import fill

    return fill(text, width=100)
