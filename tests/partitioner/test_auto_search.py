"""The axis `auto`: against all plans on small graphs, against hand-written strategies, and in numbers."""

from __future__ import annotations

import itertools
import random

import pytest
from _pytest.mark import ParameterSet

torch = pytest.importorskip("torch")

from blocks import Bottleneck, GptBlock, LlamaBlock  # noqa: E402
from ranks import PartitionedRun, numbers, one_device  # noqa: E402
from small_models import model as small_model  # noqa: E402
from torch import nn  # noqa: E402

from costing.hardware_file import load_hardware  # noqa: E402
from costing.node_cost import NodePricer  # noqa: E402
from graph_ir.errors import MeshError  # noqa: E402
from graph_ir.graph import Graph, Node  # noqa: E402
from graph_ir.partitioned import PartitionedGraph, Stage  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh, MeshAxis  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.propagate import split_graph  # noqa: E402
from partitioner.search import Search  # noqa: E402
from partitioner.strategies import split_passes  # noqa: E402
from partitioner.strategies.searched import searched  # noqa: E402
from partitioner.strategy import Prices, Strategy  # noqa: E402

PRICER = NodePricer(load_hardware("h100-sxm-80gb"))


def slow(*values: object) -> ParameterSet:
    return pytest.param(*values, marks=pytest.mark.slow)


def node_s(node: Node) -> float:
    return PRICER.cost(node).time_s


def serial_s(graph: Graph) -> float:
    return sum(node_s(n) * n.count for n in graph.nodes)


def model(module: nn.Module, *shape: int, training: bool = True) -> Graph:
    found = load(module, example_inputs=(torch.zeros(*shape),), mode="training").graph
    return training_graph(found, optimizer="sgd") if training else found


def search_of(graph: Graph, parts: int, **prices: float) -> Search:
    return Search(graph, MeshAxis("auto", parts, 1), Prices(node_s, **prices))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(8, 4096), (4096, 64)])
def test_cheapest_of_all_plans(shape: tuple[int, int], training: bool) -> None:
    batch, width = shape
    layers = nn.Sequential(nn.Linear(width, 2 * width, bias=False), nn.ReLU())
    layers.append(nn.Linear(2 * width, width, bias=False))
    search = search_of(model(layers, batch, width, training=training), 4)
    tables = search.tables
    costs = [tables.cost(c) for c in itertools.product(*map(range, search.sizes))]
    assert len(costs) >= 4 * 3 * 4
    found = search.best()
    assert found.cost_s == pytest.approx(min(costs))
    assert found.bound_s == pytest.approx(min(costs))
    # What the tables say is what the split graph costs, node by node.
    assert serial_s(split_graph(search.graph, search.axes, found.plan)) == pytest.approx(
        found.cost_s
    )


@pytest.mark.parametrize(
    "name", ["gpt", "resnet", *map(slow, ["llama", "fused", "tied", "mixture"])]
)
def test_any_plan_computes_the_same(name: str) -> None:
    """Every operator split along an axis drawn by lot, layers folded."""
    graph = training_graph(small_model(name))
    given = numbers(graph)
    expected = one_device(graph, given)
    search = search_of(graph, 2)
    rng = random.Random(name)
    for _ in range(3):
        choice = tuple(rng.randrange(n) for n in search.sizes)
        plan = search.plan(choice)
        local = split_graph(graph, search.axes, plan)
        run = PartitionedRun(graph, PartitionedGraph((Stage(local, ""),), 2, 2), given)
        assert run.check(expected) > len(graph.nodes)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("fused", {"auto": 2, "pp": 3}),
        ("gpt", {"auto": 4}),
        slow("resnet", {"auto": 2}),
        slow("encoder-decoder", {"auto": 2}),
        slow("mixture", {"auto": 2, "pp": 3}),
    ],
)
def test_the_found_plan_computes_the_same(name: str, mesh: dict[str, int]) -> None:
    graph = training_graph(small_model(name))
    given = numbers(graph)
    weights = sum(v.type.bytes * v.count for v in graph.parameters)
    # Whatever is cheapest, and what stores least.
    for capacity in (None, 2.5 * weights):
        prices = Prices(node_s, capacity_bytes=capacity)
        parts = partition(graph, Strategy(Mesh(mesh), prices=prices), node_s)
        run = PartitionedRun(graph, parts, given)
        assert run.check(one_device(graph, given)) > len(graph.nodes)


