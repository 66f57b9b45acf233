"""What an analysis is asked for. The command line and `opbound.analyze` share these names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from types import MappingProxyType
from typing import Any

from graph_ir.errors import MeshError, OpboundError, did_you_mean

MODES = ("inference", "training", "generation")
AXES = ("dp", "tp", "pp")
RECOMPUTE = ("none", "selective", "full", "fit")
BALANCES = ("time", "memory", "fit")
OPTIMIZERS = ("adamw", "sgd")
EXECUTION = ("eager", "pointwise", "fused")
LAUNCHES = ("replayed", "issued")
ZERO_STAGES = (0, 1, 2, 3)
SCHEDULES = ("gpipe", "1f1b", "zb-h1", "zb-v", "dualpipe")

DEFAULT_HARDWARE = "h100-sxm-80gb"
DEFAULT_PROMPT_TOKENS = 512
DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One analysis: sizes, machine, strategy and execution.

    Raises:
        OpboundError: when made with a value that no analysis could use; the message names the
            option and what it takes.
    """

    hardware: str = DEFAULT_HARDWARE
    """A shipped device or cluster, or the path of a YAML file."""
    mode: str = "inference"
    prompt_tokens: int | None = None
    """Tokens of the prefill; generation only, where None means DEFAULT_PROMPT_TOKENS."""
    new_tokens: int | None = None
    """Decode steps; generation only, where None means DEFAULT_NEW_TOKENS."""
    batch: int | None = None
    """Samples in the global batch; None keeps the model's own size."""
    sequence: int | None = None
    """Tokens per sample; None keeps the model's own length."""
    dims: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Sizes of named dynamic dims."""
    trip_counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """How often loops of an ONNX model run, by name, where the data decides it."""
    branches: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Which branch of an If counts, `then` or `else`, by name."""
    values: Mapping[str, Sequence[float]] = field(default_factory=lambda: MappingProxyType({}))
    """What tensors hold on which shapes depend, by name."""
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=lambda: MappingProxyType({}))
    """Shapes of inputs, by name."""
    dtype: str | None = None
    """Replaces the model's floating-point dtypes, for example bf16."""
    parallel: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Size of each mesh axis: dp, tp, pp, and those of `partitioner/strategies`; 1 where not named."""
    auto: int | None = None
    """Devices for which the fastest strategy is searched, 0: those of one node; None: no search."""
    sequence_parallel: bool = False
    zero: int = 0
    shard_group: int = 0
    """With ZeRO: ranks that what is stored is split over; 0: all that see other data."""
    prefetch: bool = True
    """With ZeRO-3: a block's weights are gathered while the block before works."""
    overlap: bool = True
    """Collectives run beside kernels, and those of different links beside each other."""
    gradient_dtype: str | None = None
    """Of weights' gradients and their sums; training only, where None means the weights' own."""
    context_parallel: str = ""
    """ulysses, allgather, ring or ulysses:N+ring; empty: ulysses where the heads divide."""
    async_tp: bool = False
    """With sequence parallelism: tokens are gathered and scattered in pieces beside the products."""
    tensor_grid: str = ""
    """How rows of tensor parallelism are used: summa or stationary; empty: summa in training only."""
    mesh_order: Sequence[str] = ()
    """Mesh axes from neighbouring devices outwards; empty: tp, cp, ep, dp, pp."""
    microbatch: int | None = None
    """Samples of one micro-batch on one data-parallel rank."""
    schedule: str = "1f1b"
    """Order of a pipeline's work: one of `SCHEDULES`, or interleaved:V with V stages per rank."""
    stages: Sequence[int] = ()
    """Repeated layers of each pipeline stage; empty to balance them."""
    balance: str = "time"
    """What the worst pipeline stage gets least of: time, memory, or (fit) time as far as memory allows."""
    recompute: str = "none"
    """none, selective, full, or (fit) on each pipeline rank the cheapest of them that fits its memory."""
    optimizer: str | None = None
    """adamw or sgd; training only, where None means adamw."""
    execution: str = "eager"
    launches: str | None = None
    """replayed (recorded once, as CUDA graphs) or issued by the host; None: as the device's file says."""
    expert_imbalance: float = 1.0
    """Tokens of the busiest expert (of the busiest rank, where experts are split) over the mean."""
    allow_unknown: bool = False
    """Keep operators without a record as rows that say `unknown`, in place of an error."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("recompute", self.recompute, RECOMPUTE),
            ("balance", self.balance, BALANCES),
            ("optimizer", self.optimizer or "adamw", OPTIMIZERS),
            ("execution", self.execution, EXECUTION),
            ("launches", self.launches or "replayed", LAUNCHES),
        ):
            if value not in known:
                raise OpboundError(f"{name}={value!r} does not exist; {did_you_mean(value, known)}")
        if self.zero not in ZERO_STAGES:
            raise OpboundError(f"zero={self.zero!r} does not exist; known: 0, 1, 2, 3")
        if (
            not isinstance(self.expert_imbalance, int | float)
            or not 1 <= self.expert_imbalance < inf
        ):
            raise OpboundError(
                f"expert_imbalance={self.expert_imbalance!r} is no such ratio: the busiest expert gets "
                f"at least the mean, so give 1 or more"
            )
        check_schedule(self.schedule)
        if self.auto is not None and self.parallel:
            raise OpboundError("parallel is given both as auto and as sizes: leave one of them out")
        if (self.stages or self.balance != "time") and self.parallel.get("pp", 1) == 1:
            given = "stages" if self.stages else "balance"
            raise OpboundError(f"{given} shares out a pipeline's layers: add pp=N to parallel")
        if self.balance == self.recompute == "fit":
            raise OpboundError("balance=fit and recompute=fit both make a step fit: choose one")
        self._check_sizes()
        self._check_mode()

    def _check_sizes(self) -> None:
        sizes: dict[str, object] = {
            "batch": self.batch,
            "sequence": self.sequence,
            "microbatch": self.microbatch,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            **{f"dim {name}": size for name, size in self.dims.items()},
        }
        for name, size in sizes.items():
            if size is not None and not _is_size(size):
                raise OpboundError(f"{name}={size!r} is not a size: give a positive whole number")
        for axis, size in self.parallel.items():
            check_axis(axis, size)

    def _check_mode(self) -> None:
        generation = {"prompt_tokens": self.prompt_tokens, "new_tokens": self.new_tokens}
        training = {
            "optimizer": self.optimizer,
            "gradient_dtype": self.gradient_dtype,
            "recompute": None if self.recompute == "none" else self.recompute,
        }
        for mode, only in (("generation", generation), ("training", training)):
            for name, value in only.items():
                if value is not None and self.mode != mode:
                    raise OpboundError(
                        f"{name}={value} means nothing in {self.mode} mode: "
                        f"leave it out or use mode {mode}"
                    )

    def to_plain(self) -> dict[str, Any]:
        """What differs from the defaults, as a report keeps it: `from_plain` makes the same options."""
        plain: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            value = dict(value) if isinstance(value, Mapping) else value
            if value and value != entry.default:
                plain[entry.name] = value
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Options:
        """Reads `to_plain`'s result back.

        Raises:
            OpboundError: if a newer version wrote an option that this one does not know.
        """
        strange = sorted(set(plain) - {entry.name for entry in fields(cls)})
        if strange:
            raise OpboundError(
                f"the report was made with options that this opbound does not know: "
                f"{', '.join(strange)}; analyse the model again"
            )
        return cls(**plain)

    @property
    def devices(self) -> int:
        """How many devices the mesh has."""
        count = 1
        for size in self.parallel.values():
            count *= size
        return count


def parse_parallel(text: str) -> dict[str, int]:
    """Reads 'dp=2,tp=8,pp=4'; 'tp=4x2' is tp=2,tp_rows=4, and 'tp=4x2x2' has a tp_depth of 2 as well.

    Raises:
        MeshError: naming the axis that is wrong.
    """
    axes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        axis, equals, size = (piece.strip() for piece in part.partition("="))
        grid = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", size) if axis == "tp" else None
        if not equals or not (grid or (size.isascii() and size.isdecimal())):
            raise MeshError(
                f"--parallel: {part!r} is not AXIS=SIZE: write it as dp=2,tp=8,pp=4, or tp=4x4 for tensor "
                "parallelism over rows and columns"
            )
        if grid is None:
            sizes = {axis: int(size)}
        else:
            rows, columns, depth = (int(n or 1) for n in grid.groups())
            sizes = {"tp": columns, "tp_rows": rows, "tp_depth": depth}
            sizes = {name: n for name, n in sizes.items() if name == "tp" or n != 1}
        for name, n in sizes.items():
            if name in axes:
                raise MeshError(f"--parallel: the axis {name!r} is given twice")
            check_axis(name, n)
            axes[name] = n
    if not axes:
        raise MeshError("--parallel names no axis: write it as dp=2,tp=8,pp=4")
    return axes


def parallel_options(text: str | None) -> tuple[dict[str, int], int | None]:
    """Reads 'dp=2,tp=8', 'auto' or 'auto:64' into the options `parallel` and `auto`.

    Raises:
        MeshError: if it is none of them.
    """
    word, colon, devices = (text or "").strip().partition(":")
    if word != "auto":
        return ({} if text is None else parse_parallel(text)), None
    if colon and not re.fullmatch(r"[1-9]\d{0,5}", devices):
        raise MeshError(f"--parallel {text!r}: write auto, or auto:64 for a number of devices")
    return {}, int(devices or 0)


def check_axis(axis: str, size: object) -> None:
    """Raises MeshError unless `axis` exists and `size` is a positive whole number."""
    if axis not in AXES and axis not in (known := _all_axes()):
        raise MeshError(f"parallel: there is no axis {axis!r}; {did_you_mean(axis, known)}")
    if not _is_size(size):
        raise MeshError(f"parallel: axis {axis}={size!r} is not a positive whole number")


def _all_axes() -> tuple[str, ...]:
    """The built-in axes, and those that further strategies bring."""
    from partitioner.strategies import split_passes

    return (*AXES, *(step.axis for step in split_passes() if step.axis is not None))


def parse_stages(text: str) -> tuple[int, ...]:
    """Reads '10,12,12,10', the layers of each pipeline stage.

    Raises:
        OpboundError: if the text has another form.
    """
    counts = [piece.strip() for piece in text.split(",")]
    if not all(c.isdecimal() and c.isascii() and int(c) > 0 for c in counts):
        raise OpboundError(
            f"--stages {text!r} is not a list of positive numbers: write it as --stages 10,12,12,10"
        )
    return tuple(map(int, counts))


def parse_dim(text: str) -> tuple[str, int]:
    """Reads 'NAME=INT', the size of a dynamic dim.

    Raises:
        OpboundError: if the text has another form.
    """
    name, equals, size = (piece.strip() for piece in text.rpartition("="))
    if not name or not equals or not size.isdecimal() or int(size) < 1:
        raise OpboundError(f"--dim {text!r} is not NAME=INT: write it as --dim height=640")
    return name, int(size)


def check_schedule(text: str) -> None:
    """Raises OpboundError unless `text` names a pipeline schedule."""
    if text in SCHEDULES or re.fullmatch(r"interleaved:[1-9]\d{0,5}", text):
        return
    if text.startswith("interleaved"):
        raise OpboundError(
            f"schedule={text!r}: say how many chunks a stage has, for example interleaved:2"
        )
    known = ", ".join(SCHEDULES)
    raise OpboundError(f"schedule={text!r} does not exist; known: {known} or interleaved:V")


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0
