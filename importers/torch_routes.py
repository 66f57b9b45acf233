"""The ways from a module to an operator graph, best first: torch.export, then a run-time trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from graph_ir.errors import OpboundError
from importers.imported_model import ImportedModel, ImportOptions
from importers.torch_call import InputHint
from importers.torch_export import export_module, import_program
from importers.torch_runtime_trace import trace_at_run_time

_KEPT_ELEMENTS = 1 << 20
"""Buffers up to this size keep their contents in a run-time trace: a model may look at them."""


def import_module(
    module: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: ImportOptions,
    *,
    inputs: Mapping[str, InputHint] | Callable[[Any], Mapping[str, InputHint]],
    importer: str = "",
    notes: Sequence[str] = (),
    **about: Any,
) -> ImportedModel:
    """Imports a module by the first route that can take it, and says which.

    Args:
        module: a torch.nn.Module, on the meta device or any other; it is left as it was.
        args: positional arguments to trace it with; whole numbers on the CPU keep their contents in the
            run-time trace.
        kwargs: keyword arguments.
        options: mode, dtype, allow_unknown.
        inputs: what the tensor arguments' dims mean, by argument name, or what finds it for a program.
        importer: libraries and versions to name before the route.
        notes: what a reader should know.
        about: the other arguments of `import_program`.

    Raises:
        OpboundError: no route can take the module; the message is the first route's and the last one's.
    """
    import torch

    name = about["name"]
    before = f"{importer}, " if importer else ""

    def imported(program: Any, route: str, notes: Sequence[str]) -> ImportedModel:
        hints = inputs(program) if callable(inputs) else inputs
        route = f"{before}{route} {torch.__version__}"
        return import_program(program, options, inputs=hints, importer=route, notes=notes, **about)

    try:
        there = (tuple(args), dict(kwargs))
        if _on_meta(module):
            there = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), there)
        return imported(export_module(module, *there, name=name), "torch.export", notes)
    except OpboundError as error:
        refused = error
    try:
        with _state_on_meta(module):
            traced = trace_at_run_time(module, args, kwargs, name=name)
        why = f"torch.export could not take it ({str(refused)[:160]}): it was run on meta tensors"
        return imported(traced, "run-time trace", [*notes, why, *traced.notes])
    except OpboundError as error:
        if str(error).rpartition("Error: ")[2] in str(refused):
            # What is wrong with the model or the options is so on every route.
            raise refused from error
        raise type(refused)(f"{refused}; and {error}") from error


def _on_meta(module: Any) -> bool:
    tensors = [*module.parameters(), *module.buffers()]
    return bool(tensors) and all(t.device.type == "meta" for t in tensors)


@contextmanager
def _state_on_meta(module: Any) -> Iterator[None]:
    """Puts stand-ins in the place of a module's state: what it writes there while it runs is forgotten.

    Parameters and large buffers become meta tensors, the others copies.
    """
    import torch

    stand_ins: dict[int, Any] = {}
    before = []

    def stand_in(tensor: Any) -> Any:
        if id(tensor) not in stand_ins:
            small = tensor.numel() <= _KEPT_ELEMENTS and not isinstance(tensor, torch.nn.Parameter)
            made = tensor.detach().clone() if small else torch.empty_like(tensor, device="meta")
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
            stand_ins[id(tensor)] = made
        return stand_ins[id(tensor)]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            before.append((held, dict(held)))
            held.update({k: stand_in(t) for k, t in held.items() if t is not None})
    try:
        yield
    finally:
        for held, contents in before:
            held.clear()
            held.update(contents)
