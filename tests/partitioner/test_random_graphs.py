"""Random small graphs on random meshes: all ranks together compute what one device computes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ranks import PartitionedRun, numbers, one_device

from graph_ir.errors import MeshError
from graph_ir.graph import Graph, GraphBuilder, Value
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph
from partitioner.mesh import Mesh
from partitioner.partition import partition
from partitioner.strategy import Strategy

BATCH, TOKENS, ROWS = 4, 8, 16
CHOICES = st.randoms(use_true_random=False)


def fp32(*shape: int) -> TensorType:
    return TensorType(shape, DType.FLOAT32)


class _Net:
    """Grows a network on tokens[b, s] one random operator after the other."""

    def __init__(self, random: Any) -> None:
        self.random = random
        self.b = GraphBuilder("random")
        names = ("batch", "sequence")
        tokens = TensorType((BATCH, TOKENS), DType.INT64)
        ids = self.b.add_input("ids", tokens, dim_names=names)
        self.width = random.choice([4, 8])
        table = self.weight(ROWS, self.width)
        self.known = [self.one("gather", [table, ids], (BATCH, TOKENS, self.width), {"axis": 0})]

    def weight(self, *shape: int) -> Value:
        return self.b.add_input("weight", fp32(*shape), "parameter")

    def one(
        self,
        op: str,
        inputs: list[Value],
        shape: tuple[int, ...],
        attrs: dict[str, Any] | None = None,
    ) -> Value:
        return self.b.emit(op, inputs, [fp32(*shape)], attrs)[0]

    def grow(self) -> None:
        x = self.random.choice(self.known)
        kinds = ["perceptron", "gated", "norm", "attention", "residual", "unary", "bias"]
        made = getattr(self, self.random.choice(kinds))(x)
        self.known.append(made)

    def linear(self, x: Value, n: int) -> Value:
        weight = self.weight(n, x.type.shape[-1])
        return self.one("linear", [x, weight], (*x.type.shape[:-1], n))

    def perceptron(self, x: Value) -> Value:
        inner = self.linear(x, self.random.choice([8, 16]))
        return self.linear(self.one("relu", [inner], inner.type.shape), self.width)

    def gated(self, x: Value) -> Value:
        n = self.random.choice([8, 16])
        both = self.linear(x, 2 * n)
        halves = [fp32(BATCH, TOKENS, n)] * 2
        gate, up = self.b.emit("split", [both], halves, {"axis": 2, "view": True})
        product = self.one("mul", [self.one("silu", [gate], gate.type.shape), up], up.type.shape)
        return self.linear(product, self.width)

    def norm(self, x: Value) -> Value:
        shape = x.type.shape
        results = [fp32(*shape), fp32(*shape[:-1])]
        attrs = {"rank": 1, "eps": 1e-5}
        return self.b.emit("rms_norm", [x, self.weight(shape[-1])], results, attrs)[0]

    def residual(self, x: Value) -> Value:
        other = self.random.choice(self.known)
        return self.one("add", [x, other], x.type.shape)

    def unary(self, x: Value) -> Value:
        return self.one(self.random.choice(["tanh", "sigmoid", "relu"]), [x], x.type.shape)

    def bias(self, x: Value) -> Value:
        return self.one("add", [x, self.weight(x.type.shape[-1])], x.type.shape)

    def attention(self, x: Value) -> Value:
        heads, group = self.random.choice([(4, 4), (4, 2), (8, 4)])
        d = 2

        def split(y: Value, count: int) -> Value:
            y = self.one("reshape", [y], (BATCH, TOKENS, count, d), {"view": True})
            perm = {"perm": (0, 2, 1, 3), "view": True}
            return self.one("transpose", [y], (BATCH, count, TOKENS, d), perm)

        q = split(self.linear(x, heads * d), heads)
        k, v = (split(self.linear(x, group * d), group) for _ in range(2))
        results = [fp32(BATCH, heads, TOKENS, d), fp32(BATCH, heads, TOKENS)]
        attrs = {"causal": self.random.random() < 0.7, "scale": 0.5}
        y = self.b.emit("attention", [q, k, v], results, attrs)[0]
        perm = {"perm": (0, 2, 1, 3), "view": True}
        y = self.one("transpose", [y], (BATCH, TOKENS, heads, d), perm)
        y = self.one("reshape", [y], (BATCH, TOKENS, heads * d), {"view": True})
        return self.linear(y, self.width)

    def finish(self) -> Graph:
        x = self.known[-1]
        logits = self.linear(x, ROWS)
        scores = self.one("log_softmax", [logits], logits.type.shape, {"axis": 2})
        loss = self.one("reduce_mean", [scores], (), {"axes": (0, 1, 2)})
        return self.b.build([loss])


def random_graph(random: Any, size: int) -> Graph:
    net = _Net(random)
    for _ in range(size):
        net.grow()
    return net.finish()


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    sizes = {n: draw(st.sampled_from([1, 1, 2, 4])) for n in ("tp", "cp", "dp")}
    sizes |= {n: draw(st.sampled_from([1, 1, 1, 2])) for n in ("tp_rows", "tp_depth", "pp")}
    order = draw(st.permutations(["tp", "tp_rows", "cp", "dp"]))
    mesh = Mesh({n: s for n, s in sizes.items() if s > 1}, tuple(order))
    grid = draw(st.sampled_from(["", "summa", "stationary"])) if sizes["tp_rows"] > 1 else ""
    split = sizes["tp"] > 1 and (sizes["tp_rows"] == 1 or grid == "stationary")
    many = sizes["dp"] * sizes["cp"] * sizes["tp_depth"] > 1
    sequence_parallel = split and draw(st.booleans())
    zero = draw(st.sampled_from([0, 1, 2, 3])) if many else 0
    ways = ["", "ulysses", "allgather", "ring", "ulysses:2+ring"]
    return Strategy(
        mesh,
        sequence_parallel=sequence_parallel,
        zero=zero,
        shard_group=draw(st.sampled_from([0, 2])) if zero else 0,
        context_parallel=draw(st.sampled_from(ways)) if sizes["cp"] > 1 else "",
        async_tp=sequence_parallel and draw(st.booleans()),
        tensor_grid=grid,
    )


def check(random: Any, size: int, strategy: Strategy) -> None:
    graph = training_graph(random_graph(random, size))
    try:
        parts = partition(graph, strategy, lambda n: float(n.flops))
    except MeshError:
        assume(False)
    values = numbers(graph, rows=ROWS)
    seen = PartitionedRun(graph, parts, values).check(one_device(graph, values), tolerance=1e-5)
    assert seen > 0.5 * len(graph.nodes)


RELAXED = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=RELAXED)
@given(CHOICES, st.integers(1, 5), strategies())
def test_random_graphs_on_random_meshes(random: Any, size: int, strategy: Strategy) -> None:
    check(random, size, strategy)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=RELAXED)
@given(CHOICES, st.integers(1, 12), strategies())
def test_many_random_graphs_on_random_meshes(random: Any, size: int, strategy: Strategy) -> None:
    check(random, size, strategy)
