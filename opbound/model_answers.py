"""Options that settle what an ONNX file leaves to its data: trips of loops, branches, contents, shapes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from graph_ir.errors import OpboundError

MAX_TRIPS = 1_000_000_000


def add_answer_options(group: argparse._ArgumentGroup) -> None:
    """Adds --trip-count, --branch, --value and --input to a group of options."""
    for option, metavar, text in (
        ("--trip-count", "NAME=N", "how often a loop runs, where the data decides it"),
        ("--branch", "NAME=then|else", "which branch of an If counts (without it: the dearer one)"),
        ("--value", "NAME=1,2,3", "what a tensor holds, where a shape depends on it"),
        ("--input", "NAME=SHAPE", "shape of an input, as 1x3x224x224"),
    ):
        group.add_argument(
            option, action="append", default=[], metavar=metavar, help=f"{text}; may be repeated"
        )


def answers_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The answers, under the names that `Options` has for them.

    Raises:
        OpboundError: one has another form than its option's, or contradicts another one.
    """
    return {
        "trip_counts": _read("--trip-count", "NAME=N", arguments.trip_count, _trips),
        "branches": _read("--branch", "NAME=then or NAME=else", arguments.branch, _branch),
        "values": _read("--value", "NAME=1,2,3", arguments.value, _numbers),
        "input_shapes": _read("--input", "NAME=1x3x224x224", arguments.input, _shape),
    }


def _read(
    option: str, form: str, texts: Sequence[str], parse: Callable[[str], object]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        # Names of values may hold an equals sign, answers do not.
        name, equals, answer = (piece.strip() for piece in text.rpartition("="))
        try:
            parsed = parse(answer)
        except ValueError:
            parsed = None
        if not name or not equals or parsed is None:
            raise OpboundError(f"{option} {text!r} is not {form}")
        if found.setdefault(name, parsed) != parsed:
            raise OpboundError(f"{option} {name} is given twice, with different answers")
    return found


def _trips(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,10}", text) and int(text) <= MAX_TRIPS else None


def _branch(text: str) -> str | None:
    return text if text in ("then", "else") else None


def _shape(text: str) -> tuple[int, ...] | None:
    sizes = tuple(int(piece) for piece in re.split(r"[x,]", text.strip("[]() ")))
    return sizes if all(n > 0 for n in sizes) else None


def _numbers(text: str) -> tuple[float, ...]:
    """Whole numbers stay whole: sizes over 2^53 would lose digits as floats."""
    words = {"true": 1, "false": 0}
    pieces = [piece.strip().lower() for piece in text.strip("[]() ").split(",")]
    return tuple(
        words[p] if p in words else int(p) if re.fullmatch(r"[-+]?\d+", p) else float(p)
        for p in pieces
    )
