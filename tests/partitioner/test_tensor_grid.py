"""Tensor parallelism over rows, columns and depth: what ranks compute, what they send and what they hold."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from ranks import PartitionedRun, StageRun, numbers, one_device

from graph_ir.errors import MeshError, OpboundError
from graph_ir.fold import fold
from graph_ir.graph import Graph, GraphBuilder
from graph_ir.ops.collective import sent_bytes
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph
from partitioner.mesh import Mesh
from partitioner.partition import partition
from partitioner.strategy import Strategy

B, S, H, LAYERS = 8, 16, 32, 3
"""Samples, tokens, width and layers of the small language models."""
BYTES = 4

_runs: dict[tuple[str, str], tuple[Graph, Any, StageRun]] = {}


def grid(text: str, **others: int) -> dict[str, int]:
    """Mesh axes of 'ROWSxCOLUMNS' or 'ROWSxCOLUMNSxDEPTH'."""
    rows, columns, *depth = map(int, text.split("x"))
    return {"tp": columns, "tp_rows": rows, "tp_depth": prod(depth), **others}


def step(name: str, recompute: str = "none") -> tuple[Graph, Any, StageRun]:
    """A model's training step, random numbers for it, and what one device makes of them."""
    if (name, recompute) not in _runs:
        pytest.importorskip("torch")
        from small_models import model

        graph = training_graph(model(name), recompute=recompute)
        given = numbers(graph)
        _runs[name, recompute] = (graph, given, one_device(graph, given))
    return _runs[name, recompute]


def local(graph: Graph, mesh: dict[str, int], **options: Any) -> Graph:
    return partition(graph, Strategy(Mesh(mesh), **options), lambda n: 1.0).stages[0].graph


def check(name: str, mesh: dict[str, int], recompute: str = "none", **options: Any) -> None:
    graph, given, expected = step(name, recompute)
    parts = partition(graph, Strategy(Mesh(mesh), **options), lambda n: float(n.flops))
    assert PartitionedRun(graph, parts, given).check(expected) > len(graph.nodes)


# --- what ranks compute -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["2x2", "2x4", "4x1", "2x2x2"])
@pytest.mark.parametrize("name", ["gpt", "llama", "resnet"])
def test_a_grid_computes_what_one_device_computes(name: str, shape: str) -> None:
    check(name, grid(shape))


@pytest.mark.parametrize(
    ("name", "mesh", "options"),
    [
        ("tied", grid("2x2", dp=2), {"zero": 3}),
        ("tied", grid("2x2x2", pp=3), {"zero": 1}),
        ("separate", grid("2x2", cp=2, dp=2), {"zero": 1}),
        ("gpt", grid("2x2", pp=3), {"recompute": "full"}),
    ],
    ids=str,
)
def test_a_grid_goes_with_the_other_axes(
    name: str, mesh: dict[str, int], options: dict[str, Any]
) -> None:
    check(name, mesh, **options)


@pytest.mark.parametrize(
    ("name", "mesh", "options"),
    [
        ("encoder-decoder", grid("2x2", pp=2), {}),
        ("mixture", grid("2x2", ep=2), {"zero": 2}),
        ("mixture", grid("2x2", cp=2, ep=2), {}),
        ("shared expert", grid("2x4x2"), {}),
        ("fused", grid("2x2x2", dp=2), {"zero": 2, "recompute": "selective"}),
        ("separate", grid("2x2", cp=4), {"context_parallel": "ulysses:2+ring"}),
        ("resnet", grid("2x2", pp=2, dp=2), {"zero": 3}),
    ],
    ids=str,
)
@pytest.mark.slow
def test_more_models_on_grids(name: str, mesh: dict[str, int], options: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    check(name, mesh, **options)


def test_an_onnx_perceptron_on_a_grid(tmp_path: Any) -> None:
    """Weights stand before the result's width or behind it (`transB`), and go through a Transpose."""
    onnx = pytest.importorskip("onnx")
    from importers import load

    rng = np.random.default_rng(3)
    shapes = {"w0": (16, 32), "w1": (64, 32), "w2": (24, 64), "b1": (64,)}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w0"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["ar"]),
        onnx.helper.make_node("Gemm", ["ar", "w1", "b1"], ["g"], transB=1),
        onnx.helper.make_node("Transpose", ["w2"], ["w2t"]),
        onnx.helper.make_node("MatMul", ["g", "w2t"], ["y"]),
    ]
    tensor = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "perceptron",
        [onnx.helper.make_tensor_value_info("x", tensor, [B, 16])],
        [onnx.helper.make_tensor_value_info("y", tensor, [B, 24])],
        [
            onnx.numpy_helper.from_array(rng.normal(size=s).astype("f4"), n)
            for n, s in shapes.items()
        ],
    )
    path = tmp_path / "perceptron.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    whole = training_graph(fold(load(path, mode="training").graph))
    given = numbers(whole)
    parts = partition(whole, Strategy(Mesh(grid("2x4"))), lambda n: 1.0)
    assert PartitionedRun(whole, parts, given).check(one_device(whole, given)) > len(whole.nodes)
    one = {v.name: v.type.elements for v in parts.stages[0].graph.parameters}
    assert all(
        one[v.name] * (8 if len(v.type.shape) > 1 else 4) == v.type.elements
        for v in whole.parameters
    )


