"""Runs the program that was priced, operator by operator and as a whole, on a device.

The program is the one that the importer traced, so that an operator of the run and its predicted
nodes are matched by name. Weights that have no contents get random ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graph_ir.errors import OpboundError
from opbound.device.stopwatch import typical, typical_s
from opbound.device.target import Target

_MARK = "opbound::"
_BACKWARD = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class Measured:
    """Seconds of a run."""

    forward_s: dict[str, float]
    """By operator, over the repeats."""
    backward_s: dict[str, float]
    """By the forward operator whose gradient it is; empty without a backward pass."""
    whole_s: float
    """Everything at once, without a profiler."""
    unmatched_s: float = 0.0
    """Of the backward pass, what belongs to no forward operator (summing up gradients)."""


def run_program(
    program: Any, target: Target, *, backward: bool, repeats: int, progress: Callable[[str], None]
) -> Measured:
    """Runs a traced program.

    Args:
        program: torch.export.ExportedProgram, or what stands for one.
        target: the device.
        backward: whether gradients are computed too.
        repeats: profiled runs.
        progress: is told what is being done.

    Raises:
        OpboundError: if the program cannot be run there.
    """
    torch = target.torch
    module, arguments = runnable(program, target)
    progress("running the model once")

    def work() -> None:
        with torch.set_grad_enabled(backward):
            results = module(*arguments)
            if backward:
                _differentiate(torch, results)

    try:
        work()
    except Exception as error:  # torch's kernels raise anything, and random contents may not fit
        line = " ".join(str(error).split())[:300]
        raise OpboundError(
            f"the model cannot be run on {target.device} with random contents: "
            f"{type(error).__name__}: {line}"
        ) from error
    whole_s = typical_s(target.clock, work, budget_s=2.0, samples=repeats)
    progress("profiling every operator")
    forward: dict[str, list[float]] = {}
    grads: dict[str, list[float]] = {}
    unmatched: list[float] = []
    for _ in range(repeats):
        events = _profiled(target, module, arguments, backward)
        once = operator_times(events, on_device=target.is_cuda)
        for sums, found in ((forward, once.forward_s), (grads, once.backward_s)):
            for name, seconds in found.items():
                sums.setdefault(name, []).append(seconds)
        unmatched.append(once.unmatched_s)
    return Measured(
        {name: typical(found) for name, found in forward.items()},
        {name: typical(found) for name, found in grads.items()},
        whole_s,
        typical(unmatched),
    )


def runnable(program: Any, target: Target) -> tuple[Any, list[Any]]:
    """The program's module on the device, and what its placeholders stand for."""
    torch = target.torch
    module = copy.deepcopy(program.graph_module)
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            _move(torch, part, target.device)
    made: dict[int, Any] = {}
    arguments = []
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        like = node.meta.get("val")
        if not isinstance(like, torch.Tensor):
            arguments.append(like if like is not None else getattr(spec.arg, "value", None))
            continue
        owner = None
        if spec.target:
            owner = program.state_dict.get(spec.target)
            owner = program.constants.get(spec.target) if owner is None else owner
        tensor = like if owner is None else owner
        if id(tensor) not in made:
            made[id(tensor)] = _contents(torch, tensor, node.name, target.device)
        arguments.append(made[id(tensor)])
    return module, arguments


def _move(torch: Any, module: Any, device: Any) -> None:
    """Makes a traced module create its tensors on the device, not where it was traced."""

    def there(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in module.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, there)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, there)
    module.recompile()


def _contents(torch: Any, like: Any, name: str, device: Any) -> Any:
    """A tensor's own contents, else random ones that no operator chokes on."""
    own = like.device.type != "meta" and type(like) in (torch.Tensor, torch.nn.Parameter)
    shape, dtype = tuple(like.shape), like.dtype
    if own:
        made = like.detach().to(device)
    elif dtype.is_floating_point and len(shape) > 1:
        made = (0.02 * torch.randn(shape, device=device)).to(dtype)
    elif dtype.is_floating_point or "mask" in name:
        # Scales, variances and frequencies must not be negative; a mask hides nothing.
        made = torch.ones(shape, dtype=dtype, device=device)
    else:
        # Zero is a valid index into everything.
        made = torch.zeros(shape, dtype=dtype, device=device)
    if isinstance(like, torch.nn.Parameter) and dtype.is_floating_point:
        return torch.nn.Parameter(made, requires_grad=bool(like.requires_grad))
    return made


def _differentiate(torch: Any, results: Any) -> None:
    """The backward pass from a scalar result, else from all results."""
    leaves = [
        t
        for t in torch.utils._pytree.tree_leaves(results)
        if isinstance(t, torch.Tensor) and t.requires_grad
    ]
    if not leaves:
        raise OpboundError("no result depends on a trainable weight: there is no backward pass")
    scalars = [t for t in leaves if t.ndim == 0]
    roots = scalars[:1] or leaves
    torch.autograd.backward(roots, [torch.ones_like(t) for t in roots])


def _profiled(target: Target, module: Any, arguments: Sequence[Any], backward: bool) -> Any:
    """The events of one run, each operator within a range of its name."""
    torch = target.torch
    from torch.profiler import ProfilerActivity, profile, record_function

    interpreter = torch.fx.Interpreter(module)
    run_node = interpreter.run_node

    def marked(node: Any) -> Any:
        if node.op != "call_function":
            return run_node(node)
        with record_function(f"{_MARK}{node.name}"):
            return run_node(node)

    interpreter.run_node = marked
    for tensor in arguments:
        if isinstance(tensor, torch.Tensor):
            tensor.grad = None
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * target.is_cuda
    with profile(activities=activities) as profiler, torch.set_grad_enabled(backward):
        results = interpreter.run(*arguments)
        if backward:
            _differentiate(torch, results)
        if target.is_cuda:
            torch.cuda.synchronize(target.device)
    return profiler.events()


def operator_times(events: Sequence[Any], *, on_device: bool) -> Measured:
    """Sums a profile up by operator.

    An operator's time is that of the library calls within its range, without what Python does around
    them; on a GPU it is that of the kernels that they launched. A piece of the backward pass belongs
    to the operator whose forward call made it: autograd gives both the same sequence number.

    Args:
        events: of torch.profiler, with `name`, `cpu_parent`, `cpu_children`, `sequence_nr`.
        on_device: whether kernels count in place of calls.
    """
    forward: dict[str, float] = {}
    owner: dict[int, str] = {}
    for event in events:
        if not event.name.startswith(_MARK):
            continue
        name = event.name.removeprefix(_MARK)
        forward[name] = forward.get(name, 0.0) + sum(
            _seconds(call, on_device) for call in event.cpu_children
        )
        for call in _descendants(event):
            if call.sequence_nr >= 0:
                # Of all calls with a number, the last is the one that made the gradient's node.
                owner[call.sequence_nr] = name
    backward: dict[str, float] = {}
    unmatched = 0.0
    for event in events:
        if not event.name.startswith(_BACKWARD):
            continue
        seconds = _seconds(event, on_device)
        found = owner.get(event.sequence_nr)
        if found is None or "AccumulateGrad" in event.name:
            unmatched += seconds
        else:
            backward[found] = backward.get(found, 0.0) + seconds
    return Measured(forward, backward, 0.0, unmatched)


def _seconds(event: Any, on_device: bool) -> float:
    micros = event.device_time_total if on_device else event.cpu_time_total
    return float(micros) / 1e6


def _descendants(event: Any) -> Iterator[Any]:
    for child in event.cpu_children:
        yield child
        yield from _descendants(child)
