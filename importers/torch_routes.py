"""The ways from a module to an operator graph, best first: torch.export, then a run-time trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graph_ir.errors import OpboundError
from importers.imported_model import ImportedModel, ImportOptions
from importers.torch_export import export_module, import_program
from importers.torch_runtime_trace import trace_at_run_time


def import_module(
    module: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: ImportOptions,
    *,
    importer: str = "",
    notes: Sequence[str] = (),
    **about: Any,
) -> ImportedModel:
    """Imports a module by the first route that can take it, and says which.

    Args:
        module: a torch.nn.Module on the meta device.
        args: positional arguments to trace it with; whole numbers on the CPU keep their contents in the
            run-time trace.
        kwargs: keyword arguments.
        options: mode, dtype, allow_unknown.
        importer: libraries and versions to name before the route.
        notes: what a reader should know.
        about: the other arguments of `import_program`.

    Raises:
        OpboundError: no route can take the module; the message is the first route's and the last one's.
    """
    import torch

    name = about["name"]
    before = f"{importer}, " if importer else ""
    try:
        there = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: t.to("meta"), (tuple(args), dict(kwargs))
        )
        program = export_module(module, *there, name=name)
        route = f"{before}torch.export {torch.__version__}"
        return import_program(program, options, importer=route, notes=notes, **about)
    except OpboundError as error:
        refused = error
    try:
        traced = trace_at_run_time(module, args, kwargs, name=name)
        route = f"{before}run-time trace {torch.__version__}"
        why = f"torch.export could not take it ({str(refused)[:160]}): it was run on meta tensors"
        return import_program(traced, options, importer=route, notes=[*notes, why], **about)
    except OpboundError as error:
        raise type(refused)(f"{refused}; and {error}") from error