@pytest.mark.parametrize("way", ["summa", "stationary"])
def test_a_tied_weight_behind_a_view_lies_in_one_way(way: str) -> None:
    torch = pytest.importorskip("torch")
    from importers import load

    class Tied(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(24, H)
            self.inner, self.outer = torch.nn.Linear(H, 64), torch.nn.Linear(64, H)

        def forward(self, tokens: Any, target: Any) -> Any:
            x = self.table(tokens)
            x = x + self.outer(torch.relu(self.inner(x)))
            logits = x @ self.table.weight.transpose(0, 1)
            return torch.nn.functional.cross_entropy(logits.view(-1, 24), target.view(-1))

    tokens = torch.zeros(B, S, dtype=torch.long)
    loaded = load(Tied(), example_inputs=(tokens, tokens), mode="training")
    graph = training_graph(fold(loaded.graph))
    given = numbers(graph)
    parts = partition(graph, Strategy(Mesh(grid("2x2")), tensor_grid=way), lambda n: 1.0)
    assert PartitionedRun(graph, parts, given).check(one_device(graph, given)) > len(graph.nodes)
    (rank,) = (stage.graph for stage in parts.stages)
    (table,) = (v for v in rank.parameters if "table" in v.name)
    assert table.type.elements * 4 == 24 * H
    assert not any(n.op == "all_to_all" for n in rank.nodes)


@pytest.mark.parametrize(
    ("name", "mesh", "options"),
    [
        ("gpt", grid("2x2"), {}),
        ("llama", grid("4x2"), {"sequence_parallel": True}),
        ("tied", grid("2x2x2", pp=3), {}),
        ("separate", grid("2x2", cp=2, dp=2), {"zero": 3}),
        ("resnet", grid("2x4"), {}),
    ],
    ids=str,
)
def test_weights_that_stay_compute_the_same(
    name: str, mesh: dict[str, int], options: dict[str, Any]
) -> None:
    check(name, mesh, tensor_grid="stationary", **options)


# --- what ranks send --------------------------------------------------------------------------------------


def layer_bytes(graph: Graph, axis: str, during: tuple[str, ...]) -> int:
    """What a rank sends for one layer, without the two numbers per row that norms exchange."""
    return sum(
        sent_bytes(n)
        for n in graph.nodes
        if n.phase == "communication"
        and n.attrs["axis"] == axis
        and n.count == LAYERS
        and n.during in during
        and n.op in ("all_gather", "reduce_scatter")
    )


@pytest.mark.parametrize("q", [2, 4])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_gpt_layer_sends_what_optimus_says(q: int, recompute: str) -> None:
    """Xu et al. 2021, table 1: (7 bsh + 12 h^2) / q forward, twice that backward.

    The paper's log2(q) steps of a broadcast tree are (q - 1) / q of a message here, where panels are gathered
    in a ring. With recomputation it counts the whole forward pass again; the layer's last product, of 4 bsh
    and 4 h^2, need not be computed again.
    """
    rank = local(step("gpt", recompute)[0], grid(f"{q}x{q}"))
    activations = B * S * H * BYTES * (q - 1) // q // q
    weights = H * H * BYTES * (q - 1) // q // q
    assert layer_bytes(rank, "tp", ("forward",)) == 7 * activations
    assert layer_bytes(rank, "tp_rows", ("forward",)) == 12 * weights
    assert layer_bytes(rank, "tp", ("backward",)) == 14 * activations
    assert layer_bytes(rank, "tp_rows", ("backward",)) == 24 * weights
    again = recompute == "full"
    assert layer_bytes(rank, "tp", ("recompute",)) == again * 3 * activations
    assert layer_bytes(rank, "tp_rows", ("recompute",)) == again * 8 * weights


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (4, 2), (2, 4)])
def test_stationary_weights_send_activations_alone(rows: int, columns: int) -> None:
    """Pope et al. 2022, section 3.2.2: heads and feed-forward over one side, the width over the other."""
    rank = local(step("gpt")[0], grid(f"{rows}x{columns}"), tensor_grid="stationary")
    token = B * S * H * BYTES
    # Three projections and what goes into the fourth; the feed-forward's middle twice.
    sent = (3 + 1 + 4 + 4) * token // columns * (rows - 1) // rows
    assert layer_bytes(rank, "tp_rows", ("forward",)) == sent
    reduced = [
        n
        for n in rank.nodes
        if n.op == "all_reduce" and n.attrs["axis"] == "tp" and n.count == LAYERS
    ]
    forward = sum(sent_bytes(n) for n in reduced if n.during == "forward")
    assert forward == 2 * 2 * token // rows * (columns - 1) // columns
    stored = {v for v in rank.inputs if v.kind == "parameter"}
    collectives = [n for n in rank.nodes if n.phase == "communication"]
    assert not any(stored.intersection(n.inputs) for n in collectives)
    matrices = [v for v in stored if len(v.type.shape) > 1]
    whole = {v.name: v.type.elements for v in step("gpt")[0].parameters}
    assert all(v.type.elements * rows * columns == whole[v.name] for v in matrices)


