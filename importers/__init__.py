"""Model frontends: a model file, configuration or module goes in, an operator graph comes out.

`load` only chooses the frontend. Each frontend imports its library (onnx, torch, transformers)
inside its own functions, so loading an ONNX file never pays for torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from graph_ir.errors import OpboundError
from importers.imported_model import MODES, ImportedModel, ImportOptions

__all__ = ["ImportOptions", "ImportedModel", "load"]

_ONNX_SUFFIXES = (".onnx", ".onnxtxt", ".ort", ".pb")


def load(
    model: object,
    *,
    batch: int | None = None,
    sequence: int | None = None,
    dims: Mapping[str, int] | None = None,
    dtype: str | None = None,
    mode: str = "inference",
    past_tokens: int | None = None,
    allow_unknown: bool = False,
    example_inputs: object = None,
) -> ImportedModel:
    """Imports `model` into an operator graph.

    Args:
        model: path of an ONNX file or of a `.pt2` exported program, `hf:NAME`,
            `package.module:factory`, or a live torch.nn.Module or ExportedProgram.
        batch: global batch size; None keeps the model's own.
        sequence: tokens per sample; None keeps the model's own.
        dims: sizes of named dynamic dims.
        dtype: replaces the model's floating-point dtypes, for example "bf16".
        mode: one of `MODES`.
        past_tokens: with mode "decode", tokens already in the KV cache.
        allow_unknown: keep operators without a record as `unknown` nodes.
        example_inputs: arguments to trace a live module with (a tuple, or a mapping of keyword
            arguments).

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
        dtype=dtype,
        mode=mode,
        past_tokens=past_tokens,
        allow_unknown=allow_unknown,
    )
    if not isinstance(model, str | Path):
        from importers.torch_importer import import_torch

        return import_torch(model, options, example_inputs=example_inputs)
    text = str(model)
    if text.startswith("hf:"):
        from importers.huggingface import import_huggingface

        return import_huggingface(text.removeprefix("hf:"), options)
    path = Path(text)
    if path.suffix == ".pt2" or (
        ":" in text and not path.exists() and path.suffix not in _ONNX_SUFFIXES
    ):
        from importers.torch_importer import import_torch

        return import_torch(
            path if path.suffix == ".pt2" else text, options, example_inputs=example_inputs
        )
    if path.suffix in _ONNX_SUFFIXES or path.exists():
        from importers.onnx_importer import import_onnx

        return import_onnx(path, options)
    raise OpboundError(
        f"cannot find model {text!r}: give the path of an .onnx or .pt2 file, hf:NAME, "
        "or package.module:factory"
    )
