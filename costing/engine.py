"""What multiplies and adds: an engine, its tiles, and its fused attention kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graph_ir.errors import HardwareError
from graph_ir.tensor_type import DType

MATRIX = "matrix"
VECTOR = "vector"


@dataclass(frozen=True)
class Tile:
    """One output tile shape that the engine's matrix kernels are built for, in elements."""

    m: int
    n: int


@dataclass(frozen=True)
class AttentionKernel:
    """How well the engine's fused attention kernels do, where they differ from its products."""

    efficiency: float = 1.0
    """Fraction of the engine's sustained rate that the two products of the forward pass reach."""
    backward_efficiency: float = 1.0
    """The same for the five products of the backward pass."""
    softmax_flops: float = 0.0
    """Vector FLOPs per score for scale, mask, exponential and sums that are not hidden."""
    rows: int = 128
    """Queries per thread block: the unit of parallel work is (batch, head, this many queries)."""
    blocks_per_processor: int = 1
    """Blocks that share a processor, each at its part of the processor's rate."""
    block_latency_s: float = 0.0
    """Start and end of one block, during which nothing is multiplied."""
    split_tokens: int = 256
    """Fewest cached tokens per block when one query's keys are split over blocks."""
    split_latency_s: float = 0.0
    """Time to sum up the parts when keys are split."""
    latency_s: float = 0.0
    """Fixed time of the kernels of one attention call beyond a plain launch."""
    unhidden: float = 0.0
    """Fraction of the shorter of computing and fetching that is not hidden behind the longer."""
    splits_ungrouped: bool = True
    """Whether the keys are also split where no two heads of queries share them."""
    copies_groups: bool = False
    """Whether single queries whose heads share keys are copied to lie together, and the result back:
    two kernels more, except where they already lie so (one sequence, or one head of keys). Several
    queries per head are then not packed with those of other heads."""


@dataclass(frozen=True)
class Engine:
    """A set of identical compute units that run one kind of work."""

    name: str
    kinds: tuple[str, ...]
    """The work it takes: 'matrix' (contractions), 'vector' (everything else)."""
    processors: int
    """Independent units over which a kernel's tiles are spread; waves are counted in these."""
    peak_flops: Mapping[str, float]
    """FLOP/s of all processors together, by dtype label (`DType.label`, or 'tf32')."""
    efficiency: Mapping[str, float]
    """Highest fraction of the peak that real kernels sustain, by dtype label or 'default'."""
    tiles: tuple[Tile, ...] = ()
    """Output tiles of its matrix kernels; empty when kernels are not tiled (a scalar engine)."""
    tile_overhead_s: float = 0.0
    """Time to fill and drain the pipeline of one output tile, with nothing multiplied."""
    drain_exposed: float = 0.0
    """Fraction of a tile's write to main memory that is not hidden behind the next tile's work."""
    split_depth_bytes: float = 0.0
    """Shortest run of the contracted dim, in bytes, that it is split into; 0: never split."""
    unhidden: float = 0.0
    """Fraction of the shorter of multiplying and fetching that is not hidden behind the longer."""
    attention: AttentionKernel = AttentionKernel()
    split_latency_s: float = 0.0
    """Extra time of a split contraction: its parts are summed after all have ended."""
    split_evenly: bool = True
    """Whether processors share all tiles evenly (stream-k), or each tile is cut into equal parts."""
    operand_cost: float = 0.0
    """Multiply-adds that take as long as bringing one operand element of a tile to the multipliers,
    counted from the largest tile, whose cost is part of `efficiency`."""
    winograd: bool = False
    """Whether its library has Winograd's kernels for convolutions with 3 x 3 taps."""
    clock_headroom: float = 0.0
    """How much faster than `efficiency` it multiplies while power leaves it its full clock: long
    products at full utilisation slow it down, half-filled waves do not."""

    def supports(self, dtype: DType) -> bool:
        """Whether the engine has a peak for this dtype or for one that holds it."""
        return self._label(dtype) is not None

    def peak(self, dtype: DType) -> float:
        """Peak FLOP/s for `dtype`; a narrow type without its own peak runs as a wider one."""
        return self.peak_flops[self._known(dtype)]

    def sustained(self, dtype: DType) -> float:
        """FLOP/s that large, well-shaped work sustains: peak times efficiency."""
        label = self._known(dtype)
        return self.peak_flops[label] * self.efficiency.get(label, self.efficiency["default"])

    def _known(self, dtype: DType) -> str:
        label = self._label(dtype)
        if label is None:
            raise HardwareError(
                f"engine {self.name!r} has no peak for {dtype.label}; it has "
                f"{', '.join(self.peak_flops)}: choose another --dtype or add the peak to the file"
            )
        return label

    def _label(self, dtype: DType) -> str | None:
        for label in _COMPUTED_AS.get(dtype.label, (dtype.label,)):
            if label in self.peak_flops:
                return label
        return None


_INTEGERS = ("int32", "float32", "bfloat16", "float16", "float64")
_COMPUTED_AS: dict[str, tuple[str, ...]] = {
    # A dtype runs at the rate of the first of these that the engine has: its own, else the one it
    # would be converted to, of the 16-bit floats float16, which no engine has to emulate. float32 is
    # never silently run as tf32: by default PyTorch's products do not.
    "float16": ("float16", "bfloat16", "float32"),
    "bfloat16": ("bfloat16", "float16", "float32"),
    "float8_e4m3": ("float8_e4m3", "float8_e5m2", "float16", "bfloat16", "float32"),
    "float8_e5m2": ("float8_e5m2", "float8_e4m3", "float16", "bfloat16", "float32"),
    "float8_e8m0": ("float8_e8m0", "float8_e4m3", "float16", "bfloat16", "float32"),
    "float4_e2m1": ("float4_e2m1", "float8_e4m3", "float16", "bfloat16", "float32"),
    "complex64": ("complex64", "float32"),
    "complex128": ("complex128", "float64"),
    "int8": ("int8", "float16", "bfloat16", *_INTEGERS),
    "uint8": ("uint8", "int8", "float16", "bfloat16", *_INTEGERS),
    "int4": ("int4", "int8", "float16", "bfloat16", *_INTEGERS),
    "uint4": ("uint4", "int8", "float16", "bfloat16", *_INTEGERS),
    "int2": ("int2", "int8", "float16", "bfloat16", *_INTEGERS),
    "uint2": ("uint2", "int8", "float16", "bfloat16", *_INTEGERS),
    "int16": ("int16", *_INTEGERS),
    "uint16": ("uint16", *_INTEGERS),
    "int32": _INTEGERS,
    "uint32": _INTEGERS,
    "int64": ("int64", *_INTEGERS),
    "uint64": ("uint64", *_INTEGERS),
    "bool": ("bool", *_INTEGERS),
    "string": ("string", *_INTEGERS),
}
