"""One operator split in another way: read off a strategy's result, carried out again, run on real numbers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from ranks import PartitionedRun, numbers, one_device
from small_models import model

from graph_ir.graph import Graph, Node
from graph_ir.partitioned import PartitionedGraph
from graph_ir.training import training_graph
from partitioner.alternatives import decisions
from partitioner.mesh import Mesh
from partitioner.partition import partition
from partitioner.strategy import Prices, Strategy


def node_s(node: Node) -> float:
    return 1e-6 + 1e-12 * node.flops + 1e-9 * (node.bytes_read + node.bytes_written)


def sent(parts: PartitionedGraph) -> dict[tuple[str, str], int]:
    """Bytes by collective and pass."""
    found: dict[tuple[str, str], int] = {}
    for node in (n for s in parts.stages for n in s.graph.nodes if n.phase == "communication"):
        key = (node.op, node.during)
        found[key] = found.get(key, 0) + node.count * sum(v.type.bytes for v in node.outputs)
    return found


CASES: list[tuple[str, dict[str, int], dict[str, Any]]] = [
    ("fused", {"tp": 2}, {}),
    ("gpt", {"dp": 2}, {}),
    ("mixture", {"ep": 2}, {}),
]


@pytest.mark.parametrize(("name", "mesh", "options"), CASES)
def test_what_was_decided_is_read_off_the_result(
    name: str, mesh: dict[str, int], options: dict[str, Any]
) -> None:
    graph = training_graph(model(name))
    strategy = Strategy(Mesh(mesh), **options)
    parts = partition(graph, strategy, node_s)
    (decision,) = decisions(graph, strategy, Prices(node_s))
    unknown = product_of(graph)
    again = decision.with_axis(unknown, decision.axis_of(unknown), strategy, node_s)
    assert sent(again) == sent(parts)


@pytest.mark.parametrize(("name", "mesh", "options"), CASES[:2])
def test_another_way_computes_the_same(
    name: str, mesh: dict[str, int], options: dict[str, Any]
) -> None:
    graph = training_graph(model(name))
    strategy = Strategy(Mesh(mesh), **options)
    given = numbers(graph)
    expected = one_device(graph, given)
    (decision,) = decisions(graph, strategy, Prices(node_s))
    unknown = product_of(graph)
    others = decision.alternatives(unknown)
    assert len(others) >= 2
    for axis in others[:2]:
        parts = decision.with_axis(unknown, axis, strategy, node_s)
        assert PartitionedRun(graph, parts, given).check(expected) > len(graph.nodes)


def product_of(graph: Graph) -> Node:
    """A product of a repeated layer."""
    return next(
        n
        for n in graph.nodes
        if n.phase == "forward" and n.count > 1 and n.definition.kind == "contraction"
    )
