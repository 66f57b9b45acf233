"""What calibration runs: products, copies, elementwise functions, and kernels that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, product
from typing import Any

from graph_ir.tensor_type import DType
from opbound.device.stopwatch import HostClock, typical, typical_s
from opbound.device.target import Target

_GRAPH_KERNELS = 200
_GRAPH_CALLS = 20
_MOST_COPIES = 256
_FUNCTIONS = ("relu", "exp", "sigmoid", "tanh", "gelu", "silu")
"""What models do between products."""


@dataclass(frozen=True)
class Product:
    """One measured product of [m, k] by [k, n]."""

    dtype: DType
    m: int
    n: int
    k: int
    seconds: float

    @property
    def flops_per_s(self) -> float:
        """Rate reached; one multiply-add is 2."""
        return 2 * self.m * self.n * self.k / self.seconds


@dataclass(frozen=True)
class Copy:
    """One measured copy: as many bytes are read as written."""

    moved_bytes: int
    """Read and written together: also what the copy keeps in a cache."""
    seconds: float


def product_dtypes(target: Target) -> list[DType]:
    """The dtypes whose products torch runs on the device."""
    wanted = [DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16, DType.INT8]
    if target.is_cuda:
        wanted += [DType.FLOAT64, DType.FLOAT8_E4M3]
    return [dtype for dtype in wanted if _runs(target, dtype)]


def _runs(target: Target, dtype: DType) -> bool:
    try:
        product_of(target, dtype, 64, 64, 64)()
    except (RuntimeError, NotImplementedError, AttributeError, TypeError):
        # torch says in many ways that a kernel is not there for this device.
        return False
    return True


def product_of(target: Target, dtype: DType, m: int, n: int, k: int) -> Callable[[], object]:
    """One product per call, B stored as its transpose as a linear layer's weight is.

    Calls take turns over as many copies of B as the last cache does not hold, because a model's
    weights come from main memory.
    """
    torch = target.torch
    names = {DType.FLOAT8_E4M3: "float8_e4m3fn"}
    kind = getattr(torch, names.get(dtype, dtype.label))
    a = torch.randn(m, k, device=target.device).to(kind)
    b = torch.randn(n, k, device=target.device).to(kind)
    held = max((size for _, size in target.caches), default=0)
    copies = min(_MOST_COPIES, -(-2 * held // (n * k * b.element_size())))
    turns = cycle([b.t(), *(b.clone().t() for _ in range(copies - 1))])
    if dtype is DType.INT8:
        return lambda: torch._int_mm(a, next(turns))
    if dtype is DType.FLOAT8_E4M3:
        one = torch.ones((), device=target.device)
        return lambda: torch._scaled_mm(
            a, next(turns), scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )
    # Written into a buffer that is there: taking new memory is not the engine's time.
    out = torch.empty(m, n, device=target.device, dtype=kind)
    return lambda: torch.mm(a, next(turns), out=out)


def product_shapes(target: Target, *, quick: bool) -> list[tuple[int, int, int]]:
    """(m, n, k): cubes up to one that fills the device, then skinny, thin and deep ones."""
    top = 8192 if target.is_cuda else 1024 if quick else 2048
    cubes = [size for size in (64, 128, 256, 512, 1024, 2048, 4096, 8192) if size <= top]
    shapes = [(size, size, size) for size in cubes]
    if quick:
        return shapes[1:]
    wide = (1024, 4096) if not target.is_cuda else (2048, 8192)
    shapes += [(rows, n, k) for rows, (n, k) in product((1, 16, 64, 200), (wide, wide[::-1]))]
    shapes += [(top, top, 64), (top, 64, top // 2), (96, 96, 16 * wide[0]), (1000, 1000, 1000)]
    return shapes


def measure_products(
    target: Target, dtype: DType, shapes: list[tuple[int, int, int]], budget_s: float
) -> Iterator[Product]:
    """Times each shape that the dtype's kernels take; some take only multiples of 8 or 16."""
    for m, n, k in shapes:
        try:
            work = product_of(target, dtype, m, n, k)
            seconds = device_s(target, work, budget_s=budget_s / len(shapes))
        except RuntimeError as error:
            if "memory" in str(error).lower():
                raise
            continue
        yield Product(dtype, m, n, k, seconds)


def device_s(target: Target, work: Callable[[], object], *, budget_s: float) -> float:
    """Seconds that the device takes for one call of `work`, without the host that issues it."""
    if target.is_cuda:
        return _graph_s(target, work, budget_s, _GRAPH_CALLS)
    return typical_s(target.clock, work, budget_s=budget_s)


