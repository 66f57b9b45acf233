"""The errors a user can cause.

Every error that reaches a user is an `OpboundError` whose message is one line: what is wrong, where,
and what to do about it. The command line prints that line and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class OpboundError(Exception):
    """Base of all errors that the user's input can cause."""


class UnknownOperatorError(OpboundError):
    """An operator of the model has no record in `graph_ir.ops`."""


class ModelFileError(OpboundError):
    """A model file is missing, broken, or of a kind that opbound does not read."""


class DimensionError(OpboundError):
    """A dynamic dim is unbound, or a given dim does not exist in the model."""


class HardwareError(OpboundError):
    """A hardware file is missing or has a wrong key, unit or value."""


class MeshError(OpboundError):
    """A mesh or a strategy cannot be applied to this graph."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns 'did you mean X?' for the closest known word, else the known words.

    >>> did_you_mean("h100", ["h100-sxm-80gb", "b200"])
    "did you mean 'h100-sxm-80gb'?"
    """
    names = sorted(known)
    # The beginning of a long name is closer to it than another word of the same length.
    begun = sorted((n for n in names if len(word) > 1 and n.startswith(word)), key=len)
    close = begun or get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
