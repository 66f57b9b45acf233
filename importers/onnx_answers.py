"""What the user says about a model where the file leaves it to the data.

How often a loop runs, which branch an If takes, what an input holds, which shape an input has. Every answer
must be used: one that names nothing in the model is an error that lists what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graph_ir.errors import DimensionError, did_you_mean
from importers.onnx_values import numpy_dtype

if TYPE_CHECKING:
    from graph_ir.tensor_type import TensorType
    from importers.imported_model import ImportOptions
    from importers.onnx_values import Array

_MAX_LISTED = 10

TRIP_COUNT, BRANCH, VALUE, INPUT = "--trip-count", "--branch", "--value", "--input"
_WHAT: Mapping[str, str] = {
    TRIP_COUNT: "loop whose number of trips the data decides",
    BRANCH: "If",
    VALUE: "input or result",
    INPUT: "input",
}


class Answers:
    """The user's answers by option and name, and which of them were asked for."""

    def __init__(self, options: ImportOptions) -> None:
        self._given: dict[str, Mapping[str, Any]] = {
            TRIP_COUNT: options.trip_counts,
            BRANCH: options.branches,
            VALUE: options.values,
            INPUT: options.input_shapes,
        }
        self._met: dict[str, set[str]] = {option: set() for option in self._given}

    def trip_count(self, *names: str) -> int | None:
        """How often a loop runs, or None; `names` are all that it may be called by."""
        found = self._find(TRIP_COUNT, names)
        return None if found is None else int(found)

    def branch(self, *names: str) -> str | None:
        """The branch of an If that counts: "then", "else" or None."""
        return self._find(BRANCH, names)  # type: ignore[no-any-return]

    def input_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an input, or None."""
        found = self._find(INPUT, (name,))
        return None if found is None else tuple(found)

    def contents(self, type_: TensorType, *names: str) -> Array | None:
        """The elements of a tensor as an array of its type, or None.

        Raises:
            DimensionError: they are of another number than the tensor's.
        """
        found = self._find(VALUE, names)
        if found is None:
            return None
        import numpy as np

        numbers: Sequence[float] = tuple(found)
        if len(numbers) != type_.elements:
            raise DimensionError(
                f"{VALUE} {names[0]}: {len(numbers)} numbers are given where its shape "
                f"{list(type_.shape)} has {type_.elements}"
            )
        return np.asarray(numbers, numpy_dtype(type_.dtype)).reshape(type_.shape)

    def check_all_used(self) -> None:
        """Raises a DimensionError if an answer names nothing in the model."""
        for option, given in self._given.items():
            for name in given:
                met = self._met[option]
                if name not in met:
                    raise DimensionError(
                        f"{option} {name}: the model has no {_WHAT[option]} of that name; {_hint(name, met)}"
                    )

    def _find(self, option: str, names: Sequence[str]) -> Any:
        given = self._given[option]
        if not given and option == VALUE:
            return None  # asked for every result of a large model
        self._met[option].update(names)
        return next((given[name] for name in names if name in given), None)


def _hint(name: str, known: set[str]) -> str:
    if not known:
        return "it has none at all"
    hint = did_you_mean(name, known)
    if not hint.startswith("known") or len(known) <= _MAX_LISTED:
        return hint
    return f"known: {', '.join(sorted(known)[:_MAX_LISTED])} and {len(known) - _MAX_LISTED} more"
