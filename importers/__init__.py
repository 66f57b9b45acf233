"""Model frontends: a model file, configuration or module goes in, an operator graph comes out.

`load` only chooses the frontend. Each frontend imports its library (onnx, torch, transformers)
inside its own functions, so loading an ONNX file never pays for torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from graph_ir.errors import OpboundError
from importers.imported_model import MODES, ImportedModel, ImportOptions

__all__ = ["ImportOptions", "ImportedModel", "load"]

_ONNX_SUFFIXES = (".onnx", ".onnxtxt", ".ort", ".pb")
_MODEL_FORMS = (
    "give the path of an .onnx or .pt2 file, hf:NAME, diffusers:NAME or package.module:factory"
)


def load(
    model: object,
    *,
    batch: int | None = None,
    sequence: int | None = None,
    dims: Mapping[str, int] | None = None,
    trip_counts: Mapping[str, int] | None = None,
    branches: Mapping[str, str] | None = None,
    values: Mapping[str, Sequence[float]] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    dtype: str | None = None,
    mode: str = "inference",
    past_tokens: int | None = None,
    allow_unknown: bool = False,
    example_inputs: object = None,
    keep_program: bool = False,
) -> ImportedModel:
    """Imports `model` into an operator graph.

    Args:
        model: path of an ONNX file or of a `.pt2` exported program, `hf:NAME`,
            `diffusers:NAME`, `package.module:factory`, or a live torch.nn.Module or ExportedProgram.
        batch: global batch size; None keeps the model's own.
        sequence: tokens per sample; None keeps the model's own.
        dims: sizes of named dynamic dims.
        trip_counts: how often loops run whose end the data decides, by name (ONNX only, as the
            next three).
        branches: "then" or "else" for each If by name; without it the dearer branch counts.
        values: elements of tensors on which shapes depend, by name.
        input_shapes: shapes of inputs by name.
        dtype: replaces the model's floating-point dtypes, for example "bf16".
        mode: one of `MODES`.
        past_tokens: with mode "decode", tokens already in the KV cache.
        allow_unknown: keep operators without a record as `unknown` nodes.
        example_inputs: arguments to trace a live module with (a tuple, or a mapping of keyword
            arguments).
        keep_program: hand out the traced program of a torch model too.

    Raises:
        OpboundError: the model cannot be found, read or expressed; the message says what, where,
            what to do.
    """
    if mode not in MODES:
        raise OpboundError(f"unknown import mode {mode!r}: use one of {', '.join(MODES)}")
    for name, value in {
        "batch": batch,
        "sequence": sequence,
        "past_tokens": past_tokens,
        **(dims or {}),
    }.items():
        if value is not None and value < (0 if name == "past_tokens" else 1):
            raise OpboundError(f"{name}={value} is not a size: give a positive whole number")
    options = ImportOptions(
        batch=batch,
        sequence=sequence,
        dims=MappingProxyType(dict(dims or {})),
        trip_counts=MappingProxyType(dict(trip_counts or {})),
        branches=MappingProxyType(dict(branches or {})),
        values=MappingProxyType(dict(values or {})),
        input_shapes=MappingProxyType(dict(input_shapes or {})),
        dtype=dtype,
        mode=mode,
        past_tokens=past_tokens,
        allow_unknown=allow_unknown,
        keep_program=keep_program,
    )
    _check_answers(options)
    if not isinstance(model, str | Path):
        _only_onnx(options)
        from importers.torch_importer import import_torch

        return import_torch(model, options, example_inputs=example_inputs)
    text = str(model)
    if not text:
        raise OpboundError(f"the model's name is empty: {_MODEL_FORMS}")
    if text.startswith("hf:"):
        _only_onnx(options)
        if text == "hf:":
            raise OpboundError("hf: lacks a name: write hf:NAME or hf:path/to/config.json")
        if options.dims:
            raise OpboundError(
                f"{text} has no named dims ({', '.join(options.dims)}): give --batch and --sequence"
            )
        from importers.huggingface import import_huggingface

        return import_huggingface(text.removeprefix("hf:"), options)
    if text.startswith("diffusers:"):
        _only_onnx(options)
        if text == "diffusers:":
            raise OpboundError(
                "diffusers: lacks a name: write diffusers:NAME or diffusers:config.json"
            )
        from importers.diffusion import import_diffusion

        return import_diffusion(text.removeprefix("diffusers:"), options)
    path = Path(text)
    if path.suffix == ".pt2" or (
        ":" in text and not path.exists() and path.suffix not in _ONNX_SUFFIXES
    ):
        _only_onnx(options)
        from importers.torch_importer import import_torch

        return import_torch(
            path if path.suffix == ".pt2" else text, options, example_inputs=example_inputs
        )
    if path.suffix in _ONNX_SUFFIXES or path.exists():
        from importers.onnx_importer import import_onnx

        return import_onnx(path, options)
    raise OpboundError(f"cannot find model {text!r}: {_MODEL_FORMS}")


def _check_answers(options: ImportOptions) -> None:
    """Raises OpboundError for answers that fit no model."""
    for name, trips in options.trip_counts.items():
        if isinstance(trips, bool) or not isinstance(trips, int) or trips < 0:
            raise OpboundError(f"trip count {name}={trips!r} is no count: give 0 or more")
    for name, branch in options.branches.items():
        if branch not in ("then", "else"):
            raise OpboundError(f"branch {name}={branch!r} does not exist: use then or else")
    for name, shape in options.input_shapes.items():
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
            raise OpboundError(f"input {name}={shape!r} is no shape: give positive whole numbers")


def _only_onnx(options: ImportOptions) -> None:
    """Raises OpboundError for answers that only an ONNX model asks for."""
    given = {
        "--trip-count": options.trip_counts,
        "--branch": options.branches,
        "--value": options.values,
        "--input": options.input_shapes,
    }
    for option, answers in given.items():
        if answers:
            raise OpboundError(f"{option} applies to ONNX models only: leave it out")
