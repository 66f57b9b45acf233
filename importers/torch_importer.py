"""PyTorch models: live modules, `package.module:factory`, and `.pt2` exported programs."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graph_ir.errors import DimensionError, OpboundError
from importers.imported_model import ImportedModel, ImportOptions
from importers.torch_call import InputHint


def import_torch(
    model: object, options: ImportOptions, *, example_inputs: object = None
) -> ImportedModel:
    """Imports a PyTorch model.

    Args:
        model: a torch.nn.Module, a torch.export.ExportedProgram, the path of a `.pt2` file, or the text
            `package.module:factory`, whose factory is called without arguments and returns a module or a
            pair (module, example inputs).
        options: sizes, dtype and mode.
        example_inputs: a tuple of arguments or a mapping of keyword arguments for a module; only their
            shapes and dtypes count. A module may also carry them as its attribute `example_inputs`.

    Raises:
        OpboundError: the model cannot be found, traced or expressed.
    """
    torch = _torch()
    importer = f"torch.export {torch.__version__}"
    if isinstance(model, Path):
        from importers.torch_archive import load_archive

        program, digest = load_archive(torch, model)
        return _import_program(torch, program, options, model.stem, str(model), digest, importer)
    source, name = "", ""
    if isinstance(model, str):
        source, name = model, model.rpartition(":")[2]
        model, given = _call_factory(model)
        example_inputs = given if example_inputs is None else example_inputs
    if isinstance(model, torch.export.ExportedProgram):
        digest = _hash(str(model.graph_module.code))
        return _import_program(
            torch, model, options, name or "program", source or "live", digest, importer
        )
    if not isinstance(model, torch.nn.Module):
        what = f"factory {source!r} returned" if source else "cannot import"
        raise OpboundError(
            f"{what} a {type(model).__name__}: give a torch.nn.Module, an ExportedProgram, or the path of "
            f"an .onnx or .pt2 file"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise OpboundError(
            "a TorchScript module cannot be traced: give the torch.nn.Module that it was made from"
        )
    name = name or type(model).__name__
    if example_inputs is None:
        example_inputs = getattr(model, "example_inputs", None)
    return _import_module(torch, model, example_inputs, options, name, source or f"live {name}")


def _import_module(
    torch: Any,
    module: Any,
    example: Any,
    options: ImportOptions,
    name: str,
    source: str,
) -> ImportedModel:
    """Traces a live module with resized example inputs, without computing with its weights."""
    from importers.torch_routes import import_module

    if example is None:
        raise OpboundError(
            f"{name} needs example inputs to be traced: give example_inputs=(tensor, ...), set the module's "
            f"attribute example_inputs, or let the factory return (module, inputs)"
        )
    if options.mode in ("prefill", "decode"):
        raise OpboundError(
            f"generation needs a model whose KV cache opbound knows: use hf:NAME; {name} is a plain module"
        )
    if options.dims:
        raise DimensionError(
            f"{name} has no named dims ({', '.join(options.dims)}): resize its example inputs"
        )
    args, kwargs = _arguments(torch, example)
    hints = _resize_hints(torch, args, kwargs, options, name)
    args, kwargs = _resized(torch, (args, kwargs), hints)
    modes = {m: m.training for m in module.modules()}
    module.train(options.mode == "training")
    try:
        return import_module(
            module,
            args,
            kwargs,
            options,
            inputs=lambda program: _named_hints(program, hints),
            name=name,
            source=source,
            sha256=_hash(str(module)),
        )
    finally:
        for part, training in modes.items():
            part.training = training


def _arguments(torch: Any, example: Any) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(example, torch.Tensor):
        return [example], {}
    if isinstance(example, Mapping):
        return [], dict(example)
    if isinstance(example, Sequence) and not isinstance(example, str):
        return list(example), {}
    raise OpboundError(
        f"example inputs must be a tensor, a tuple of arguments or a mapping of keyword arguments, not a "
        f"{type(example).__name__}"
    )


def _resize_hints(
    torch: Any, args: list[Any], kwargs: dict[str, Any], options: ImportOptions, name: str
) -> dict[tuple[int, ...], tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """New shape and dim names for each shape among the inputs.

    The batch is the first dim, if all tensors share it; the sequence the second dim of integer tensors of
    rank 2 (token numbers).
    """
    tensors = [
        t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
    ]
    leading = {t.shape[0] for t in tensors if t.ndim}
    tokens = {t.shape[1] for t in tensors if t.ndim == 2 and not t.is_floating_point()}
    if options.batch is not None and len(leading) != 1:
        raise DimensionError(
            f"the example inputs of {name} share no first dim: resize them to the batch yourself"
        )
    if options.sequence is not None and len(tokens) != 1:
        raise DimensionError(
            f"the example inputs of {name} have no sequence dim: resize them yourself"
        )
    found: dict[tuple[int, ...], tuple[tuple[int, ...], tuple[str | None, ...]]] = {}
    for tensor in tensors:
        shape = list(tensor.shape)
        dims: list[str | None] = [None] * tensor.ndim
        if tensor.ndim and len(leading) == 1:
            shape[0] = options.batch or shape[0]
            dims[0] = "batch"
        if tensor.ndim == 2 and not tensor.is_floating_point() and len(tokens) == 1:
            shape[1] = options.sequence or shape[1]
            dims[1] = "sequence"
        found[tuple(tensor.shape)] = (tuple(shape), tuple(dims))
    return found


def _resized(torch: Any, tree: Any, hints: Mapping[Any, Any]) -> Any:
    """The inputs in their new shapes, their contents repeated: a module may look at token numbers."""

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        for axis, (old, new) in enumerate(
            zip(leaf.shape, hints[tuple(leaf.shape)][0], strict=True)
        ):
            if old != new and old:
                leaf = leaf.index_select(axis, torch.arange(new, device=leaf.device) % old)
        return leaf

    return torch.utils._pytree.tree_map(resize, tree)


def _named_hints(program: Any, hints: Mapping[Any, Any]) -> dict[str, InputHint]:
    dims = dict(hints.values())
    named = {}
    for node in program.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", None)
        if node.op == "placeholder" and shape is not None and tuple(shape) in dims:
            named[node.name] = InputHint(dims[tuple(shape)])
    return named


def _import_program(
    torch: Any,
    program: Any,
    options: ImportOptions,
    name: str,
    source: str,
    digest: str,
    importer: str,
) -> ImportedModel:
    from importers.torch_dynamic import with_bound_dims
    from importers.torch_export import import_program

    if options.mode in ("prefill", "decode"):
        raise OpboundError(
            f"generation needs a model whose KV cache opbound knows: use hf:NAME; {name} is a program"
        )
    program, hints, notes = with_bound_dims(torch, program, options, name)
    if options.mode == "training":
        notes.append("dropout and norms behave as in the mode that the program was exported in")
    return import_program(
        program,
        options,
        name=name,
        source=source,
        sha256=digest,
        importer=importer,
        inputs=hints,
        notes=notes,
    )


def _call_factory(text: str) -> tuple[Any, Any]:
    """Imports and calls `package.module:factory`: this runs the user's code."""
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise OpboundError(f"{text!r} is not package.module:factory: one half is empty")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise OpboundError(f"cannot import {module_name!r} for model {text!r}: {error}") from error
    except AttributeError as error:
        raise OpboundError(
            f"module {module_name!r} has no {attribute!r} (model {text!r})"
        ) from error
    except (Exception, SystemExit) as error:  # the user's own code may raise anything, also here
        raise OpboundError(
            f"importing {module_name!r} for model {text!r} failed: {type(error).__name__}: {error}"
        ) from error
    is_module = hasattr(found, "parameters") and not isinstance(found, type)
    try:
        made = found if is_module or not callable(found) else found()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise OpboundError(f"factory {text!r} failed: {type(error).__name__}: {error}") from error
    if isinstance(made, tuple) and len(made) == 2:
        return made
    return made, None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _torch() -> Any:
    try:
        import torch
        import torch.export
    except ImportError as error:
        raise OpboundError("PyTorch models need torch: pip install 'opbound[torch]'") from error
    return torch
