"""Folding: what is unfolded again is the graph that was folded, whatever its shape."""

import random
import time

import pytest

from graph_ir.fold import fold, name_pattern
from graph_ir.graph import GraphBuilder
from graph_ir.tensor_type import DType, TensorType

TYPE = TensorType((4, 8), DType.FLOAT32)
UNARY = ("relu", "tanh", "exp", "neg")


def chain(ops):
    """A graph of unary operators, one after the other."""
    builder = GraphBuilder()
    x = builder.add_input("x", TYPE)
    for i, op in enumerate(ops):
        (x,) = builder.emit(op, [x], [TYPE], name=f"n{i}")
    return builder.build([x])


def layers(count, seed, returned=False):
    """Layers of random operators, each with a weight, a value of its own twice used, and a shared one."""
    rng = random.Random(seed)
    ops = [rng.choice(UNARY) for _ in range(rng.randrange(1, 6))]
    skips = [rng.random() < 0.5 for _ in ops]
    builder = GraphBuilder()
    x = builder.add_input("x", TYPE)
    shared = builder.add_input("shared", TYPE)
    caches = []
    for i in range(count):
        entry = x
        weight = builder.add_input(f"w{i}", TYPE, "parameter")
        (x,) = builder.emit("mul", [x, weight], [TYPE], name=f"mul.{i}")
        caches.append(x)
        for k, (op, skip) in enumerate(zip(ops, skips, strict=True)):
            (x,) = builder.emit(op, [x], [TYPE], name=f"{op}.{k}.{i}")
            if skip:
                other = entry if k % 2 else shared
                (x,) = builder.emit("add", [x, other], [TYPE], name=f"add.{k}.{i}")
    (x,) = builder.emit("sqrt", [x], [TYPE], name="end")
    return builder.build([x, *caches] if returned else [x])


def wiring(graph):
    """(name, op, names of what it reads) of every node, repeated blocks written out."""
    written = []
    for node in graph.nodes:
        if node not in graph.block_of:
            written.append((node.name, node.op, [read(graph, v, None, 0) for v in node.inputs]))
            continue
        block = graph.block_of[node]
        if node is not graph.nodes[block.start]:
            continue
        for k in range(block.count):
            for inner in graph.nodes[block.start : block.stop]:
                operands = [read(graph, v, block, k) for v in inner.inputs]
                written.append((inner.instances[k], inner.op, operands))
    return written


def read(graph, value, block, k):
    """What a value is called in copy k of a block."""
    if value.kind == "carried":
        carry = graph.carries[value]
        if k == 0:
            return read(graph, carry.initial, None, 0)
        return graph.producers[carry.result].instances[k - 1]
    producer = graph.producers.get(value)
    if producer is None:
        # A stack of weights: [first-last] of the copies' names.
        return (
            value.name.replace(f"[0-{value.count - 1}]", str(k)) if value.count > 1 else value.name
        )
    if producer in graph.block_of:
        same = graph.block_of[producer] is block
        return producer.instances[k if same else -1]
    return producer.name


@pytest.mark.parametrize("returned", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_layers_fold_and_unfold(seed, returned):
    whole = layers(2 + seed % 7, seed, returned)
    folded = fold(whole)
    assert len(folded.nodes) < len(whole.nodes)
    assert wiring(folded) == wiring(whole)


@pytest.mark.parametrize("seed", range(30))
def test_any_chain_unfolds_to_itself(seed):
    rng = random.Random(seed)
    ops = []
    while len(ops) < 120:
        piece = [rng.choice(UNARY) for _ in range(rng.randrange(1, 9))]
        ops += piece * rng.choice((1, 1, 2, 3, 9))
    whole = chain(ops)
    folded = fold(whole)
    assert wiring(folded) == wiring(whole)
    assert sum(n.flops * n.count for n in folded.nodes) == sum(n.flops for n in whole.nodes)


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_unfold_to_themselves(seed):
    rng = random.Random(seed)
    builder = GraphBuilder()
    values = [builder.add_input("x", TYPE)]
    for i in range(150):
        reads = [values[max(len(values) - 1 - rng.randrange(4) ** 2, 0)] for _ in range(2)]
        values += builder.emit("add", reads, [TYPE], name=f"n{i}")
    whole = builder.build([values[-1], *rng.sample(values[1:], seed % 3)])
    assert wiring(fold(whole)) == wiring(whole)


def test_a_long_period_is_found():
    rng = random.Random(0)
    block = [rng.choice(UNARY) for _ in range(400)]
    assert len(fold(chain(block * 6)).nodes) == 400


def test_a_copy_that_differs_by_its_surroundings_stays_outside():
    builder = GraphBuilder()
    x = builder.add_input("x", TYPE)
    (first,) = builder.emit("relu", [x], [TYPE], name="n0")
    value = first
    for i in range(1, 9):
        (value,) = builder.emit("relu", [value], [TYPE], name=f"n{i}")
    (end,) = builder.emit("add", [value, first], [TYPE], name="end")
    whole = builder.build([end])
    folded = fold(whole)
    assert [n.count for n in folded.nodes] == [1, 8, 1]
    assert wiring(folded) == wiring(whole)


@pytest.mark.parametrize("kind", ["equal", "random", "tangled"])
def test_time_grows_with_the_nodes(kind):
    def seconds(nodes):
        rng = random.Random(nodes)
        builder = GraphBuilder()
        values = [builder.add_input("x", TYPE)]
        for i in range(nodes):
            op = "relu" if kind == "equal" else rng.choice(UNARY)
            back = rng.randrange(min(len(values), 40)) if kind == "tangled" else 0
            if kind == "tangled":
                values += builder.emit("add", [values[-1], values[-1 - back]], [TYPE], name=f"n{i}")
            else:
                values += builder.emit(op, [values[-1]], [TYPE], name=f"n{i}")
        graph = builder.build([values[-1]])
        for node in graph.nodes:
            _ = node.signature
        start = time.process_time()
        fold(graph)
        return time.process_time() - start

    # Eight times the nodes: eight times the time, sixty-four times if it were quadratic. The best of three,
    # because other work on the machine costs a process cache and so processor time.
    few, many = (min(seconds(nodes) for _ in range(3)) for nodes in (2_000, 16_000))
    assert many < 30 * max(few, 0.005)


def test_one_name_for_many():
    assert name_pattern(["layers.0.fc", "layers.1.fc"]) == "layers.[0-1].fc"
    assert name_pattern(["h10.a2", "h11.a2", "h12.a2"]) == "h[10-12].a2"
    assert name_pattern(["a1", "b2"]) == "a1"
    assert name_pattern(["a", "a"]) == "a"
    assert name_pattern(["", "", ""]) == ""
