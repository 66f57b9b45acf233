"""Once for real: four processes run their ranks' graphs and talk over gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from ranks import Array, PartitionedRun, group_of, numbers, one_device  # noqa: E402
from small_models import model  # noqa: E402

from graph_ir.graph import Graph, Node, Value  # noqa: E402
from graph_ir.partitioned import PartitionedGraph  # noqa: E402
from graph_ir.sharding import Shard  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

WORLD = 4


def _place(node: Node, what: str) -> Shard:
    attrs = node.attrs
    place = attrs.get(what, (None,))
    zigzag = attrs.get("zigzag") == what
    return Shard(attrs["axis"], attrs["group_size"], attrs["group_stride"], *place, zigzag=zigzag)


class Gloo:
    """Collectives of torch.distributed on the one rank of this process."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        # Every process makes every group, in the same order, as torch.distributed demands.
        layouts = [(2, 1), (2, 2), (4, 1)]
        self.groups: dict[tuple[int, ...], Any] = {}
        for size, stride in layouts:
            for first in range(WORLD):
                members = tuple(group_of(first, size, stride))
                if members not in self.groups:
                    self.groups[members] = dist.new_group(members)

    def collective(
        self, node: Node, operands: Mapping[int, Sequence[Array]]
    ) -> dict[int, list[Array]]:
        members = group_of(self.rank, node.attrs["group_size"], node.attrs["group_stride"])
        group = self.groups[tuple(members)]
        own = [torch.from_numpy(np.array(a)) for a in operands[self.rank]]
        results = [
            self._one(node, x, members, group, value)
            for x, value in zip(own, node.outputs, strict=True)
        ]
        return {self.rank: results}

    def _one(self, node: Node, x: Any, members: list[int], group: Any, out: Value) -> Array:
        index, size = members.index(self.rank), len(members)
        if node.op in ("all_reduce", "reduce_scatter"):
            kind = {"max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
            kind_ = kind.get(node.attrs.get("reduction", "sum"), dist.ReduceOp.SUM)
            dist.all_reduce(x, kind_, group=group)
            whole: Array = x.numpy()
            return whole if node.op == "all_reduce" else _place(node, "split").cut(whole, index)
        if node.op == "all_gather":
            parts = [torch.empty_like(x) for _ in members]
            dist.all_gather(parts, x, group=group)
            return _place(node, "concat").join([p.numpy() for p in parts], out.type.shape)
        if node.op == "all_to_all":
            split = _place(node, "split")
            pieces = [np.ascontiguousarray(split.cut(x.numpy(), i)) for i in range(size)]
            sent = torch.from_numpy(np.stack(pieces))
            received = torch.empty_like(sent)
            dist.all_to_all_single(received, sent, group=group)
            return _place(node, "concat").join(list(received.numpy()), out.type.shape)
        assert node.op == "collective_permute"
        arrived = torch.empty_like(x)
        following, before = members[(index + 1) % size], members[(index - 1) % size]
        request = dist.isend(x, following)
        dist.recv(arrived, before)
        request.wait()
        found: Array = arrived.numpy()
        return found


def _partitioned(mesh: dict[str, int], options: dict[str, Any]) -> tuple[Graph, PartitionedGraph]:
    graph = training_graph(model("separate"))
    return graph, partition(graph, Strategy(Mesh(mesh), **options), lambda n: 1.0)


def _work(rank: int, port: int, cases: list[Any], results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        wire = Gloo(rank)
        for case, (mesh, options) in enumerate(cases):
            graph, parts = _partitioned(mesh, options)
            run = PartitionedRun(graph, parts, numbers(graph), wire, [rank]).runs[0]
            local = {v.name: v for v in parts.stages[0].graph.outputs}
            results[case, rank] = {
                name: [np.asarray(a) for a in run.values[v][rank]] for name, v in local.items()
            }
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_four_processes_compute_what_one_does() -> None:
    cases: list[Any] = [
        ({"tp": 2, "dp": 2}, {"sequence_parallel": True, "zero": 3}),
        ({"cp": 4}, {"context_parallel": "ulysses:2+ring", "zero": 1}),
        ({"tp": 2, "cp": 2}, {"context_parallel": "ring", "sequence_parallel": True}),
    ]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        mp.start_processes(_work, (port, cases, results), WORLD, join=True, start_method="fork")
        found = dict(results)
    graph = training_graph(model("separate"))
    expected = one_device(graph, numbers(graph))
    for case, (mesh, options) in enumerate(cases):
        _, parts = _partitioned(mesh, options)
        compared = 0
        for value in parts.stages[0].graph.outputs:
            whole = next(v for v in graph.outputs if v.name == value.name.removesuffix(".whole"))
            if whole.type.elements == 1:
                continue
            for layer, right in enumerate(expected.values[whole][0]):
                for rank in range(WORLD):
                    part = right
                    for shard in value.shards:
                        part = shard.cut(part, shard.index_of(rank))
                    assert np.allclose(found[case, rank][value.name][layer], part, atol=1e-6), value
                    compared += 1
        assert compared > 100
