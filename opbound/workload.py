"""How a global batch becomes micro-batches: what is imported, and how often it runs."""

from __future__ import annotations

from dataclasses import dataclass

from graph_ir.errors import MeshError
from opbound.options import Options

PIPELINE_FILL = 4
"""Micro-batches per pipeline stage where no batch is given: GPipe (Huang et al. 2019, arXiv
1811.06965, section 2.3) finds the bubble negligible from four times the number of stages on."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes of a step."""

    traced: int | None
    """Samples in the imported graph: one micro-batch of every data-parallel replica together; None
    keeps the model's own batch."""
    microbatches: int
    """Micro-batches that each replica works on in a step."""


def workload_of(options: Options) -> Workload:
    """Divides the batch over replicas and micro-batches.

    Without `microbatch`, a pipeline in training takes samples one by one (as many as share them in a
    tensor-parallel grid), everything else the whole batch at once.

    Raises:
        MeshError: if the batch does not divide.
    """
    # An expert-parallel group works on samples of its own, as data-parallel replicas do.
    replicas = options.parallel.get("dp", 1) * options.parallel.get("ep", 1)
    # The rows and layers of a tensor-parallel grid share out the samples of one micro-batch.
    summa = options.tensor_grid != "stationary" and options.mode == "training"
    rows = options.parallel.get("tp_rows", 1) if summa or options.tensor_grid == "summa" else 1
    least = rows * options.parallel.get("tp_depth", 1)
    stages = options.parallel.get("pp", 1)
    pipelined = stages > 1 and options.mode == "training"
    if options.batch is None:
        if options.microbatch is None and replicas == least == 1 and not pipelined:
            return Workload(None, 1)
        traced = replicas * (options.microbatch or least)
        return Workload(traced, PIPELINE_FILL * stages if pipelined else 1)
    if options.batch % replicas:
        raise MeshError(
            f"{replicas} replicas (dp times ep) do not divide the batch of {options.batch}: "
            f"use --batch {-(-options.batch // replicas) * replicas}"
        )
    share = options.batch // replicas
    microbatch = options.microbatch or (least if pipelined else share)
    if share % microbatch:
        raise MeshError(
            f"microbatch={microbatch} does not divide the {share} samples of a replica "
            f"(batch {options.batch}, dp={replicas}): choose a divisor of {share}"
        )
    return Workload(replicas * microbatch, share // microbatch)
