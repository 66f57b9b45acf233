"""The fallback where torch.export gives up: run the model once on meta tensors and write down what it calls.

Floating-point tensors live on the meta device; whole numbers, masks and sizes are computed for real on the
CPU. So control flow that looks at positions, grids of patches or padding is simply followed, and only what
depends on activations cannot be traced.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from graph_ir.errors import OpboundError

_REAL_ELEMENTS = 1 << 24
"""Largest tensor that is computed for real; a larger one is only a shape."""

_ALL_CHOSEN = "a condition on the inputs is taken as true everywhere, so that it chooses the most"


@dataclass(slots=True)
class TracedProgram:
    """What a trace hands on; it has the attributes of an ExportedProgram that the importer reads."""

    graph_module: Any
    state_dict: dict[str, Any]
    graph_signature: Any
    constants: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the trace had to assume."""

    @property
    def graph(self) -> Any:
        """The fx graph."""
        return self.graph_module.graph

    def run_decompositions(self, _: Any) -> TracedProgram:
        """The program itself: its operators were recorded as they ran."""
        return self


@dataclass(slots=True)
class _Signature:
    input_specs: list[Any]
    output_specs: list[Any]


def trace_at_run_time(
    module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, name: str
) -> TracedProgram:
    """Runs `module` on meta tensors and records its operators.

    Args:
        module: a torch.nn.Module; its parameters are taken as meta tensors.
        args: positional arguments; whole numbers may live on the CPU, then their contents are followed.
        kwargs: keyword arguments.
        name: the model, for errors.

    Raises:
        OpboundError: the model looks at the contents of activations, or fails.
    """
    import torch

    tree = torch.utils._pytree
    args, kwargs = tree.tree_map(_input_tensor, (tuple(args), dict(kwargs)))
    recorder = _Recorder(torch, module)
    for path, tensor in _inputs(module, args, kwargs):
        recorder.add_input(path, tensor)
    try:
        with torch.no_grad(), recorder.recording():
            result = module(*args, **kwargs)
    except OpboundError:
        raise
    except Exception as error:  # the user's own forward runs here and may raise anything
        text = " ".join(str(error).split())[:240]
        raise OpboundError(
            f"{name} cannot be traced at run time: {type(error).__name__}: {text}"
        ) from error
    return recorder.program(result)


def _input_tensor(leaf: Any) -> Any:
    """Floats on the meta device, whole numbers on the CPU, and with them floats whose contents count."""
    import torch

    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.is_floating_point() and not hasattr(leaf, "contents_kept"):
        return leaf.to("meta") if leaf.device.type != "meta" else leaf
    if leaf.device.type != "meta":
        return leaf
    return torch.zeros(leaf.shape, dtype=leaf.dtype)


