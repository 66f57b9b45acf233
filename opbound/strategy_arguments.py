"""Options that say how a mesh axis is used, not how large it is."""

from __future__ import annotations

import argparse
from typing import Any

from graph_ir.errors import MeshError


def add_strategy_details(group: argparse._ArgumentGroup) -> None:
    """Adds the options to the parser's group."""
    group.add_argument(
        "--context-parallel",
        metavar="ulysses|allgather|ring|ulysses:N+ring",
        help="how attention sees all tokens over cp: heads exchanged for tokens, keys and values gathered, "
        "or handed round while it works; N neighbours exchange heads inside a ring (default: ulysses "
        "where the heads divide, else allgather)",
    )
    group.add_argument(
        "--shard-group",
        type=int,
        metavar="N",
        help="with --zero: split what is stored over N neighbours, with copies beyond them (hybrid "
        "sharding); default: over all replicas",
    )
    group.add_argument(
        "--no-prefetch",
        action="store_true",
        help="with --zero 3: gather a block's weights when it needs them, not while the one before works",
    )
    group.add_argument(
        "--no-overlap",
        action="store_true",
        help="collectives and kernels take turns, as where gradients are reduced after the backward pass and "
        "tensor parallelism blocks (Megatron-LM until 2021)",
    )
    group.add_argument(
        "--gradient-dtype",
        metavar="NAME",
        help="dtype in which weights' gradients are kept and summed over micro-batches and ranks: fp32, as "
        "in Megatron-LM with bf16 (default: the weights' own)",
    )
    group.add_argument(
        "--async-tp",
        action="store_true",
        help="with --sequence-parallel: gather and scatter the tokens in pieces, each while the product of "
        "another piece runs",
    )
    group.add_argument(
        "--tensor-grid",
        choices=("summa", "stationary"),
        help="with --parallel tp=ROWSxCOLUMNS: samples are split over rows and weights gathered (2D, with "
        "xDEPTH 2.5D), or weights stay and activations are reduced (default: summa in training, else "
        "stationary)",
    )
    group.add_argument(
        "--mesh-order",
        metavar="tp,cp,ep,dp,pp",
        help="axes from neighbouring devices outwards (default: tp,tp_rows,tp_depth,cp,ep,dp,pp)",
    )


def strategy_details(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said, as fields of `Options`; empty for a command without these options.

    Raises:
        MeshError: if the order of the mesh cannot be read.
    """
    if not hasattr(arguments, "mesh_order"):
        return {}
    return {
        "context_parallel": arguments.context_parallel or "",
        "shard_group": arguments.shard_group or 0,
        "prefetch": not arguments.no_prefetch,
        "overlap": not arguments.no_overlap,
        "gradient_dtype": arguments.gradient_dtype,
        "async_tp": arguments.async_tp,
        "tensor_grid": arguments.tensor_grid or "",
        "mesh_order": parse_mesh_order(arguments.mesh_order),
    }


def parse_mesh_order(text: str | None) -> tuple[str, ...]:
    """Reads 'tp,dp,pp'.

    Raises:
        MeshError: if an axis is named twice.
    """
    names = tuple(filter(None, (name.strip() for name in (text or "").split(","))))
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise MeshError(f"--mesh-order: the axis {twice[0]!r} is given twice")
    return names
