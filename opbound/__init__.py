"""Says what limits every operator of a model on the hardware it will run on.

import opbound

report = opbound.analyze("model.onnx", hardware="h100-sxm-80gb", mode="training")
print(report)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError
from opbound._version import __version__

if TYPE_CHECKING:
    from reports import Report

__all__ = ["OpboundError", "Report", "__version__", "analyze"]


def analyze(
    model: object,
    *,
    hardware: str = "h100-sxm-80gb",
    mode: str = "inference",
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    batch: int | None = None,
    sequence: int | None = None,
    dims: Mapping[str, int] | None = None,
    trip_counts: Mapping[str, int] | None = None,
    branches: Mapping[str, str] | None = None,
    values: Mapping[str, Sequence[float]] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    dtype: str | None = None,
    parallel: str | Mapping[str, int] | None = None,
    sequence_parallel: bool = False,
    zero: int = 0,
    shard_group: int = 0,
    prefetch: bool = True,
    overlap: bool = True,
    gradient_dtype: str | None = None,
    context_parallel: str = "",
    async_tp: bool = False,
    tensor_grid: str = "",
    mesh_order: Sequence[str] = (),
    microbatch: int | None = None,
    schedule: str = "1f1b",
    stages: Sequence[int] = (),
    balance: str = "time",
    recompute: str = "none",
    optimizer: str | None = None,
    execution: str = "eager",
    launches: str | None = None,
    expert_imbalance: float = 1.0,
    allow_unknown: bool = False,
    example_inputs: object = None,
) -> Report:
    """Analyses one model and says of every operator what it costs and what bounds it.

    The keyword arguments have the names of the command line's options.

    Args:
        model: path of an ONNX file or of a `.pt2` exported program, `hf:NAME` or
            `hf:path/to/config.json`, `package.module:factory`, or a live `torch.nn.Module`.
        hardware: a shipped device or cluster (`opbound hardware` lists them), or a YAML file.
        mode: `inference`, `training` or `generation`.
        prompt_tokens: tokens of the prefill, in generation mode (512 if not given).
        new_tokens: decode steps, in generation mode (128 if not given).
        batch: samples in the global batch; None keeps the model's own.
        sequence: tokens per sample; None keeps the model's own.
        dims: sizes of named dynamic dims.
        trip_counts: how often loops run whose end the data decides, by name (ONNX models only, as
            the next three).
        branches: which branch of an If counts, `then` or `else`, by name; without it the dearer one.
        values: what tensors hold on which shapes depend, by name.
        input_shapes: shapes of inputs, by name.
        dtype: replaces the model's floating-point dtypes, for example `bf16`.
        parallel: sizes of the mesh axes, as `"dp=2,tp=8,pp=4"` or as a mapping; `"auto:64"` searches the
            fastest strategy for 64 devices.
        sequence_parallel: shard the sequence where tensor parallelism does not.
        zero: ZeRO stage, 0 to 3: what data parallelism shards of the training state.
        shard_group: with ZeRO, the neighbours that what is stored is split over, with copies beyond them
            (hybrid sharding); 0 for all replicas.
        prefetch: with ZeRO-3, a block's weights are gathered while the block before works.
        overlap: collectives run beside kernels, and those of different links beside each other.
        gradient_dtype: of weights' gradients and their sums, for example `fp32`; None for the weights' own.
        context_parallel: how attention sees all tokens: `ulysses`, `allgather`, `ring` or
            `ulysses:N+ring`.
        async_tp: with sequence parallelism, tokens are gathered and scattered beside the products.
        tensor_grid: with `tp=ROWSxCOLUMNS`, `summa` (samples are split over the rows, weights gathered) or
            `stationary` (weights stay, activations are reduced); empty for summa in training only.
        mesh_order: mesh axes from neighbouring devices outwards.
        microbatch: samples of one micro-batch on one data-parallel rank.
        schedule: `gpipe`, `1f1b`, `interleaved:V`, `zb-h1`, `zb-v` or `dualpipe`.
        stages: repeated layers of each pipeline stage; empty to balance them.
        balance: what the worst pipeline stage gets least of: `time`, `memory`, or (`fit`) time as far as
            memory allows.
        recompute: `none`, `selective`, `full`, or (`fit`) on each rank as little as its memory allows.
        optimizer: `adamw` or `sgd`, in training mode (adamw if not given).
        execution: `eager` (one kernel per operator) or `fused`.
        launches: `replayed` (recorded once, as CUDA graphs) or `issued` one by one by the host, for which
            short kernels then wait; None: what the device's file says.
        expert_imbalance: in a mixture of experts, the tokens of the busiest expert (of the busiest rank,
            with expert parallelism) over the mean.
        allow_unknown: keep operators without a record as rows that say `unknown`.
        example_inputs: arguments to trace a live module with.

    Raises:
        OpboundError: if the model, the hardware or an option cannot be used; the message is one
            line that says what, where and what to do.
    """
    from opbound.analysis import run
    from opbound.options import Options, parallel_options

    if parallel is None or isinstance(parallel, str):
        sizes, auto = parallel_options(parallel)
    else:
        sizes, auto = dict(parallel), None
    options = Options(
        hardware=str(hardware),
        mode=mode,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        sequence=sequence,
        dims=dict(dims or {}),
        trip_counts=dict(trip_counts or {}),
        branches=dict(branches or {}),
        values=dict(values or {}),
        input_shapes=dict(input_shapes or {}),
        dtype=dtype,
        parallel=sizes,
        auto=auto,
        sequence_parallel=sequence_parallel,
        zero=zero,
        shard_group=shard_group,
        prefetch=prefetch,
        overlap=overlap,
        gradient_dtype=gradient_dtype,
        context_parallel=context_parallel,
        async_tp=async_tp,
        tensor_grid=tensor_grid,
        mesh_order=mesh_order,
        microbatch=microbatch,
        schedule=schedule,
        stages=stages,
        balance=balance,
        recompute=recompute,
        optimizer=optimizer,
        execution=execution,
        launches=launches,
        expert_imbalance=expert_imbalance,
        allow_unknown=allow_unknown,
    )
    return run(model, options, example_inputs=example_inputs)


def __getattr__(name: str) -> object:
    # Report is only needed to read a saved report: it does not slow `import opbound`.
    if name == "Report":
        from reports import Report

        return Report
    raise AttributeError(f"module 'opbound' has no attribute {name!r}")
