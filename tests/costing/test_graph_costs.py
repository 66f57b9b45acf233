"""Node prices, memory and the timeline on small graphs whose answers can be computed by hand."""

import pytest

from costing.gemm import gemm_cost
from costing.hardware_file import load_hardware
from costing.kernels import eager_groups, inner_values, pointwise_groups, price_graph
from costing.memory import memory_use, stage_memory
from costing.node_cost import NodePricer
from costing.op_cost import OpCost
from costing.schedule import Schedule
from costing.step import step_cost
from costing.timeline import stage_times
from graph_ir.fold import fold
from graph_ir.graph import Graph, GraphBuilder, Node
from graph_ir.tensor_type import DType, TensorType
from graph_ir.training import training_graph

BF16 = DType.BFLOAT16
A100 = load_hardware("a100-sxm-80gb")


def tensor(*shape: int) -> TensorType:
    return TensorType(shape, BF16)


def mlp(
    layers: int, width: int = 256, rows: int = 64, reduce: bool = False, head: bool = False
) -> Graph:
    """Linear and ReLU, repeated; with `reduce`, an all-reduce follows every linear.

    With `head`, a last linear layer halves the width.
    """
    b = GraphBuilder("mlp")
    x = b.add_input("x", tensor(rows, width))
    group = {"axis": "tp", "group_size": 8, "group_stride": 1}
    for i in range(layers):
        w = b.add_input(f"w{i}", tensor(width, width), "parameter")
        (x,) = b.emit("linear", [x, w], [tensor(rows, width)], name=f"layers.{i}.fc")
        if reduce:
            attrs = {**group, "during": "forward"}
            (x,) = b.emit(
                "all_reduce", [x], [x.type], attrs, name=f"layers.{i}.ar", phase="communication"
            )
        (x,) = b.emit("relu", [x], [tensor(rows, width)], name=f"layers.{i}.act")
    if head:
        w = b.add_input("w_head", tensor(width // 2, width), "parameter")
        (x,) = b.emit("linear", [x, w], [tensor(rows, width // 2)], name="head")
    return b.build([x])


def test_a_linear_layer_is_priced_as_the_gemm_it_is() -> None:
    (node, _) = mlp(1).nodes
    cost = NodePricer(A100).cost(node)
    assert cost.flops == 2 * 64 * 256 * 256
    assert cost.bytes_read == 2 * (64 * 256 + 256 * 256)
    assert cost.bytes_written == 2 * 64 * 256
    assert cost.engine == "tensor_core"


def test_equal_nodes_are_priced_once() -> None:
    pricer = NodePricer(A100)
    costs = [pricer.cost(node) for node in mlp(20).nodes]
    assert len({id(cost) for cost in costs}) == 2


def test_a_view_costs_nothing() -> None:
    b = GraphBuilder()
    x = b.add_input("x", tensor(4, 6))
    (y,) = b.emit("reshape", [x], [tensor(24)], {"view": True})
    node = b.build([y]).nodes[0]
    assert NodePricer(A100).cost(node).time_s == 0


def test_an_unknown_operator_says_so_and_takes_at_least_the_stream_of_its_operands() -> None:
    b = GraphBuilder()
    x = b.add_input("x", tensor(4096, 4096))
    (y,) = b.emit("unknown", [x], [tensor(4096, 4096)])
    (z,) = b.emit("relu", [y], [tensor(4096, 4096)])
    unknown, relu = (NodePricer(A100).cost(node) for node in b.build([z]).nodes)
    assert unknown.bound == "unknown"
    assert (unknown + unknown).bound == "unknown"
    assert unknown.time_s == pytest.approx(relu.time_s)


@pytest.mark.parametrize("dtype", [DType.INT16, DType.UINT16, DType.INT32, DType.INT64])
def test_integer_products_wider_than_8_bits_run_on_the_vector_engine(dtype: DType) -> None:
    h100 = load_hardware("h100-sxm-80gb")
    assert h100.engine_for("matrix", dtype).name == "cuda_core"
    assert h100.engine_for("matrix", DType.INT8).name == "tensor_core"


def test_the_weight_gradient_of_a_convolution_fills_the_device() -> None:
    # 64 x 147 results of 802,816 products each: two tiles, unless the contraction is split.
    cost = gemm_cost(load_hardware("h100-sxm-80gb"), DType.FLOAT32, 64, 147, 64 * 112 * 112)
    assert float(cost.time_s[0]) < 2 * float(cost.terms["compute"][0])


def test_a_bias_in_the_epilogue_costs_only_its_own_bytes() -> None:
    b = GraphBuilder()
    x = b.add_input("x", tensor(64, 256))
    w = b.add_input("w", tensor(256, 256), "parameter")
    bias = b.add_input("b", tensor(256), "parameter")
    (y,) = b.emit("linear", [x, w], [tensor(64, 256)])
    (z,) = b.emit("add", [y, bias], [tensor(64, 256)], {"epilogue": True})
    graph = b.build([z])
    groups = eager_groups(graph)
    assert [len(group) for group in groups] == [2]
    assert inner_values(graph, groups) == {y}
    costs = price_graph(graph, A100)
    linear, add = (costs[node] for node in graph.nodes)
    assert add.bytes_read == 2 * 256
    assert (linear.bytes_written, add.bytes_written) == (0, 2 * 64 * 256)
    alone = NodePricer(A100).cost(graph.nodes[0])
    assert linear.time_s + add.time_s == pytest.approx(alone.time_s, rel=0.01)


def test_fusing_a_chain_saves_its_inner_bytes_and_launches() -> None:
    b = GraphBuilder()
    x = b.add_input("x", tensor(1 << 20))
    (y,) = b.emit("relu", [x], [x.type])
    (z,) = b.emit("relu", [y], [x.type])
    graph = b.build([z])
    eager = price_graph(graph, A100)
    fused = price_graph(graph, A100, [graph.nodes])
    assert sum(c.bytes_read + c.bytes_written for c in fused.values()) == 2 * x.type.bytes
    total = sum(cost.time_s for cost in fused.values())
    assert total == pytest.approx(sum(cost.time_s for cost in eager.values()) / 2)


def test_a_collective_is_bound_by_its_link() -> None:
    graph = mlp(1, width=8192, rows=8192, reduce=True)
    cost = NodePricer(A100).cost(graph.nodes[1])
    assert cost.bound == "network:nvlink"
    assert cost.engine == "network"
    assert cost.bytes_communicated == 2 * 8192 * 8192 * 2 * 7 // 8


# --- memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [False, True])
def test_training_memory_of_a_chain(folded: bool) -> None:
    layers, width, rows = 6, 256, 64
    graph = mlp(layers, width, rows, head=True)
    graph = training_graph(fold(graph) if folded else graph)
    use = memory_use(graph)
    weights = (layers + 0.5) * width * width * 2
    assert use.by_kind_bytes["parameters"] == weights
    assert use.by_kind_bytes["gradients"] == weights
    # AdamW in mixed precision: two moments and a master copy of 4 bytes.
    assert use.by_kind_bytes["optimizer"] == 6 * weights
    # A linear layer saves its input, a ReLU its result: both are the same tensor but for the first
    # input, which the data loader holds.
    activation = rows * width * 2
    assert use.saved_bytes == pytest.approx((layers + 1) * activation, abs=activation)


def test_inference_keeps_nothing_but_what_is_in_use() -> None:
    graph = mlp(10)
    use = memory_use(graph)
    activation = 64 * 256 * 2
    assert use.saved_bytes == 0
    assert use.by_kind_bytes["activations"] <= 2 * activation
    assert memory_use(fold(graph)).by_kind_bytes["activations"] <= 3 * activation


def test_waiting_micro_batches_hold_what_they_saved() -> None:
    use = memory_use(training_graph(mlp(4)))
    one, four = (stage_memory([use], n * use.saved_bytes) for n in (1, 4))
    more = four.by_kind_bytes["activations"] - one.by_kind_bytes["activations"]
    assert more == 3 * use.saved_bytes
    assert four.by_kind_bytes["parameters"] == one.by_kind_bytes["parameters"]


# --- timeline ---------------------------------------------------------------------------------------


def timed(graph: Graph, seconds: dict[str, float]) -> dict[Node, OpCost]:
    return {n: OpCost(time_s=seconds[n.op]) for n in graph.nodes}


@pytest.mark.parametrize("folded", [False, True])
def test_a_collective_on_the_critical_path_is_exposed(folded: bool) -> None:
    graph = mlp(10, reduce=True)
    graph = fold(graph) if folded else graph
    costs = timed(graph, {"linear": 2.0, "all_reduce": 3.0, "relu": 1.0})
    forward = stage_times(graph, costs).forward
    assert forward.time_s == pytest.approx(60.0)
    assert forward.compute_s == pytest.approx(30.0)
    assert forward.exposed_s == pytest.approx(30.0)


def with_gradient_reduction(layers: int) -> Graph:
    """A training graph in which every weight's gradient is all-reduced before the update."""
    plain = training_graph(mlp(layers), optimizer="sgd")
    b = GraphBuilder("dp")
    b.inputs = list(plain.inputs)
    attrs = {"axis": "dp", "group_size": 8, "group_stride": 1, "during": "backward"}
    wanted = {n.inputs[1] for n in plain.nodes if n.phase == "optimizer"}
    renamed = {}
    for node in plain.nodes:
        operands = tuple(renamed.get(v, v) for v in node.inputs)
        b.nodes.append(Node(node.name, node.op, operands, node.outputs, node.attrs, "", node.phase))
        for value in node.outputs:
            if value in wanted:
                (renamed[value],) = b.emit(
                    "all_reduce", [value], [value.type], attrs, phase="communication"
                )
    return b.build(plain.outputs)


def test_gradients_are_reduced_beside_the_backward_pass_and_once_per_step() -> None:
    graph = with_gradient_reduction(4)
    ops = {node.op for node in graph.nodes}
    seconds = dict.fromkeys(ops, 1.0) | {"all_reduce": 0.5}
    times = stage_times(graph, timed(graph, seconds))
    assert times.backward.exposed_s == 0
    # All but the last layer's reduction hides behind the layers below it.
    assert times.tail_s == pytest.approx(0.5)
    assert times.optimizer.time_s == pytest.approx(4.0)


def test_the_step_of_a_pipeline_adds_up() -> None:
    graph = training_graph(fold(mlp(8, head=True)))
    step = step_cost([graph] * 4, A100, Schedule.parse("1f1b"), microbatches=8)
    assert step.pipeline.bubble_over_ideal == pytest.approx(3 / 8)
    parts = step.compute_s + step.exposed_communication_s
    assert parts + step.bubble_fraction * step.step_time_s == pytest.approx(step.step_time_s)
    assert step.memory[0].peak_bytes > step.memory[3].peak_bytes
    assert step.fullest == 0


def test_one_device_has_no_bubble_and_the_sum_of_its_nodes() -> None:
    graph = training_graph(fold(mlp(8, head=True)))
    step = step_cost([graph], A100, Schedule.parse("1f1b"))
    total = sum(cost.time_s * node.count for node, cost in step.stages[0][0].costs.items())
    assert step.bubble_fraction == pytest.approx(0, abs=1e-12)
    assert step.step_time_s == pytest.approx(total)


def test_pointwise_kernels_join_forward_chains_and_nothing_else() -> None:
    b = GraphBuilder()
    x, y = (b.add_input(name, tensor(64, 64)) for name in "xy")
    w = b.add_input("w", tensor(64, 64), "parameter")
    (p,) = b.emit("linear", [x, w], [tensor(64, 64)], name="product")
    (a,) = b.emit("add", [p, y], [tensor(64, 64)], name="scaled")
    (v,) = b.emit("reshape", [a], [tensor(1, 64, 64)], {"view": True}, name="view")
    (s,) = b.emit("softmax", [v], [tensor(1, 64, 64)], {"axis": -1}, name="softmax")
    (r,) = b.emit("relu", [s], [tensor(1, 64, 64)], name="after")
    names = [[node.name for node in group] for group in pointwise_groups(b.build([r]))]
    assert names == [["product"], ["scaled", "view", "softmax"], ["after"]]


def test_a_pointwise_kernel_does_not_wait_for_what_needs_it() -> None:
    b = GraphBuilder()
    x = b.add_input("x", tensor(64, 64))
    w = b.add_input("w", tensor(64, 64), "parameter")
    (a,) = b.emit("relu", [x], [tensor(64, 64)], name="first")
    (p,) = b.emit("linear", [a, w], [tensor(64, 64)], name="product")
    (r,) = b.emit("add", [a, p], [tensor(64, 64)], name="last")
    assert [len(group) for group in pointwise_groups(b.build([r]))] == [1, 1, 1]


def test_micro_batches_after_the_first_add_their_gradients() -> None:
    graph = training_graph(mlp(2))
    one, four = (step_cost([graph], A100, Schedule("1f1b"), n).stages[0][0] for n in (1, 4))
    grown = [node for node in graph.nodes if four.costs[node].time_s > one.costs[node].time_s]
    assert [node.name for node in grown] == ["layers.1.fc.grad_weight", "layers.0.fc.grad_weight"]
    for node in grown:
        moved = 3 / 4 * 256 * 256 * 2
        more = four.costs[node].time_s - one.costs[node].time_s
        assert more == pytest.approx(3 * moved / A100.main_memory.sustained_bytes_per_s)


@pytest.mark.parametrize("collective_first", [True, False])
def test_a_kernel_beside_a_collective_loses_the_processors_that_it_takes(
    collective_first: bool,
) -> None:
    b = GraphBuilder()
    x, y = (b.add_input(name, tensor(8, 8)) for name in "xy")
    group = {"axis": "tp", "group_size": 8, "group_stride": 1, "during": "forward"}

    def reduce() -> None:
        b.emit("all_reduce", [x], [x.type], group, name="ar", phase="communication")

    if collective_first:
        reduce()
    b.emit("relu", [y], [y.type], name="work")
    if not collective_first:
        reduce()
    graph = b.build([])
    work = next(n for n in graph.nodes if n.name == "work")
    other = next(n for n in graph.nodes if n.name == "ar")
    costs = {work: OpCost(time_s=10.0), other: OpCost(time_s=4.0, processors_taken=0.25)}
    forward = stage_times(graph, costs).forward
    assert forward.time_s == pytest.approx(11.0)
    assert forward.compute_s == pytest.approx(10.0)
    assert forward.exposed_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("links", "overlap", "expected"),
    [
        # Their own links: all at once, as long as the kernel.
        (({"network:in": 4.0}, {"network:out": 5.0}), True, 6.0),
        # The same link: one after the other.
        (({"network:in": 4.0}, {"network:in": 5.0}), True, 9.0),
        # The first needs the second's link for a moment only.
        (({"network:in": 1.0, "network:out": 4.0}, {"network:in": 5.0}), True, 6.0),
        (({"network:in": 4.0}, {"network:out": 5.0}), False, 15.0),
    ],
)
def test_collectives_run_beside_each_other_where_they_need_other_links(
    links: tuple[dict[str, float], ...], overlap: bool, expected: float
) -> None:
    b = GraphBuilder()
    x, y, z = (b.add_input(name, tensor(8, 8)) for name in "xyz")
    for operand, axis in ((x, "tp"), (y, "dp")):
        group = {"axis": axis, "group_size": 8, "group_stride": 1, "during": "forward"}
        b.emit("all_reduce", [operand], [operand.type], group, phase="communication")
    b.emit("relu", [z], [z.type], name="work")
    graph = b.build([])
    costs = {graph.nodes[2]: OpCost(time_s=6.0)}
    for node, terms in zip(graph.nodes, links, strict=False):
        costs[node] = OpCost(time_s=max(terms.values()), terms=terms)
    forward = stage_times(graph, costs, overlap=overlap).forward
    assert forward.time_s == pytest.approx(expected)
    assert forward.compute_s == pytest.approx(6.0)
