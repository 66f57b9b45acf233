"""Gradients of weights are found in the graph, and can run apart from the others."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from costing.backward_split import deferred_bytes, weight_gradient_nodes  # noqa: E402
from costing.hardware_file import load_hardware  # noqa: E402
from costing.step import part_cost  # noqa: E402
from costing.timeline import once_per_step  # noqa: E402
from graph_ir.fold import fold  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

LAYERS, BATCH, WIDTH = 6, 32, 16


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.relu(self.up(x)))


@pytest.fixture(scope="module")
def stages() -> list[Graph]:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Layer() for _ in range(LAYERS)))
    forward = load(model, example_inputs=(torch.zeros(BATCH, WIDTH),), mode="training").graph
    graph = training_graph(fold(forward))
    parts = partition(graph, Strategy(Mesh({"pp": 3})), lambda n: float(n.flops))
    return [stage.graph for stage in parts.stages]


def test_the_products_of_weights_and_what_follows_wait(stages: list[Graph]) -> None:
    for graph in stages:
        found = weight_gradient_nodes(graph, once_per_step(graph))
        updated = {n.inputs[1] for n in graph.nodes if n.phase == "optimizer"}
        made = {v for n in found for v in n.outputs}
        # Every gradient of a weight or a bias, and no gradient of an activation.
        assert updated <= made
        products = [n for n in graph.nodes if n.op == "linear" and n.phase == "backward"]
        weights = [n for n in products if n in found]
        assert {v for n in weights for v in n.outputs} <= updated
        assert not any(n.definition.kind == "collective" for n in found)
        for node in set(products) - set(weights):
            assert node.outputs[0].type.shape[0] == BATCH


def test_both_parts_are_the_whole_backward_pass(stages: list[Graph]) -> None:
    hardware = load_hardware("a100-sxm-80gb")
    for graph in stages:
        whole, parted = (part_cost(graph, hardware, apart=apart) for apart in (False, True))
        assert whole.times.apart is None
        inputs, weights = parted.times.apart
        assert inputs.time_s > 0 < weights.time_s
        assert inputs.time_s + weights.time_s == pytest.approx(whole.times.backward.time_s)


def test_what_is_kept_for_them(stages: list[Graph]) -> None:
    graph = stages[1]
    layers = graph.blocks[0].count
    found = weight_gradient_nodes(graph, once_per_step(graph))
    # Per layer the operands of both products, in float32: x and relu(up(x)), and their results'
    # gradients. The gradient of the sum x + down(...) is down's own.
    each = BATCH * (WIDTH + 4 * WIDTH) * 2 * 4
    assert deferred_bytes(graph, found) == pytest.approx(layers * each, rel=0.15)