@pytest.mark.parametrize("width", [1024, slow(4096)])
def test_finds_column_then_row_split_of_a_gpt_block(width: int) -> None:
    """Where the weights must be split, what is found are Megatron's pairs of products."""
    graph = model(GptBlock(width, heads=16), 1, 512, width)
    whole = sum(v.type.bytes for v in graph.parameters)
    search = search_of(graph, 8, capacity_bytes=whole / 7)
    found = search.best()
    chosen = {n.name: axis for n, axis in (found.plan.chosen or {}).items()}
    names = search.axes.of_node
    by_name = {n.name: n for n in graph.nodes}
    for column in ("query", "key", "value", "fc"):
        (weight,) = (v for v in by_name[column].inputs if v.name.startswith(column))
        assert chosen[column] in names(by_name[column])["n"], column
        assert chosen[column] in search.axes.all_of(weight)
    for row in ("out", "proj"):
        assert chosen[row] in names(by_name[row])["k"], row
    assert chosen["fc"] is chosen["proj"]
    assert chosen["query"] is chosen["key"] is chosen["value"] is chosen["out"]
    assert chosen["query"].size == 16
    local = split_graph(graph, search.axes, found.plan)
    reduced = [n for n in local.nodes if n.op in ("all_reduce", "reduce_scatter")]
    large = [n for n in reduced if n.inputs[0].type.elements >= 512 * width]
    # One reduction per pair of products and pass.
    assert sorted(n.during for n in large) == ["backward"] * 2 + ["forward"] * 2


@pytest.mark.parametrize(
    "name", ["llama", "bottleneck", "long gpt", *map(slow, ["gpt", "wide gpt"])]
)
@pytest.mark.parametrize("training", [False, True])
def test_never_slower_than_what_is_written_by_hand(name: str, training: bool) -> None:
    shapes = {
        "gpt": (GptBlock(256, 8), (8, 128, 256)),
        "llama": (LlamaBlock(256), (8, 128, 256)),
        "bottleneck": (Bottleneck(64, 32), (8, 64, 28, 28)),
        "wide gpt": (GptBlock(2048, 16), (1, 64, 2048)),
        "long gpt": (GptBlock(256, 16), (1, 2048, 256)),
    }
    module, shape = shapes[name]
    graph = model(module, *shape, training=training)
    search, found = searched(graph, MeshAxis("auto", 4, 1), Prices(node_s))
    own_s = serial_s(split_graph(search.graph, search.axes, found.plan))
    passes = {p.name: p for p in split_passes()}
    compared = 0
    for pass_name, axis in (("tensor", "tp"), ("data", "dp"), ("context", "cp")):
        for sequence in (False, True)[: 1 + (axis == "tp")]:
            try:
                strategy = Strategy(Mesh({axis: 4}), sequence_parallel=sequence)
                local = passes[pass_name].apply(graph, strategy)
            except MeshError:
                continue
            compared += 1
            assert own_s <= serial_s(local) * (1 + 1e-9), (pass_name, sequence)
    assert compared


def test_what_must_fit_is_split_until_it_does() -> None:
    graph = model(GptBlock(256, 8), 8, 1024, 256)
    free = search_of(graph, 8).best()
    whole = sum(v.type.bytes for v in graph.parameters)
    assert free.stored_bytes > whole / 4
    tight = search_of(graph, 8, capacity_bytes=whole / 7).best()
    assert tight.stored_bytes <= whole / 7
    assert tight.cost_s >= free.cost_s


def test_axes_are_explained_by_what_the_other_way_costs() -> None:
    graph = model(GptBlock(1024, 16), 1, 4096, 1024, training=False)
    found = search_of(graph, 8).best(explain=True)
    assert {a.chosen for a in found.axes} == {True, False}
    assert all(a.other_s >= found.cost_s * (1 - 1e-12) for a in found.axes)
    first = found.axes[0]
    assert first.chosen
    assert first.nodes <= first.candidates
