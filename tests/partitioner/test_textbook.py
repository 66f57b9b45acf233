"""What the textbooks say of each strategy falls out of propagation."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from blocks import LlamaBlock  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from graph_ir.errors import MeshError  # noqa: E402
from graph_ir.fold import fold  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.ops.collective import sent_bytes  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

LAYERS, BATCH, TOKENS, WIDTH, VOCABULARY = 6, 8, 16, 32, 64


class LanguageModel(nn.Module):
    """A small Llama; `tied` lets the head share the embedding's weight."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(LlamaBlock() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x).view(-1, VOCABULARY), target.view(-1))


def forward_graph(tied: bool = False) -> Graph:
    tokens = torch.zeros(BATCH, TOKENS, dtype=torch.long)
    model = LanguageModel(tied)
    return fold(load(model, example_inputs=(tokens, tokens), mode="training").graph)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return training_graph(forward_graph())


def stages(graph: Graph, mesh: dict[str, int], **options: object) -> list[Graph]:
    strategy = Strategy(Mesh(mesh), **options)  # type: ignore[arg-type]
    return [s.graph for s in partition(graph, strategy, lambda n: float(n.flops)).stages]


def sent(graph: Graph, axis: str) -> int:
    return sum(
        sent_bytes(n) * n.count
        for n in graph.nodes
        if n.phase == "communication" and n.attrs["axis"] == axis
    )


def weight_bytes(graph: Graph) -> int:
    return sum(v.type.bytes * v.count for v in graph.parameters)


def work(graph: Graph) -> Counter[str]:
    """FLOPs per phase, exchanges and views left out."""
    found: Counter[str] = Counter()
    for node in graph.nodes:
        if node.phase != "communication":
            found[node.phase] += node.flops * node.count
    return found


def test_the_model_folds(graph: Graph) -> None:
    assert [b.count for b in graph.blocks] == [LAYERS, LAYERS]


def test_zero_3_sends_one_and_a_half_times_as_much(graph: Graph) -> None:
    (plain,) = stages(graph, {"dp": 4})
    (zero_1,) = stages(graph, {"dp": 4}, zero=1)
    (zero_3,) = stages(graph, {"dp": 4}, zero=3)
    # An all-reduce is a reduce-scatter and an all-gather; ZeRO-3 gathers a layer once more. The embedding is
    # not needed backward, and what lies behind the last layer is still there (Rajbhandari et al. 2020,
    # section 7.2).
    assert sent(zero_1, "dp") == sent(plain, "dp") == 2 * weight_bytes(graph) * 3 // 4
    once = sum(v.type.bytes for v in graph.parameters if v.count == 1)
    assert sent(zero_3, "dp") == (3 * weight_bytes(graph) - once) * 3 // 4


@pytest.mark.parametrize(("zero", "parameters", "states"), [(1, 1, 4), (2, 1, 4), (3, 4, 4)])
def test_zero_splits_what_is_stored(graph: Graph, zero: int, parameters: int, states: int) -> None:
    (local,) = stages(graph, {"dp": 4}, zero=zero)

    def stored(g: Graph, kind: str) -> int:
        return sum(v.type.bytes * v.count for v in g.inputs if v.kind == kind)

    assert stored(local, "parameter") * parameters == stored(graph, "parameter")
    assert stored(local, "state") * states == stored(graph, "state")


def test_sequence_parallelism_sends_as_much_as_tensor_parallelism(graph: Graph) -> None:
    """Of the layers' activations: reduce-scatter and all-gather for each all-reduce."""

    def layers(local: Graph, during: str) -> int:
        return sum(
            sent_bytes(n)
            for n in local.nodes
            if n.phase == "communication" and n.count == LAYERS and n.during == during
        )

    (plain,) = stages(graph, {"tp": 4})
    (split,) = stages(graph, {"tp": 4}, sequence_parallel=True)
    assert layers(plain, "forward") == layers(split, "forward") > 0


@pytest.mark.parametrize("mesh", [{"pp": 3}, {"pp": 6}, {"pp": 2, "tp": 2, "dp": 2}])
def test_stages_do_all_the_work_once(graph: Graph, mesh: dict[str, int]) -> None:
    shares = mesh.get("tp", 1) * mesh.get("dp", 1)
    parts = stages(graph, mesh)
    assert len(parts) == mesh["pp"]
    (whole,) = stages(graph, {k: v for k, v in mesh.items() if k != "pp"})
    total = sum((work(p) for p in parts), Counter())
    assert total == work(whole)
    assert total["forward"] * shares >= work(graph)["forward"]
    layers = [p.blocks[0].count for p in parts]
    assert sum(layers) == LAYERS
    assert max(layers) - min(layers) <= 1


def test_stages_hand_on_one_activation(graph: Graph) -> None:
    parts = stages(graph, {"pp": 3})
    activation = BATCH * TOKENS * WIDTH * 4
    for i, part in enumerate(parts):
        ops = Counter((n.op, n.during) for n in part.nodes if n.op in ("send", "recv"))
        first, last = i == 0, i == len(parts) - 1
        assert ops["send", "forward"] == ops["recv", "backward"] == (not last)
        assert ops["recv", "forward"] == ops["send", "backward"] == (not first)
        moved = [v for n in part.nodes if n.op == "send" for v in n.inputs]
        assert all(v.type.bytes == activation for v in moved)


def test_a_tied_weight_is_summed_up_over_the_stages_that_hold_it() -> None:
    parts = stages(training_graph(forward_graph(tied=True)), {"pp": 3})
    handed = [n for p in parts for n in p.nodes if n.op in ("send", "recv")]
    activation = (BATCH, TOKENS, WIDTH)
    assert {v.type.shape for n in handed for v in (*n.inputs, *n.outputs)} == {activation}
    for part in (parts[0], parts[-1]):
        (exchange,) = (n for n in part.nodes if n.op == "all_reduce")
        assert exchange.attrs["group_size"] == 2
        assert exchange.outputs[0].type.shape == (VOCABULARY, WIDTH)
        # Both hold the weight and its optimizer's state, and update it.
        tied = [v for v in part.parameters if v.type.shape == (VOCABULARY, WIDTH)]
        assert len(tied) == 1
        assert [n.inputs[0] for n in part.users[exchange.outputs[0]]] == tied
        assert (
            sum(v.kind == "state" and v.type.shape == tied[0].type.shape for v in part.inputs) == 2
        )
    assert not any(n.op == "all_reduce" for n in parts[1].nodes)


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ({"tp": 3}, "tp=3 does not divide the .* nearest that works is tp=2"),
        ({"dp": 3}, "dp=3 does not divide the batch of 8"),
        ({"cp": 3}, "cp=3 does not divide the sequence of 16"),
        ({"pp": 40}, "can be cut into at most"),
        ({"ep": 2}, "has no experts"),
    ],
)
def test_an_impossible_mesh_says_what_works(graph: Graph, mesh: dict[str, int], says: str) -> None:
    with pytest.raises(MeshError, match=says):
        stages(graph, mesh)