def test_norms_exchange_two_numbers_per_row() -> None:
    """The sums of a layer norm forward, and of its gradient backward (Xu et al. 2021, section 3.2.2)."""
    rank = local(step("gpt")[0], grid("2x2"))
    norms = [n for n in rank.nodes if n.op == "all_reduce" and n.attrs["axis"] == "tp"]
    layers = [n for n in norms if n.count == LAYERS]
    assert sorted(n.during for n in layers) == ["backward"] * 2 + ["forward"] * 2
    assert {n.inputs[0].type.elements for n in layers} == {2 * B * S // 2}


def test_depth_divides_activations_and_reduces_gradients() -> None:
    """Wang et al. 2021, section 3.1: activations are shared out over the depth, weights are copied."""
    graph = step("gpt")[0]
    flat, deep = local(graph, grid("2x2")), local(graph, grid("2x2x2"))
    for during in ("forward", "backward"):
        assert layer_bytes(deep, "tp", (during,)) * 2 == layer_bytes(flat, "tp", (during,))
        assert layer_bytes(deep, "tp_rows", (during,)) == layer_bytes(flat, "tp_rows", (during,))
    held = sum(v.type.bytes * v.count for v in deep.parameters)
    assert held == sum(v.type.bytes * v.count for v in flat.parameters)
    reduced = sum(
        sent_bytes(n) * n.count
        for n in deep.nodes
        if n.phase == "communication" and n.attrs["axis"] == "tp_depth"
    )
    # An all-reduce over two ranks sends a gradient's size; the loss is each rank's own.
    assert reduced == held


def test_gradients_are_scattered_before_they_are_summed_up_over_the_data() -> None:
    rank = local(step("gpt")[0], grid("2x2", cp=2, dp=2))
    scattered = [n for n in rank.nodes if n.op == "reduce_scatter" and n.attrs["axis"] == "tp_rows"]
    assert len(scattered) == 8
    assert all(n.attrs["every_microbatch"] for n in scattered)
    data = [n for n in rank.nodes if n.op == "all_reduce" and n.attrs["axis"] == "cp+dp"]
    made = {v for n in scattered for v in n.outputs}
    assert made <= {v for n in data for v in n.inputs}


# --- what ranks hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [2, 4])
def test_matrices_gradients_states_and_activations_are_split_over_the_whole_grid(q: int) -> None:
    graph = step("gpt")[0]
    rank = local(graph, grid(f"{q}x{q}"))
    whole = {v.name: v for v in (*graph.inputs, *(v for n in graph.nodes for v in n.outputs))}
    made = [v for n in rank.nodes if n.phase == "forward" for v in n.outputs]
    activations = [v for v in made if v.name in whole and whole[v.name].type.elements >= B * S * H]
    assert len(activations) > 20
    matrices = [
        v for v in rank.inputs if v.kind in ("parameter", "state") and len(v.type.shape) > 1
    ]
    assert len(matrices) == 8 * 3
    for value in (*activations, *matrices):
        assert value.type.elements * q * q == whole[value.name].type.elements, value
    for update in (n for n in rank.nodes if n.phase == "optimizer"):
        assert update.inputs[0].type.shape == update.inputs[1].type.shape


# --- meshes -----------------------------------------------------------------------------------------------


def test_one_row_is_tensor_parallelism_in_one_dim() -> None:
    from opbound.options import parse_parallel

    assert parse_parallel("tp=1x4") == parse_parallel("tp=4") == {"tp": 4}
    assert parse_parallel("tp=4x2x3,dp=2") == {"tp": 2, "tp_rows": 4, "tp_depth": 3, "dp": 2}
    graph = step("gpt")[0]
    one, two = local(graph, {"tp": 4}), local(graph, grid("1x4"))
    assert [str(n) for n in one.nodes] == [str(n) for n in two.nodes]
    assert local(graph, grid("1x1")) is graph or [str(n) for n in graph.nodes] == [
        str(n) for n in local(graph, grid("1x1")).nodes
    ]


def test_a_grid_lies_on_neighbouring_ranks() -> None:
    mesh = Mesh(grid("4x2x3", dp=5))
    strides = {name: mesh.axis(name).stride for name in ("tp", "tp_rows", "tp_depth", "dp")}
    assert strides == {"tp": 1, "tp_rows": 2, "tp_depth": 8, "dp": 24}
    turned = Mesh(grid("4x2"), ("tp_rows", "tp"))
    assert (turned.axis("tp_rows").stride, turned.axis("tp").stride) == (1, 4)


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        (grid("3x2"), "tp=3x2 does not divide the batch of 8.*or tp=2x2"),
        (grid("2x2x3"), "tp=2x2x3 does not divide the batch of 4.*or tp=2x2x2"),
        (grid("2x3"), "tp=2x3 does not divide the 64 parts.*the nearest that works is tp=2x2"),
    ],
    ids=str,
)
def test_an_impossible_grid_says_what_works(mesh: dict[str, int], says: str) -> None:
    with pytest.raises(MeshError, match=says):
        local(step("separate")[0], mesh)


