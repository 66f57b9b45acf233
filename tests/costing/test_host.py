"""A device that waits for the host: against a clock that walks through every launch."""

from dataclasses import replace

import numpy as np
import pytest

from costing.hardware_file import load_hardware
from costing.host import issued_by_host
from costing.kernels import eager_groups, price_graph
from costing.op_cost import OpCost
from costing.schedule import Schedule
from costing.step import step_cost
from graph_ir.fold import fold
from graph_ir.graph import Graph, GraphBuilder, Node
from graph_ir.tensor_type import DType, TensorType

A100 = load_hardware("a100-sxm-80gb")
ISSUED = A100.with_launches(replayed=False)
HOST_S = A100.launch.host_s


def layers(count: int, width: int, *, head: int = 0) -> Graph:
    """Layers of a product and two functions, after as many `head` functions of a small tensor."""
    b = GraphBuilder()
    x = b.add_input("x", TensorType((64, width), DType.BFLOAT16))
    for i in range(head):
        (x,) = b.emit("tanh", [x], [x.type], name=f"head{i}")
    for i in range(count):
        w = b.add_input(f"w{i}", TensorType((width, width), DType.BFLOAT16), "parameter")
        (x,) = b.emit("linear", [x, w], [x.type], name=f"layers.{i}.fc")
        (x,) = b.emit("relu", [x], [x.type], name=f"layers.{i}.act")
        (x,) = b.emit("tanh", [x], [x.type], name=f"layers.{i}.gate")
    return b.build([x])


def walked_s(graph: Graph, costs: dict[Node, OpCost]) -> float:
    """When the last kernel ends, launch by launch; the graph is not folded."""
    issued = done = 0.0
    for node in graph.nodes:
        issued += HOST_S
        done = max(done, issued) + costs[node].time_s
    return done


def total_s(graph: Graph, costs: dict[Node, OpCost]) -> float:
    return sum(costs[node].time_s * node.count for node in graph.nodes)


@pytest.mark.parametrize("width", [64, 1024, 4096, 8192])
def test_the_step_ends_when_the_last_launch_lets_it(width: int) -> None:
    graph = layers(6, width, head=2)
    costs = price_graph(graph, ISSUED)
    waiting = issued_by_host(graph, ISSUED, costs, eager_groups(graph))
    assert total_s(graph, waiting) == pytest.approx(walked_s(graph, costs))
    folded = fold(graph)
    assert any(node.count > 1 for node in folded.nodes)
    whole = step_cost([folded], ISSUED, Schedule("1f1b"))
    assert whole.step_time_s == pytest.approx(walked_s(graph, costs))


def test_a_lead_gained_behind_long_kernels_is_used_up_by_short_ones() -> None:
    graph = layers(1, 8192)
    costs = price_graph(graph, ISSUED)
    slow = dict(zip(graph.nodes, np.array([10.0, 0.1, 0.1]) * HOST_S, strict=True))
    costs = {node: replace(cost, time_s=slow[node]) for node, cost in costs.items()}
    waiting = issued_by_host(graph, ISSUED, costs, eager_groups(graph))
    # Only the first launch is waited for: behind it lie two more, and the kernel takes ten.
    assert total_s(graph, waiting) == pytest.approx(11.2 * HOST_S)


def test_short_kernels_are_bound_by_the_host_and_long_ones_are_not() -> None:
    short, long = (layers(8, width) for width in (64, 16384))
    bounds = [
        {
            cost.bound
            for cost in issued_by_host(g, ISSUED, price_graph(g, ISSUED), eager_groups(g)).values()
        }
        for g in (short, long)
    ]
    assert bounds[0] == {"host"}
    assert "compute" in bounds[1] or "memory:dram" in bounds[1]
    for cost in issued_by_host(
        short, ISSUED, price_graph(short, ISSUED), eager_groups(short)
    ).values():
        assert cost.time_s == pytest.approx(HOST_S, rel=0.03)  # the last kernel runs on
        assert all(cost.time_s >= seconds for seconds in cost.terms.values())


@pytest.mark.parametrize("kernel_s", [0.2 * HOST_S, 1.2 * HOST_S])
def test_views_hold_the_host_up(kernel_s: float) -> None:
    b = GraphBuilder()
    x = b.add_input("x", TensorType((64, 64), DType.BFLOAT16))
    for _ in range(10):
        (x,) = b.emit("tanh", [x], [x.type])
        for _ in range(2):
            (x,) = b.emit("reshape", [x], [x.type], {"view": True})
    graph = b.build([x])
    costs = price_graph(graph, ISSUED)
    costs = {n: replace(c, time_s=kernel_s if c.time_s else 0.0) for n, c in costs.items()}
    waiting = issued_by_host(graph, ISSUED, costs, eager_groups(graph))
    views_s = 18 * A100.launch.view_s  # those behind the last kernel hold nothing up
    assert views_s > 0
    assert total_s(graph, waiting) == pytest.approx(10 * HOST_S + views_s + kernel_s)


def test_replayed_launches_wait_for_nobody() -> None:
    graph = layers(3, 64)
    costs = price_graph(graph, A100)
    assert issued_by_host(graph, A100, costs, eager_groups(graph)) == costs
    assert price_graph(graph, ISSUED) == costs
