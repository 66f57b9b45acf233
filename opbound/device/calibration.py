"""Measures a device and writes its hardware file."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from costing.engine import Tile
from graph_ir.errors import OpboundError
from opbound._version import __version__
from opbound.device import device_file as entry
from opbound.device.benchmarks import (
    Product,
    copy_sizes,
    elementwise_rates,
    launch_s,
    measure_copies,
    measure_products,
    product_dtypes,
    product_shapes,
    switch_s,
)
from opbound.device.engine_fit import fit_overheads, levels_of, peaks_of
from opbound.device.target import Target

Progress = Callable[[str], None]

# Register and cache blocks of a CPU's libraries, and CUTLASS's thread blocks.
_CPU_TILES = tuple(Tile(m, n) for m, n in ((192, 128), (96, 64), (48, 32), (12, 32), (1, 32)))
_CUDA_TILES = tuple(
    Tile(m, n)
    for m, n in (
        *((256, 128), (128, 256), (256, 64), (64, 256), (128, 128), (128, 64)),
        *((64, 128), (64, 64), (64, 32), (16, 128)),
    )
)
_VECTOR_PRODUCTS = ("float32", "float64")
"""Dtypes whose products a GPU's vector engine takes (torch keeps fp32 from becoming tf32)."""


def calibrate(
    target: Target, name: str, progress: Progress = lambda _: None, *, quick: bool = False
) -> str:
    """The text of the hardware file of a device, measured now.

    Args:
        target: the device.
        name: of the device in reports.
        progress: is told what is being measured.
        quick: seconds in place of minutes, with fewer shapes and dtypes, and noisier.

    Raises:
        OpboundError: if a measurement runs out of memory.
    """
    try:
        with target.torch.inference_mode():
            return _calibrate(target, name, progress, quick)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        raise OpboundError(
            f"{target.title} has not enough free memory to be measured: end other programs on it"
        ) from error


def _calibrate(target: Target, name: str, progress: Progress, quick: bool) -> str:
    budget_s = 1.0 if quick else 20.0
    progress("kernels that do nothing")
    between_s, issue_s = launch_s(target, budget_s=budget_s / 5)
    copies = []
    sizes = copy_sizes(target, quick=quick)
    for copy in measure_copies(target, sizes, 2 * budget_s):
        progress(
            f"copies: {copy.moved_bytes >> 10} KiB at {copy.moved_bytes / copy.seconds:.3g} B/s"
        )
        copies.append(copy)
    memory = levels_of(copies, target.caches, target.capacity_bytes, between_s)
    progress("elementwise functions")
    rates = elementwise_rates(target, budget_s=budget_s / 2)
    products: list[Product] = []
    for dtype in product_dtypes(target)[: 2 if quick else None]:
        shapes = product_shapes(target, quick=quick)
        for product in measure_products(target, dtype, shapes, 2 * budget_s):
            progress(
                f"{dtype} product {product.m} x {product.n} x {product.k}: "
                f"{product.flops_per_s:.3g} FLOP/s"
            )
            products.append(product)
    progress("kernels after different ones")
    switched_s = switch_s(target, budget_s=budget_s / 2)
    progress("finding the overheads of the engines")
    engines, errors = _engines(target, products, memory, between_s, median(rates.values()))
    links: list[dict[str, Any]] = []
    if target.is_cuda and target.devices > 1:
        from opbound.device.collectives import measured_link

        progress(f"collectives of {target.devices} devices")
        links = [entry.link_entry(measured_link(target.devices, "nccl", quick=quick))]
    content: dict[str, Any] = {
        "name": name,
        "title": f"{target.title}, as measured",
        "engines": engines,
        "memory": [entry.memory_entry(level) for level in memory],
        **({"links": links} if links else {}),
        "launch": {
            "device_latency": entry.figure(entry.duration(between_s), "launch"),
            "host": entry.figure(entry.duration(issue_s), "launch"),
            # torch runs a model operator by operator; CUDA graphs hide the host.
            "hidden": False,
            "switch": entry.figure(entry.duration(switched_s), "switch"),
        },
        "sources": _sources(target, rates, errors, len(products)),
    }
    return entry.file_text(content)


def _engines(
    target: Target, products: list[Product], memory: Any, launch: float, vector_rate: float
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The engines' entries, and the mean error of each over its products."""
    if not target.is_cuda:
        count = f"{target.processors} {'thread' if target.processors == 1 else 'threads'}"
        found = fit_overheads(products, target.processors, _CPU_TILES, memory, launch)
        gemm = entry.matrix_engine("gemm", ["matrix"], count, peaks_of(products), _CPU_TILES, found)
        vector = entry.vector_engine("vector", count, vector_rate)
        return [gemm, vector], {"gemm": found.mean_error}
    engines, errors = [], {}
    count = f"{target.processors} multiprocessors"
    for name, kind, on_vector in (("matrix", "matrix", False), ("vector", "vector", True)):
        own = [p for p in products if (p.dtype.label in _VECTOR_PRODUCTS) is on_vector]
        if not own:
            continue
        found = fit_overheads(own, target.processors, _CUDA_TILES, memory, launch)
        engines.append(entry.matrix_engine(name, [kind], count, peaks_of(own), _CUDA_TILES, found))
        errors[name] = found.mean_error
    return engines, errors


def _sources(
    target: Target, rates: dict[str, float], errors: dict[str, float], products: int
) -> dict[str, str]:
    """The file's table of sources: how each kind of figure was measured."""
    origin = target.origin
    functions = ", ".join(f"{name} {rate / 1e9:.3g} G" for name, rate in rates.items())
    off = ", ".join(f"{name} {100 * error:.0f} %" for name, error in errors.items())
    how = f"measured by {origin}"
    return {
        "system": f"as the system describes the device; {origin}",
        "launch": f"{how}, opbound {__version__}: kernels of one element, one after the other",
        "switch": f"{how}: small kernels one after the other, beside each of them again and again",
        "copies": f"{how}: copies between two buffers, read and written bytes together, the "
        "lower quartile of repeats; the bandwidth is that of the best size that fits the level, the "
        "efficiency the median over these sizes",
        "keeps": f"{how}: the largest copy, read and written bytes together, that ran nearer to the "
        "cache's bandwidth than to main memory's",
        "products": f"{how}: the fastest of the products of a dtype, each the lower quartile of repeats",
        "fit": f"{how}: the figures with which the cost model comes nearest to {products} measured "
        f"products (mean error: {off})",
        "tiles": "estimate: block sizes of BLAS and CUTLASS kernels",
        "elementwise": f"{how}: median over functions on operands that a cache holds, in "
        f"FLOP/s as opbound counts them ({functions})",
        "collectives": f"{how}: all-reduces over 2 and all devices, latency and bandwidth by least "
        "squares",
    }
