"""Every sample as nodes with numbers: the forward node, and the nodes of its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from op_sample import Sample
from op_samples import SAMPLES

from graph_ir.evaluate import run_graph, run_node
from graph_ir.gradients import GradientBuilder
from graph_ir.graph import Graph, Node, Value
from graph_ir.op_def import all_ops

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A node, the arrays it reads, and what it then computes."""

    label: str
    node: Node
    arrays: tuple[Array, ...]

    def __str__(self) -> str:
        return self.label

    @property
    def results(self) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            return run_node(self.node, self.arrays)


def torch_results(sample: Sample, tensors: list[Any]) -> tuple[Any, ...]:
    assert sample.torch is not None
    found = sample.torch(*tensors)
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def tensors_of(sample: Sample) -> list[Any]:
    return [torch.from_numpy(np.array(a)) for a in sample.arrays]


@dataclass(frozen=True)
class Backward:
    """The gradient graph of one sample, evaluated."""

    graph: Graph
    values: Mapping[Value, Array]
    gradients: tuple[Value | None, ...]
    cotangents: tuple[Array | None, ...]


def has_gradient(sample: Sample) -> bool:
    """Whether there is something to derive, and something to compare it with."""
    wanted = bool(differentiable(sample)) and sample.torch is not None
    return wanted and all_ops()[sample.op].gradient is not None


@cache
def backward(sample: Sample) -> Backward:
    """Builds and evaluates the gradient by the record's rule."""
    wanted = differentiable(sample)
    builder, node = sample.node()
    assert node.definition.gradient is not None
    rng = np.random.default_rng(11)
    carries = [t.is_floating_point() for t in torch_results(sample, tensors_of(sample))]
    carries += [False] * (len(node.outputs) - len(carries))
    cotangents = tuple(
        np.asarray(rng.normal(size=v.type.shape)).astype(v.type.dtype.label) if c else None
        for v, c in zip(node.outputs, carries, strict=True)
    )
    given = dict(zip(node.inputs, sample.arrays, strict=True))
    grads: list[Value | None] = []
    for i, (value, cotangent) in enumerate(zip(node.outputs, cotangents, strict=True)):
        grads.append(None if cotangent is None else builder.add_input(f"dy{i}", value.type))
        if grads[-1] is not None:
            given[grads[-1]] = cotangent
    rule = GradientBuilder(builder, {node.inputs[i] for i in wanted})
    gradients = tuple(node.definition.gradient(rule, node, grads))
    graph = builder.build([g for g in gradients if g is not None])
    with np.errstate(all="ignore"):
        values = run_graph(graph, given)
    return Backward(graph, values, gradients, cotangents)


def differentiable(sample: Sample) -> tuple[int, ...]:
    if sample.differentiable is not None:
        return sample.differentiable
    return tuple(i for i, a in enumerate(sample.arrays) if a.dtype.kind == "f")


def cases() -> Iterator[Case]:
    """The forward nodes of all samples and the nodes of their gradients."""
    for sample in SAMPLES:
        _, node = sample.node()
        yield Case(str(sample), node, sample.arrays)
        if not has_gradient(sample):
            continue
        try:
            found = backward(sample)
        except Exception:  # a broken gradient rule fails its own test, not the collection of all
            continue
        for i, derived in enumerate(found.graph.nodes[1:]):
            arrays = tuple(found.values[v] for v in derived.inputs)
            yield Case(f"{sample}-grad{i}-{derived.op}", derived, arrays)


CASES = list(cases())