def _inputs(module: Any, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
    """The user's tensors by the name of their argument; those of a list are numbered."""
    import inspect

    import torch

    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    flat: dict[str, Any] = {}
    for key, value in bound.items():
        inner = value if isinstance(value, dict) else {key: value}
        for label, item in inner.items():
            leaves = torch.utils._pytree.tree_leaves(item)
            many = isinstance(item, list | tuple)
            flat |= {f"{label}_{i}" if many else label: leaf for i, leaf in enumerate(leaves)}
    yield from ((k, v) for k, v in flat.items() if isinstance(v, torch.Tensor))


class _Recorder:
    """Builds an fx graph from the calls that reach it."""

    def __init__(self, torch: Any, module: Any) -> None:
        from torch.export.graph_signature import InputKind

        self.torch = torch
        self.graph = torch.fx.Graph()
        self.module = module
        self.kinds = InputKind
        self.known: dict[int, tuple[Any, Any]] = {}
        self.specs: list[Any] = []
        self.state: dict[str, Any] = {}
        self.constants: dict[str, Any] = {}
        self.first: Any = None
        self.stack: list[tuple[str, str]] = []
        self.paused = 0
        self.assumed = False
        """Whether a condition on the inputs was taken as true."""
        self.weighted: set[Any] = set()
        """Nodes that depend on the model's weights."""
        self.paths = {m: p for p, m in module.named_modules()}
        for path, tensor in module.named_parameters(remove_duplicate=False):
            self._placeholder(path, tensor, InputKind.PARAMETER)
        for path, tensor in module.named_buffers(remove_duplicate=False):
            self._placeholder(path, tensor, InputKind.BUFFER)

    def add_input(self, name: str, tensor: Any) -> None:
        """A tensor that the user gives."""
        self._placeholder(name, tensor, self.kinds.USER_INPUT)

    def _placeholder(self, path: str, tensor: Any, kind: Any) -> None:
        from torch.export.graph_signature import InputSpec, TensorArgument

        if id(tensor) in self.known:
            return
        node = self.graph.placeholder(path.replace(".", "_"))
        node.meta["val"] = tensor
        argument = TensorArgument(name=node.name)
        own = kind is not self.kinds.USER_INPUT
        if kind is self.kinds.PARAMETER:
            self.weighted.add(node)
        persistent = True if kind is self.kinds.BUFFER else None
        self.specs.append(InputSpec(kind, argument, path if own else None, persistent))
        self.known[id(tensor)] = (tensor, node)
        if kind in (self.kinds.PARAMETER, self.kinds.BUFFER):
            self.state[path] = tensor

    def node_of(self, tensor: Any) -> Any:
        """The node that made a tensor; one that no recorded call made is a constant."""
        found = self.known.get(id(tensor))
        if found is not None:
            return found[1]
        path = f"lifted_{len(self.constants)}"
        self.constants[path] = tensor
        where = self.graph.inserting_before(self.first) if self.first is not None else _nowhere()
        with where:
            self._placeholder(path, tensor, self.kinds.CONSTANT_TENSOR)
        return self.known[id(tensor)][1]

    def check(self, target: Any, args: Any) -> None:
        """A condition on activations chooses elements, and so sizes: that cannot be followed.

        A condition on the inputs alone (is this image padding?) is taken as true everywhere.
        """
        name = str(target)
        if not name.startswith(
            ("aten.nonzero", "aten.index.", "aten.index_put", "aten.masked_select")
        ):
            return
        for tensor in self.torch.utils._pytree.tree_leaves(args):
            if not isinstance(tensor, self.torch.Tensor) or tensor.device.type != "meta":
                continue
            chooses = tensor.dtype == self.torch.bool or name.startswith("aten.nonzero")
            if chooses and self.node_of(tensor) in self.weighted:
                raise OpboundError("which elements are chosen depends on activations")
            if chooses:
                self.assumed = True

    def record(self, target: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Adds a call whose result is known."""
        torch = self.torch
        is_tensor = torch.Tensor
        tree = torch.utils._pytree
        args, kwargs = tree.tree_map_only(is_tensor, self.node_of, (args, kwargs))
        node = self.graph.call_function(target, tuple(args), kwargs)
        self.first = self.first if self.first is not None else node
        if not self.weighted.isdisjoint(node.all_input_nodes):
            self.weighted.add(node)
        node.meta["val"] = result
        node.meta["nn_module_stack"] = dict(enumerate(self.stack))
        if isinstance(result, torch.Tensor):
            self.known.setdefault(id(result), (result, node))
        elif isinstance(result, list | tuple):
            for i, part in enumerate(result):
                if isinstance(part, torch.Tensor) and id(part) not in self.known:
                    item = self.graph.call_function(operator.getitem, (node, i))
                    if node in self.weighted:
                        self.weighted.add(item)
                    item.meta |= {"val": part, "nn_module_stack": node.meta["nn_module_stack"]}
                    self.known[id(part)] = (part, item)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While active, every operator that runs is recorded with the module that it runs in."""
        from torch.nn.modules.module import (
            register_module_forward_hook,
            register_module_forward_pre_hook,
        )

        def enter(module: Any, _: Any) -> None:
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            self.stack.append((self.paths.get(module, ""), kind))

        def leave(*_: Any) -> None:
            self.stack.pop()

        from importers.torch_trace_modes import modes

        calls, functions = modes(self)
        hooks = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            # Sizes that hang on the inputs' contents are the largest possible.
            largest = self.torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True)
            with largest, calls, functions:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def program(self, result: Any) -> TracedProgram:
        """The finished graph, the tensors of `result` its outputs."""
        from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument

        torch = self.torch
        found = [
            self.node_of(leaf)
            for leaf in torch.utils._pytree.tree_leaves(result)
            if isinstance(leaf, torch.Tensor)
        ]
        self.graph.output(tuple(found))
        outputs = [
            OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None)
            for node in found
        ]
        graph_module = torch.fx.GraphModule(torch.nn.Module(), self.graph)
        return TracedProgram(
            graph_module,
            self.state,
            _Signature(self.specs, outputs),
            self.constants,
            (_ALL_CHOSEN,) if self.assumed else (),
        )


@contextmanager
def _nowhere() -> Iterator[None]:
    yield
