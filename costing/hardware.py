"""What a device is to the cost model: lists of engines, memory levels and links.

Nothing here knows a vendor. A GPU, a CPU, a TPU or a microcontroller differ in data only, and that
data comes from a YAML file (`costing.hardware_file`) in which every number has a unit and a source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graph_ir.errors import HardwareError, did_you_mean
from graph_ir.tensor_type import DType

if TYPE_CHECKING:
    from costing.energy import Energy
    from costing.runtime import Runtime

MATRIX = "matrix"
VECTOR = "vector"

SWITCH = "switch"
UPLINK = "uplink"
DIRECT = "direct"
GRID = "grid"


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
    # would be converted to. float32 is never silently run as tf32: by default PyTorch's products do not.
    "float16": ("float16", "bfloat16", "float32"),
    "bfloat16": ("bfloat16", "float16", "float32"),
    "float8_e4m3": ("float8_e4m3", "float8_e5m2", "bfloat16", "float16", "float32"),
    "float8_e5m2": ("float8_e5m2", "float8_e4m3", "bfloat16", "float16", "float32"),
    "float8_e8m0": ("float8_e8m0", "float8_e4m3", "bfloat16", "float16", "float32"),
    "float4_e2m1": ("float4_e2m1", "float8_e4m3", "bfloat16", "float16", "float32"),
    "complex64": ("complex64", "float32"),
    "complex128": ("complex128", "float64"),
    "int8": ("int8", "bfloat16", "float16", *_INTEGERS),
    "uint8": ("uint8", "int8", "bfloat16", "float16", *_INTEGERS),
    "int4": ("int4", "int8", "bfloat16", "float16", *_INTEGERS),
    "uint4": ("uint4", "int8", "bfloat16", "float16", *_INTEGERS),
    "int2": ("int2", "int8", "bfloat16", "float16", *_INTEGERS),
    "uint2": ("uint2", "int8", "bfloat16", "float16", *_INTEGERS),
    "int16": ("int16", *_INTEGERS),
    "uint16": ("uint16", *_INTEGERS),
    "int32": _INTEGERS,
    "uint32": _INTEGERS,
    "int64": ("int64", *_INTEGERS),
    "uint64": ("uint64", *_INTEGERS),
    "bool": ("bool", *_INTEGERS),
    "string": ("string", *_INTEGERS),
}


@dataclass(frozen=True)
class MemoryLevel:
    """One level of the memory hierarchy, as all processors together see it."""

    name: str
    capacity_bytes: float
    """Of the whole device: a per-processor scratchpad is given as the sum over processors."""
    bandwidth_bytes_per_s: float
    efficiency: float
    """Highest fraction of the bandwidth that real streams reach."""
    latency_s: float
    """Time until the stream flows: t = latency + bytes / (efficiency * bandwidth)."""
    processor_bytes_per_s: float | None = None
    """What one processor alone can draw; None when a single one can saturate the level."""
    keeps_bytes: float = 0.0
    """Operands up to this size, those of one kernel together, are still here from the kernels before
    and need not come from farther levels; 0: nothing is kept between kernels."""

    @property
    def sustained_bytes_per_s(self) -> float:
        """Bandwidth that a long stream over all processors reaches."""
        return self.bandwidth_bytes_per_s * self.efficiency


@dataclass(frozen=True)
class Protocol:
    """A way to move a message over a link: trades latency for bandwidth."""

    name: str
    efficiency: float
    """Fraction of the link's bandwidth that a long message reaches."""
    base_latency_s: float
    """Once per collective: start, synchronisation, teardown."""
    step_latency_s: float
    """Per step of the algorithm (one hop of a ring, one level of a tree)."""
    algorithms: tuple[str, ...] = ("ring", "tree")
    """The algorithms that can use it."""


@dataclass(frozen=True)
class Link:
    """A network that joins devices, from the innermost (a node) to the outermost (a cluster)."""

    name: str
    kind: str
    devices: int | None
    """How many devices one domain of it joins; None when there is no such limit."""
    bandwidth_bytes_per_s: float
    """One way: of a port to the switch, of all wires of a device together, of one wire of a grid."""
    algorithms: tuple[str, ...]
    """Collective algorithms available on it: 'ring', 'tree', 'in_network', 'nvls', 'pairwise'."""
    protocols: tuple[Protocol, ...]
    local_bytes_per_s: float | None = None
    """Rate at which a collective's kernel passes the message through the device itself, which does
    not overlap with the wire; None when that is not a limit."""
    processor_share: float = 0.0
    """Share of the device's processors that a collective's kernel occupies while it moves data."""
    topology: str = SWITCH
    """'switch': a port for each device; 'uplink': it joins the switches of the link below, so that what
    crosses it passes that one too; 'direct': a wire to each other device; 'grid': one to each neighbour
    in `dims`."""
    shared_by: int = 1
    """Devices that share one port."""
    dims: tuple[int, ...] = ()
    """Sides of a grid, innermost first, in devices or domains of the link below."""
    wraps: int | None = None
    """Of a grid: runs of a multiple of this many close to a ring; None: they never do."""

    @property
    def device_bytes_per_s(self) -> float:
        """Nominal bandwidth of all that one device has of the link while all of them use it."""
        wires = 2 * len(self.dims) if self.dims else 1
        return self.bandwidth_bytes_per_s * wires / self.shared_by


