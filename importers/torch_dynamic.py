"""Binds the dynamic dims of an exported program to sizes."""

from __future__ import annotations

from typing import Any

from graph_ir.errors import DimensionError, OpboundError, did_you_mean
from importers.imported_model import ImportOptions
from importers.torch_call import InputHint


def with_bound_dims(
    torch: Any, program: Any, options: ImportOptions, name: str
) -> tuple[Any, dict[str, InputHint], list[str]]:
    """The program with every dim a number, hints of its inputs, and notes.

    A dynamic dim is bound by its name (`dims`), by `batch` if it is an input's first dim, by `sequence` if
    it is the second dim of token numbers, else by the size it was exported with.

    Raises:
        DimensionError: a given size names no dim of this program.
    """
    inputs = _tensor_inputs(program)
    symbols = _symbols(inputs)
    unknown = [d for d in options.dims if d not in symbols]
    if unknown:
        hint = did_you_mean(unknown[0], symbols) if symbols else "it has no dynamic dims"
        raise DimensionError(f"{name} has no dim {unknown[0]!r}; {hint}")
    hints = {node.name: InputHint(_dim_names(node)) for node in inputs}
    sizes, notes = {}, []
    for symbol, (node, axis, example) in symbols.items():
        role = hints[node.name].dims[axis]
        size = options.dims.get(symbol)
        if size is None:
            size = {"batch": options.batch, "sequence": options.sequence}.get(role or "")
        if size is None:
            size = example
            notes.append(f"dim {symbol} is {example}, the size it was exported with")
        sizes[symbol] = size
    for role, given in (("batch", options.batch), ("sequence", options.sequence)):
        _check_fixed(inputs, hints, role, given, name)
    if symbols:
        _propagate(torch, program, sizes, name)
    return program, hints, notes


def _tensor_inputs(program: Any) -> list[Any]:
    user = set(program.graph_signature.user_inputs)
    return [
        n
        for n in program.graph.nodes
        if n.op == "placeholder" and n.name in user and hasattr(n.meta.get("val"), "shape")
    ]


def _symbols(inputs: list[Any]) -> dict[str, tuple[Any, int, int]]:
    """Where each dynamic dim first occurs, and its size when it was exported."""
    found: dict[str, tuple[Any, int, int]] = {}
    for node in inputs:
        for axis, size in enumerate(node.meta["val"].shape):
            if type(size) is not int:
                example = getattr(size.node, "hint", None) or 1
                found.setdefault(str(size), (node, axis, int(example)))
    return found


def _dim_names(node: Any) -> tuple[str | None, ...]:
    tensor = node.meta["val"]
    names: list[str | None] = [None] * tensor.ndim
    if tensor.ndim:
        names[0] = "batch"
    if tensor.ndim == 2 and not tensor.is_floating_point():
        names[1] = "sequence"
    return tuple(names)


def _check_fixed(
    inputs: list[Any], hints: dict[str, InputHint], role: str, given: int | None, name: str
) -> None:
    """A size that the user gives must be dynamic in the program, or be what it was exported with."""
    if given is None:
        return
    fixed = [
        size
        for node in inputs
        for size, dim in zip(node.meta["val"].shape, hints[node.name].dims, strict=True)
        if dim == role and type(size) is int
    ]
    if not any(role in hints[n.name].dims for n in inputs) or (fixed and fixed[0] != given):
        kept = f"was exported with {role} {fixed[0]}" if fixed else f"has no {role} dim"
        raise DimensionError(
            f"{name} {kept}: export it with a dynamic {role} dim, or leave {role} out"
        )


def _propagate(torch: Any, program: Any, sizes: dict[str, int], name: str) -> None:
    """Runs the graph on meta tensors of the bound sizes and records every node's result."""
    arguments = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            shape = [n if type(n) is int else _bound(n, sizes) for n in value.shape]
            arguments.append(torch.empty(shape, dtype=value.dtype, device="meta"))
        else:
            arguments.append(value)

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node: Any) -> Any:
            result = super().run_node(node)
            if node.op in ("call_function", "placeholder"):
                node.meta["val"] = result
            return result

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if "device" in kwargs:
                kwargs = {**kwargs, "device": "meta"}
            if str(target).startswith("aten._assert"):
                return None
            return super().call_function(target, args, kwargs)

    try:
        Recorder(program.graph_module).run(*arguments)
    except (RuntimeError, ValueError, TypeError) as error:
        bound = ", ".join(f"{k}={v}" for k, v in sizes.items())
        raise OpboundError(
            f"{name} does not accept {bound}: {' '.join(str(error).split())[:200]}"
        ) from error


def _bound(size: Any, sizes: dict[str, int]) -> int:
    """The value of a symbol, or of an expression of symbols."""
    import sympy

    expression = size.node.expr
    values = {s: sizes[str(s)] for s in expression.free_symbols}
    return int(sympy.Integer(expression.subs(values)))
