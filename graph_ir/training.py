"""The graph of one training step: forward, backward, and the optimizer's update of every parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graph_ir.backward import derive_backward
from graph_ir.errors import OpboundError
from graph_ir.graph import Block, Graph, Value
from graph_ir.recompute import recompute_policy
from graph_ir.tensor_type import DType, TensorType


@dataclass(frozen=True)
class Optimizer:
    """What an optimizer keeps per parameter."""

    op: str
    state: Callable[[DType], tuple[tuple[str, DType], ...]]
    """Parameter dtype -> (name, dtype) of each state tensor, all of the parameter's shape."""


def _adamw_state(parameter: DType) -> tuple[tuple[str, DType], ...]:
    """Two moments in fp32, and a master copy of narrower parameters.

    Source: mixed precision, Micikevicius et al. 2018, arXiv 1710.03740, section 3.1.
    """
    moments = (("exp_avg", DType.FLOAT32), ("exp_avg_sq", DType.FLOAT32))
    return moments if parameter.bits >= 32 else (*moments, ("master", DType.FLOAT32))


def _sgd_state(parameter: DType) -> tuple[tuple[str, DType], ...]:
    """Without momentum: only the master copy of narrow parameters."""
    return () if parameter.bits >= 32 else (("master", DType.FLOAT32),)


OPTIMIZERS = {"adamw": Optimizer("adamw", _adamw_state), "sgd": Optimizer("sgd", _sgd_state)}


def training_graph(graph: Graph, *, optimizer: str = "adamw", recompute: str = "none") -> Graph:
    """Adds backward pass and optimizer to a forward graph.

    Args:
        graph: forward graph; if it has a scalar result, that is the loss.
        optimizer: a key of `OPTIMIZERS`.
        recompute: 'none', 'selective' or 'full'.

    Raises:
        OpboundError: if an option is unknown, or no result depends on a trainable weight.
    """
    if optimizer not in OPTIMIZERS:
        raise OpboundError(f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    rule = OPTIMIZERS[optimizer]
    backward = derive_backward(graph, recompute_policy(recompute))
    builder = backward.builder
    blocks: list[Block] = list(backward.blocks)
    updated: list[Value] = []
    readers = {v: node for node in reversed(graph.nodes) for v in node.inputs}
    for parameter, gradient in backward.gradients.items():
        states = [
            builder.add_input(
                f"{parameter.name}.{name}",
                TensorType(parameter.type.shape, dtype),
                "state",
                count=parameter.count,
            )
            for name, dtype in rule.state(parameter.type.dtype)
        ]
        reader = readers[parameter]
        leaf = f"{parameter.name.rpartition('.')[2]}.{rule.op}"
        updated += builder.emit(
            rule.op,
            [parameter, gradient, *states],
            [parameter.type, *(s.type for s in states)],
            name=f"{parameter.name}.{rule.op}",
            module=reader.module,
            phase="optimizer",
            count=parameter.count,
            instances=tuple(f"{name}.{leaf}" for name in reader.instances),
            instance_modules=reader.instance_modules,
            origin=reader.name,
        )
    return builder.build([*graph.outputs, *updated], blocks)