@dataclass(frozen=True)
class Clock:
    """The processors' clock."""

    base_hz: float
    """The clock that is warranted: an idle card works at it until it has been busy for a while."""
    boost_hz: float
    """The clock of the peaks."""


@dataclass(frozen=True)
class Launch:
    """What it costs to start a kernel."""

    device_latency_s: float
    """Between the end of one kernel and useful work of the next, when launches are queued."""
    host_s: float
    """Time the host needs to issue one operator; the device waits for it unless it is hidden
    (`costing.host`)."""
    hidden: bool
    """Whether launches are recorded once and replayed (CUDA graphs, ahead-of-time programs)."""
    switch_s: float = 0.0
    """What a kernel takes longer after a different one than when it runs again and again, as in a
    benchmark: its instructions and operands are cold, and it waits for the last of the other."""
    view_s: float = 0.0
    """Time the host needs for an operator that only looks at a tensor otherwise and launches nothing."""

    @property
    def least_s(self) -> float:
        """The shortest time from one issued kernel to the next, however little it does."""
        return self.device_latency_s + self.switch_s


@dataclass(frozen=True)
class Hardware:
    """A device together with the links that join several of it."""

    name: str
    title: str
    engines: tuple[Engine, ...]
    memory: tuple[MemoryLevel, ...]
    """From the nearest to the farthest; the last holds the model."""
    links: tuple[Link, ...]
    """From the innermost to the outermost; empty for a device that stands alone."""
    launch: Launch
    sources: Mapping[str, str] = field(default_factory=dict)
    """For each key path of the file, where its number comes from."""
    path: str = ""
    energy: Energy | None = None
    """None where nothing is known of the device's power."""
    clock: Clock | None = None
    """None where it is not known, or the same at all times."""
    runtime: Runtime | None = None
    """None where nothing is known of what a framework takes of the memory."""

    @property
    def main_memory(self) -> MemoryLevel:
        """The level that holds parameters and activations; its capacity is what has to fit them."""
        return self.memory[-1]

    def with_launches(self, *, replayed: bool) -> Hardware:
        """The same device whose launches are recorded once and replayed, or issued one by one."""
        return replace(self, launch=replace(self.launch, hidden=replayed))

    def at_base_clock(self) -> Hardware:
        """The same device before it raises its clock, as in benchmarks that let it rest between calls.

        Engines and caches run at the processors' clock, main memory and links have their own.
        """
        if self.clock is None:
            return self
        clock = self.clock.base_hz / self.clock.boost_hz
        engines = tuple(
            replace(
                engine,
                peak_flops={name: rate * clock for name, rate in engine.peak_flops.items()},
                tile_overhead_s=engine.tile_overhead_s / clock,
            )
            for engine in self.engines
        )
        caches = tuple(
            replace(
                level,
                bandwidth_bytes_per_s=level.bandwidth_bytes_per_s * clock,
                processor_bytes_per_s=None
                if level.processor_bytes_per_s is None
                else level.processor_bytes_per_s * clock,
            )
            for level in self.memory[:-1]
        )
        return replace(self, engines=engines, memory=(*caches, self.main_memory), clock=None)

    def level(self, name: str) -> MemoryLevel:
        """The memory level of that name.

        Raises:
            HardwareError: if there is none.
        """
        for level in self.memory:
            if level.name == name:
                return level
        known = did_you_mean(name, [level.name for level in self.memory])
        raise HardwareError(f"{self.name} has no memory level {name!r}; {known}")

    def engine_for(self, kind: str, dtype: DType) -> Engine:
        """The engine that runs work of `kind` on `dtype` fastest.

        Matrix work in a dtype that no matrix engine takes runs on a vector engine, as libraries do:
        so do integers wider than 8 bits, whose products no narrow float of a matrix engine holds.

        Raises:
            HardwareError: if no engine can run it.
        """
        takes = [e for e in self.engines if kind in e.kinds and e.supports(dtype)]
        if kind == MATRIX and not dtype.is_float and dtype.bits > 8:
            takes = [e for e in takes if VECTOR in e.kinds or dtype.label in e.peak_flops]
        if not takes:
            takes = [e for e in self.engines if VECTOR in e.kinds and e.supports(dtype)]
        if not takes:
            takes = [e for e in self.engines if e.supports(dtype)]
        if not takes:
            raise HardwareError(
                f"{self.name}: no engine takes {dtype.label}; add a peak for it to {self.path}"
            )
        return max(takes, key=lambda engine: engine.sustained(dtype))

    def ridge_point(self, dtype: DType, kind: str = MATRIX) -> float:
        """FLOP per byte of main memory at which the sustained compute and memory times meet."""
        engine = self.engine_for(kind, dtype)
        return engine.sustained(dtype) / self.main_memory.sustained_bytes_per_s