def test_a_graph_without_an_axis_to_split_is_named() -> None:
    b = GraphBuilder("odd")
    x = b.add_input("x", TensorType((4, 7), DType.FLOAT32), dim_names=("batch", None))
    weight = b.add_input("weight", TensorType((5, 7), DType.FLOAT32), "parameter")
    (y,) = b.emit("linear", [x, weight], [TensorType((4, 5), DType.FLOAT32)], name="only")
    with pytest.raises(MeshError, match="tp=2x2: odd has no product to split"):
        local(b.build([y]), grid("2x2"), tensor_grid="summa")


def test_a_weight_that_the_columns_do_not_divide_is_named() -> None:
    b = GraphBuilder("odd")
    x = b.add_input("x", TensorType((4, 6), DType.FLOAT32), dim_names=("batch", None))
    for name, shape in (("first", (9, 6)), ("second", (15, 9))):
        weight = b.add_input("weight", TensorType(shape, DType.FLOAT32), "parameter")
        (x,) = b.emit("linear", [x, weight], [TensorType((4, shape[0]), DType.FLOAT32)], name=name)
    says = r"2 columns divide no axis of the weight of second \(15, 9\)"
    with pytest.raises(MeshError, match=says):
        local(b.build([x]), grid("2x2"), tensor_grid="summa")


def test_weights_stay_only_where_there_are_columns() -> None:
    with pytest.raises(MeshError, match=r"tp=4x1.* write tp=4, or add --tensor-grid summa"):
        local(step("gpt")[0], grid("4x1"), tensor_grid="stationary")


def test_nothing_is_left_to_sequence_parallelism() -> None:
    with pytest.raises(MeshError, match="tp=2x4 splits everything"):
        Strategy(Mesh(grid("2x4")), sequence_parallel=True)
    with pytest.raises(MeshError, match="how tensor parallelism uses its rows, but there is one"):
        Strategy(Mesh({"tp": 4}), tensor_grid="summa")
    with pytest.raises(MeshError, match="auto=2 searches a split of its own"):
        Strategy(Mesh(grid("2x2", auto=2)))
    with pytest.raises(OpboundError, match="did you mean 'stationary'"):
        Strategy(Mesh(grid("2x4")), tensor_grid="stationery")
