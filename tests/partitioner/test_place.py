"""Placement against brute force: every assignment in every order, on small graphs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_ir.errors import OpboundError
from graph_ir.graph import Graph, GraphBuilder, Node, Value
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph
from partitioner.placing import Placement, exact, place

needs_highs = pytest.mark.skipif(not exact.available(), reason="highspy is not installed")


def graph_of(reads: Sequence[Sequence[int]], sizes: Sequence[int] | None = None) -> Graph:
    """Node i reads the results of the nodes reads[i], or the input; its result has sizes[i] elements."""
    builder = GraphBuilder("random")
    x = builder.add_input("x", TensorType((4,), DType.FLOAT32))
    made: list[Value] = []
    for i, sources in enumerate(reads):
        operands = [made[j] for j in sources] or [x]
        result = TensorType(((sizes or [4] * len(reads))[i],), DType.FLOAT32)
        # What the operator computes is not asked: only times and bytes count.
        op = "relu" if len(operands) == 1 else "concat"
        attrs = {} if len(operands) == 1 else {"axis": 0}
        (value,) = builder.emit(op, operands, [result], attrs, name=f"n{i}")
        made.append(value)
    return builder.build(made[-1:])


def run(
    graph: Graph,
    seconds: Callable[[Node], float],
    devices: int = 2,
    method: str = "exact",
    byte_s: float = 0.0,
) -> Placement:
    kernels = [[n] for n in graph.nodes]
    return place(graph, kernels, seconds, lambda b: b * byte_s, devices, method)


def orders(reads: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    for order in itertools.permutations(range(len(reads))):
        place_of = {node: i for i, node in enumerate(order)}
        if all(place_of[j] < place_of[i] for i, js in enumerate(reads) for j in js):
            yield order


def shortest(
    reads: Sequence[Sequence[int]], seconds: Sequence[float], sends: Sequence[float], devices: int
) -> float:
    """Every assignment, every order."""
    best = float("inf")
    possible = list(orders(reads))
    for device in itertools.product(range(devices), repeat=len(reads)):
        for order in possible:
            end: dict[int, float] = {}
            free = [0.0] * devices
            for i in order:
                ready = [
                    end[j] + (sends[j] if device[j] != device[i] else 0) for j in set(reads[i])
                ]
                end[i] = free[device[i]] = max([free[device[i]], *ready]) + seconds[i]
            best = min(best, max(end.values()))
    return best


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[int]], list[float], list[int], int]:
    count = draw(st.integers(2, 6))
    reads = [
        sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(count)
    ]
    seconds = [float(draw(st.integers(1, 9))) for _ in range(count)]
    sizes = [draw(st.integers(0, 5)) for _ in range(count)]
    return reads, seconds, sizes, draw(st.integers(2, 3))


@needs_highs
@settings(max_examples=60, deadline=None)
@given(problems())
def test_exact_is_the_shortest_of_all(
    problem: tuple[list[list[int]], list[float], list[int], int],
) -> None:
    reads, seconds, sizes, devices = problem
    graph = graph_of(reads, sizes)
    found = run(graph, lambda n: seconds[int(n.name[1:])], devices, byte_s=0.25)
    assert found.makespan_s == pytest.approx(shortest(reads, seconds, sizes, devices))
    assert found.bound_s == pytest.approx(found.makespan_s, rel=1e-4)
    check(found, graph, sizes)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_greedy_is_a_schedule_and_never_the_better_one(
    problem: tuple[list[list[int]], list[float], list[int], int],
) -> None:
    reads, seconds, sizes, devices = problem
    graph = graph_of(reads, sizes)

    def time_of(node: Node) -> float:
        return seconds[int(node.name[1:])]

    greedy = run(graph, time_of, devices, "greedy", 0.25)
    best = run(graph, time_of, devices, "exact", 0.25)
    check(greedy, graph, sizes)
    assert best.makespan_s <= greedy.makespan_s * (1 + 1e-9)
    assert best.greedy_s == pytest.approx(greedy.makespan_s)
    for found in (greedy, best):
        assert 1 - 1e-9 <= found.speedup <= found.work_s / found.critical_path_s * (1 + 1e-9)
        assert found.speedup <= devices * (1 + 1e-9)
        assert found.bound_s <= found.makespan_s


def check(found: Placement, graph: Graph, sends: Sequence[float]) -> None:
    """Every operator once, none before its operands are there, none at the same time on one device."""
    assert {o.node for o in found.operators} == set(graph.nodes)
    by_node = {o.node: o for o in found.operators}
    assert max(o.start_s + o.time_s for o in found.operators) == pytest.approx(found.makespan_s)
    for operator in found.operators:
        for value in operator.node.inputs:
            producer = graph.producers.get(value)
            if producer is None:
                continue
            source = by_node[producer]
            apart = source.device != operator.device
            ready = source.start_s + source.time_s + sends[int(producer.name[1:])] * apart
            assert operator.start_s >= ready - 1e-9
            crossing = {(t.value, t.source, t.target) for t in found.transfers}
            assert ((value, source.device, operator.device) in crossing) == apart
    for a, b in itertools.combinations(found.operators, 2):
        if a.device == b.device:
            first, second = sorted((a, b), key=lambda o: (o.start_s, o.start_s + o.time_s))
            assert second.start_s >= first.start_s + first.time_s - 1e-9


def test_chain_stays_together() -> None:
    graph = graph_of([[], *([i] for i in range(30))])
    found = run(graph, lambda _: 1.0, devices=4, byte_s=0.01)
    assert found.speedup == pytest.approx(1.0)
    assert not found.transfers
    assert found.gap == 0


def inception(modules: int, branches: Sequence[int]) -> Graph:
    """Modules of parallel chains of these lengths, each joined by a concatenation."""
    reads: list[list[int]] = [[]]
    for _ in range(modules):
        entry, ends = len(reads) - 1, []
        for length in branches:
            before = entry
            for _ in range(length):
                reads.append([before])
                before = len(reads) - 1
            ends.append(before)
        reads.append(ends)
    return graph_of(reads)


@needs_highs
def test_branches_of_an_inception_module_are_cut() -> None:
    # One branch of 4 against 1 + 2 + 1 of the others: with free messages both devices work all the time.
    graph = inception(6, (1, 2, 4, 1))
    found = run(graph, lambda n: 0.0 if n.op == "concat" or n.name == "n0" else 1.0)
    assert found.speedup == pytest.approx(2.0)
    assert found.segments >= 6
    slow = run(graph, lambda n: 0.0 if n.op == "concat" else 1.0, byte_s=10.0)
    assert slow.speedup == pytest.approx(1.0)


@needs_highs
def test_training_places_an_operator_with_its_backward_pass() -> None:
    graph = training_graph(_two_towers(), optimizer="sgd")
    times = {"forward": 1.0, "backward": 2.0, "optimizer": 0.5}
    found = run(graph, lambda n: times[n.phase])
    total = sum(times[n.phase] for n in graph.nodes)
    assert found.work_s == pytest.approx(total)
    assert 1.5 < found.speedup <= found.work_s / found.critical_path_s * (1 + 1e-9)
    assert {o.device for o in found.operators} == {0, 1}


def _two_towers() -> Graph:
    builder = GraphBuilder("towers")
    ends = []
    for tower in "ab":
        value = builder.add_input(f"x_{tower}", TensorType((4, 8), DType.FLOAT32))
        for layer in range(3):
            weight = builder.add_input(
                f"w_{tower}{layer}", TensorType((8, 8), DType.FLOAT32), "parameter"
            )
            (value,) = builder.emit("linear", [value, weight], [value.type], name=f"{tower}{layer}")
        ends.append(value)
    (joined,) = builder.emit("mul", ends, [ends[0].type], name="joined")
    return builder.build([joined])


def test_a_shared_weight_keeps_its_readers_together() -> None:
    builder = GraphBuilder("tied")
    x = [builder.add_input(f"x{i}", TensorType((4, 8), DType.FLOAT32)) for i in range(2)]
    weight = builder.add_input("w", TensorType((8, 8), DType.FLOAT32), "parameter")
    made = [builder.emit("linear", [v, weight], [v.type])[0] for v in x]
    graph = builder.build(builder.emit("add", made, [made[0].type]))
    found = run(graph, lambda _: 1.0)
    assert len({o.device for o in found.operators if o.node.op == "linear"}) == 1


def test_large_random_graphs_stay_within_their_limits() -> None:
    rng = random.Random(3)
    reads: list[list[int]] = [[]]
    for i in range(1, 150):
        reads.append(sorted({rng.randrange(max(0, i - 12), i) for _ in range(rng.randint(1, 3))}))
    found = run(graph_of(reads), lambda n: 1.0 + int(n.name[1:]) % 3, byte_s=0.01)
    assert 1 < found.speedup <= 2
    assert found.makespan_s <= found.greedy_s * (1 + 1e-9)
    assert found.bound_s <= found.makespan_s
    assert found.notes


def test_unknown_method_is_told() -> None:
    with pytest.raises(OpboundError, match="did you mean 'greedy'"):
        run(graph_of([[]]), lambda _: 1.0, method="gready")