def copy_sizes(target: Target, *, quick: bool) -> list[int]:
    """Bytes moved per copy: from what a first cache holds to several times the last one."""
    last = max((size for _, size in target.caches), default=1 << 25)
    top = min(4 * last if quick else 8 * last, target.capacity_bytes // 8, 1 << 31)
    sizes = [1 << 14]
    while sizes[-1] * 2 <= top:
        sizes.append(sizes[-1] * 2)
    return sizes


def measure_copies(target: Target, sizes: list[int], budget_s: float) -> Iterator[Copy]:
    """Times a copy of each size, between two buffers that stay the same."""
    torch = target.torch
    for moved in sizes:
        source = torch.ones(moved // 8, dtype=torch.float32, device=target.device)
        there = torch.empty_like(source)
        work = _copy(there, source)
        yield Copy(moved, device_s(target, work, budget_s=budget_s / len(sizes)))


def _copy(there: Any, source: Any) -> Callable[[], object]:
    return lambda: there.copy_(source)


def elementwise_rates(target: Target, *, budget_s: float) -> dict[str, float]:
    """FLOP/s, as opbound counts FLOPs, of functions whose operands a cache holds."""
    from graph_ir.graph import GraphBuilder
    from graph_ir.tensor_type import TensorType

    torch = target.torch
    elements = 1 << (24 if target.is_cuda else 16)
    type_ = TensorType((elements,), DType.FLOAT32)
    x = torch.rand(elements, device=target.device)
    rates = {}
    for name in _FUNCTIONS:
        builder = GraphBuilder()
        builder.emit(name, [builder.add_input("x", type_)], [type_], name=name)
        function = getattr(torch, name, None) or getattr(torch.nn.functional, name)
        work = partial(function, x)
        seconds = device_s(target, work, budget_s=budget_s / len(_FUNCTIONS))
        rates[name] = builder.nodes[0].flops / seconds
    return rates


def launch_s(target: Target, *, budget_s: float) -> tuple[float, float]:
    """Seconds per kernel that does nothing: between kernels on the device, and of the host.

    On a CPU both are the same: a call returns when its work is done.
    """
    torch = target.torch
    tiny = torch.ones(1, device=target.device)

    def work() -> object:
        return torch.relu(tiny)

    if not target.is_cuda:
        issued_s = typical_s(target.clock, work, budget_s=budget_s)
        return issued_s, issued_s
    return _graph_s(target, work, budget_s, _GRAPH_KERNELS), _issue_s(target, work)


def switch_s(target: Target, *, budget_s: float) -> float:
    """Seconds that a kernel takes longer after different ones than when it runs again and again.

    Functions and products of a small layer are timed each alone, then one after the other.
    """
    torch = target.torch
    # So small that all of them stay in the nearest caches: what farther levels add is theirs.
    rows, width = 32, 128
    x = torch.rand(rows, width, device=target.device)
    weights = [torch.rand(width, width, device=target.device) for _ in range(4)]
    functions = [
        getattr(torch, name, None) or getattr(torch.nn.functional, name) for name in _FUNCTIONS
    ]
    kernels: list[Callable[[], object]] = []
    for index, function in enumerate(functions):
        # Every kernel has operands of its own, as in a model.
        kernels.append(partial(function, x + index))
        kernels.append(partial(torch.add, x + index, x - index))
        kernels.append(partial(torch.nn.functional.layer_norm, x - index, (width,)))
        if index < len(weights):
            kernels.append(partial(torch.nn.functional.linear, x, weights[index]))
    each_s = budget_s / (2 * len(kernels))
    alone_s = sum(device_s(target, kernel, budget_s=each_s) for kernel in kernels)

    def chain() -> None:
        for kernel in kernels:
            kernel()

    return max(device_s(target, chain, budget_s=budget_s / 2) - alone_s, 0.0) / len(kernels)


def _graph_s(target: Target, work: Callable[[], object], budget_s: float, calls: int) -> float:
    """Per call of several that a CUDA graph has recorded: no host between them."""
    cuda = target.torch.cuda
    beside = cuda.Stream()
    beside.wait_stream(cuda.current_stream())
    with cuda.stream(beside):
        for _ in range(3):
            work()
    cuda.current_stream().wait_stream(beside)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        for _ in range(calls):
            work()
    return typical_s(target.clock, graph.replay, budget_s=budget_s) / calls


def _issue_s(target: Target, work: Callable[[], object], calls: int = 500) -> float:
    """Host seconds per call, in bursts that do not fill the device's queue."""
    cuda = target.torch.cuda
    clock = HostClock()
    found = []
    for _ in range(20):
        cuda.synchronize(target.device)
        clock.begin()
        for _ in range(calls):
            work()
        found.append(clock.end() / calls)
    return typical(found)
