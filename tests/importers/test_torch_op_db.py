"""Every operator of torch's own test database, imported as a small module and compared with torch."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("expecttest", reason="torch's test database needs the package expecttest")

from torch.testing._internal.common_methods_invocations import op_db

import importers
from graph_ir.errors import OpboundError

# torch's counter has no formula for these products.
_UNCOUNTED = frozenset(
    "addmv addbmm dot vdot mv matmul __rmatmul__ einsum inner tensordot "
    "nn.functional.bilinear linalg.vecdot linalg.multi_dot cdist nn.functional.linear".split()
)
# What they choose depends on contents: the trace keeps the largest choice.
_DATA_SIZED = frozenset("masked_select nonzero argwhere unique unique_consecutive".split())


class Sample(torch.nn.Module):
    """One operator with one sample's arguments; its tensors are the module's inputs."""

    def __init__(self, op: Any, sample: Any) -> None:
        super().__init__()
        self.op = op
        given = (sample.input, tuple(sample.args), dict(sample.kwargs))
        self.leaves, self.form = torch.utils._pytree.tree_flatten(given)
        self.places = [i for i, v in enumerate(self.leaves) if isinstance(v, torch.Tensor)]
        self.tensors = tuple(self.leaves[i].detach() for i in self.places)

    def forward(self, *tensors: Any) -> Any:
        leaves = list(self.leaves)
        for i, tensor in zip(self.places, tensors, strict=True):
            leaves[i] = tensor
        first, args, kwargs = torch.utils._pytree.tree_unflatten(leaves, self.form)
        return self.op(first, *args, **kwargs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("info", op_db, ids=lambda info: f"{info.name}-{info.variant_test_name}")
def test_an_operator_is_imported_or_refused_in_one_line(info: Any) -> None:
    dtype = torch.float32 if torch.float32 in info.dtypes else torch.int64
    if dtype not in info.dtypes or info.name.startswith(("jiterator", "sparse")):
        pytest.skip("has no samples of dense numbers on a CPU")
    for sample in islice(info.sample_inputs("cpu", dtype), 2):
        module = Sample(info.op, sample).eval()
        if module.tensors:
            _compare(info, module)


def _compare(info: Any, module: Sample) -> None:
    with torch.no_grad():
        wanted = module(*(t.clone() for t in module.tensors))
    shapes = {
        tuple(t.shape)
        for t in torch.utils._pytree.tree_leaves(wanted)
        if isinstance(t, torch.Tensor)
    }
    try:
        graph = importers.load(module, example_inputs=module.tensors, allow_unknown=True).graph
    except OpboundError:
        # Refused, in words; anything else that is raised fails the test.
        return
    if info.name not in _DATA_SIZED:
        assert {v.type.shape for v in graph.outputs} == shapes
    moving = [n for n in graph.nodes if n.op == "unknown" and any(v.type.bytes for v in n.inputs)]
    assert all(n.bytes_read for n in moving)
    if info.name in _UNCOUNTED or any(n.op == "unknown" for n in graph.nodes):
        return
    kinds = ("contraction", "attention")
    own = sum(n.flops for n in graph.nodes if n.definition.kind in kinds)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(*(t.to("meta") for t in module.tensors))
    except (RuntimeError, NotImplementedError, TypeError):
        return
    assert own == counter.get_total_flops()
