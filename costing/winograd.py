"""Winograd's convolution: 3 x 3 taps with fewer multiplications, on engines whose library has such kernels.

F(e x e, 3 x 3) makes e x e outputs of one image and channel pair with (e + 2)^2 multiplications
instead of 9 e^2; what is multiplied is transformed before and after. cuDNN has two kinds of kernels:

- fused, F(2 x 2): the taps are transformed first, then one kernel transforms its inputs, multiplies and
  transforms back. A block makes 32 tiles of 32 channels: an implicit product of [tiles, 16 c_in] by
  [16 c_in, c_out] in blocks of 32 x 32.
- staged, F(4 x 4): inputs, taps and results are transformed by kernels of their own, through main
  memory; between them are 36 products of [tiles, c_in] by [c_in, c_out].

Source: Lavin and Gray 2015, arXiv 1509.09308; Yan, Wang and Chu 2020 (doi:10.1145/3332466.3374520) on
cuDNN's fused kernel; the blocks are those of cuDNN's kernels, by their names
and grids (scudnn_winograd_128x128_..._tile148t and tile442t, winograd_nonfused with sgemm_128x128).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from costing.engine import MATRIX, Tile
from costing.gemm import gemm_cost
from costing.hardware import Hardware
from costing.kernel_cost import Array, KernelCost
from graph_ir.tensor_type import DType

TAPS = 3
_FUSED, _STAGED = 2, 4
"""Outputs per side of a tile."""
_FUSED_TILE, _STAGED_TILE = Tile(32, 32), Tile(128, 128)
_BLOCKS = ((1, 4, 8), (2, 4, 4))
"""Images, rows and columns of tiles in a block of the fused kernel; the better one is chosen."""


@dataclass(frozen=True)
class WinogradShape:
    """Convolutions with 3 x 3 taps, stride 1; all entries broadcast against each other."""

    images: ArrayLike
    height: ArrayLike
    """Of the result."""
    width: ArrayLike
    """Of the result."""
    c_in: ArrayLike
    c_out: ArrayLike


def winograd_cost(hardware: Hardware, dtype: DType, shape: WinogradShape) -> KernelCost:
    """Prices the faster of the two kinds of kernels for every shape; results are flat.

    Args:
        hardware: the device.
        dtype: of operands and result.
        shape: the convolutions.
    """
    sizes = (shape.images, shape.height, shape.width, shape.c_in, shape.c_out)
    sized = [
        x.ravel() for x in np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in sizes))
    ]
    fused, staged = _fused(hardware, dtype, *sized), _staged(hardware, dtype, *sized)
    first = fused.time_s <= staged.time_s

    def better(a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
        return {name: np.where(first, a[name], b[name]) for name in a}

    return KernelCost(
        np.minimum(fused.time_s, staged.time_s),
        better(fused.terms, staged.terms),
        better(fused.traffic_bytes, staged.traffic_bytes),
    )


def _fused(
    hardware: Hardware, dtype: DType, n: Array, h: Array, w: Array, c_in: Array, c_out: Array
) -> KernelCost:
    size = dtype.bits / 8
    points = (_FUSED + TAPS - 1) ** 2
    tiles = np.full_like(n, np.inf)
    for images, rows, columns in _BLOCKS:
        blocks = np.ceil(n / images) * np.ceil(h / _FUSED / rows) * np.ceil(w / _FUSED / columns)
        tiles = np.minimum(tiles, blocks * images * rows * columns)
    product = gemm_cost(
        # One block fills a processor: nothing hides the first bytes of the next.
        _with_tile(hardware, dtype, _FUSED_TILE, hardware.main_memory.latency_s),
        dtype,
        tiles,
        c_out,
        points * c_in,
        a_bytes=size * n * h * w * c_in,
        b_bytes=size * points * c_in * c_out,
        splits=False,
    )
    # The product's result is a tile's outputs, of which there are more than tiles.
    more = size * (n * h * w - tiles) * c_out
    taps = size * (TAPS**2 + points) * c_in * c_out
    useful = 2 * points * (n * h * w / _FUSED**2) * c_in * c_out
    return _joined(hardware, dtype, product, useful, [taps], more)


def _staged(
    hardware: Hardware, dtype: DType, n: Array, h: Array, w: Array, c_in: Array, c_out: Array
) -> KernelCost:
    size = dtype.bits / 8
    points = (_STAGED + TAPS - 1) ** 2
    tiles = n * np.ceil(h / _STAGED) * np.ceil(w / _STAGED)
    product = gemm_cost(
        _with_tile(hardware, dtype, _STAGED_TILE),
        dtype,
        tiles,
        c_out,
        c_in,
        batch=float(points),
        splits=False,
    )
    transforms = [
        size * (n * h * w + points * tiles) * c_in,
        size * (TAPS**2 + points) * c_in * c_out,
        size * (points * tiles + n * h * w) * c_out,
    ]
    useful = 2 * points * (n * h * w / _STAGED**2) * c_in * c_out
    return _joined(hardware, dtype, product, useful, transforms)


def _with_tile(hardware: Hardware, dtype: DType, tile: Tile, begin_s: float = 0.0) -> Hardware:
    """The device with one tile, which takes `begin_s` more to begin."""
    engine = hardware.engine_for(MATRIX, dtype)
    own = replace(engine, tiles=(tile,), tile_overhead_s=engine.tile_overhead_s + begin_s)
    return replace(hardware, engines=(own,))


def _joined(
    hardware: Hardware,
    dtype: DType,
    product: KernelCost,
    useful_flops: Array,
    transforms: list[Array],
    more: Array | float = 0.0,
) -> KernelCost:
    """The product and the kernels that transform its operands and result, one after the other.

    Args:
        hardware: the device.
        dtype: of all tensors.
        product: the product's kernel.
        useful_flops: of it, without what tiles hang over.
        transforms: bytes that each other kernel moves.
        more: bytes that the product's kernel moves beyond those of a product.
    """
    engine = hardware.engine_for(MATRIX, dtype)
    first_byte = hardware.main_memory.latency_s
    between_s = hardware.launch.device_latency_s + hardware.launch.switch_s + first_byte
    moved = sum(transforms) + more
    time_s = product.time_s + len(transforms) * between_s
    slowest = max(1 / level.sustained_bytes_per_s for level in hardware.memory)
    terms = {"compute": first_byte + useful_flops / engine.sustained(dtype)}
    traffic = {}
    for level in hardware.memory:
        traffic[level.name] = product.traffic_bytes[level.name] + moved
        name = f"memory:{level.name}"
        terms[name] = product.terms[name] + moved / level.sustained_bytes_per_s
    return KernelCost(np.asarray(time_s + np.maximum(moved, 0.0) * slowest), terms, traffic)
