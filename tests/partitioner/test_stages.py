"""Pipeline stages, run in order, compute what the whole model computes.

On graphs that are no stack of equal layers: skip connections, branches, two towers, shared weights.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ranks import numbers, one_device  # noqa: E402
from stages import StagesRun  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from costing.schedule import Schedule  # noqa: E402
from graph_ir.fold import fold  # noqa: E402
from graph_ir.graph import Graph  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from importers import load  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.pipeline_plan import PipelinePlan  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

WIDTH = 8


class Block(nn.Module):
    """A residual feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Tied(nn.Module):
    """A language model whose head is its embedding; with `shared` all its layers are one."""

    def __init__(self, layers: int = 5, shared: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, WIDTH)
        own = [Block() for _ in range(1 if shared else layers)]
        self.layers = nn.ModuleList(own * (layers if shared else 1))

    def forward(self, tokens: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(x, self.embedding.weight)
        return F.cross_entropy(logits.view(-1, 12), target.view(-1))


class UNet(nn.Module):
    """Down and up again, with a skip connection at every level."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1) for c in (2, 4))
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ModuleList(nn.ConvTranspose2d(c, 4, 2, stride=2) for c in (16, 8))
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [x]
        for layer in self.down:
            x = F.relu(layer(x))
            skips.append(x)
        x = F.relu(self.middle(x))
        for layer in self.up:
            x = F.relu(layer(torch.cat([x, skips.pop()], dim=1)))
        return self.last(torch.cat([x, skips.pop()], dim=1)).pow(2).mean()


class Inception(nn.Module):
    """Modules of branches that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(6, 2, k, padding=k // 2) for k in (1, 3, 5)) for _ in range(3)
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for level in self.levels:
            x = torch.cat([F.relu(branch(x)) for branch in level], dim=1)
        return self.head(x.mean((2, 3))).pow(2).mean()


class Attention(nn.Module):
    """One head; without `memory` over itself."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        memory = x if memory is None else memory
        scores = self.query(x) @ self.key(memory).transpose(1, 2)
        return x + torch.softmax(scores * 0.3, dim=-1) @ self.value(memory)


class EncoderDecoder(nn.Module):
    """Every layer of the decoder looks at what the encoder found."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Attention() for _ in range(3))
        self.own = nn.ModuleList(Attention() for _ in range(4))
        self.cross = nn.ModuleList(Attention() for _ in range(4))

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        for layer in self.encoder:
            source = layer(source)
        for own, cross in zip(self.own, self.cross, strict=True):
            target = cross(own(target), source)
        return target.pow(2).mean()


TOKENS = (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
IMAGE = (torch.zeros(1, 2, 8, 8),)
MODELS = {
    "tied": (Tied, TOKENS),
    "shared layers": (lambda: Tied(shared=True), TOKENS),
    "unet": (UNet, IMAGE),
    "inception": (Inception, (torch.zeros(1, 6, 4, 4),)),
    "encoder-decoder": (EncoderDecoder, (torch.zeros(2, 3, WIDTH), torch.zeros(2, 4, WIDTH))),
}
SCHEDULES = ("1f1b", "interleaved:2", "zb-v", "dualpipe")


@pytest.fixture(scope="module")
def forward_graphs() -> dict[str, Graph]:
    return {
        name: load(make(), example_inputs=inputs, mode="training").graph
        for name, (make, inputs) in MODELS.items()
    }


def cut(graph: Graph, ranks: int, schedule: str = "1f1b", **plan: object):
    layout = Schedule.parse(schedule).layout(ranks)
    strategy = Strategy(Mesh({"pp": ranks}), pipeline=PipelinePlan(layout=layout, **plan))
    return partition(graph, strategy, lambda n: float(n.flops + n.bytes_written))


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", MODELS)
def test_stages_compute_what_the_whole_model_computes(
    forward_graphs: dict[str, Graph], model: str, schedule: str, folded: bool
) -> None:
    forward = forward_graphs[model]
    graph = training_graph(fold(forward) if folded else forward)
    given = numbers(graph, rows=12)
    expected = one_device(graph, given)
    for ranks in (2, 4):
        parts = cut(graph, ranks, schedule)
        run = StagesRun(graph, parts.stages, given)
        updated: Counter[str] = Counter()
        for i, stage in enumerate(parts.stages):
            for value in stage.graph.outputs:
                whole = next(v for v in graph.outputs if v.name == value.name)
                first, found = run.result(i, value, whole)
                right = expected.values[whole][0]
                for layer, array in enumerate(found):
                    np.testing.assert_allclose(array, right[first + layer], rtol=1e-6, atol=1e-9)
                updated[whole.name] += len(found)
        # Nothing is left out; what several ranks hold, each of them updates.
        assert updated.keys() == {v.name for v in graph.outputs}
        assert all(updated[v.name] >= v.count for v in graph.outputs)


@pytest.mark.parametrize("model", ["tied", "encoder-decoder"])
def test_stages_may_recompute_by_different_policies(
    forward_graphs: dict[str, Graph], model: str
) -> None:
    forward = fold(forward_graphs[model])
    graph = training_graph(forward)
    given = numbers(graph, rows=12)
    expected = one_device(graph, given)
    plain = cut(graph, 4)
    full = cut(training_graph(forward, recompute="full"), 4, bounds=plain.bounds)
    stages = [full.stages[0], plain.stages[1], full.stages[2], plain.stages[3]]
    again = [any(n.phase == "recompute" for n in s.graph.nodes) for s in stages]
    assert again[1] is again[3] is False
    assert again[0] or again[2]
    run = StagesRun(graph, stages, given)
    for i, stage in enumerate(stages):
        for value in stage.graph.outputs:
            whole = next(v for v in graph.outputs if v.name == value.name)
            first, found = run.result(i, value, whole)
            for layer, array in enumerate(found):
                right = expected.values[whole][0][first + layer]
                np.testing.assert_allclose(array, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_work_and_weights_sum_to_the_whole(forward_graphs: dict[str, Graph], model: str) -> None:
    graph = training_graph(fold(forward_graphs[model]))
    parts = cut(graph, 4)

    def flops(g: Graph) -> int:
        found = (n for n in g.nodes if n.phase in ("forward", "backward") and n.op != "add")
        return sum(n.flops * n.count for n in found)

    assert sum(flops(s.graph) for s in parts.stages) == flops(graph)
    held = Counter(v.name for s in parts.stages for v in s.graph.parameters for _ in range(v.count))
    whole = {v.name: v.count for v in graph.parameters}
    assert held.keys() == whole.keys()
    copies = {n: c - whole[n] for n, c in held.items() if c > whole[n]}
    if model == "tied":
        assert copies == {"embedding.weight": 1}
    elif model != "shared layers":
        assert not copies


def test_an_encoders_result_is_passed_on_from_stage_to_stage(
    forward_graphs: dict[str, Graph],
) -> None:
    graph = training_graph(fold(forward_graphs["encoder-decoder"]))
    parts = cut(graph, 5, layers=(2, 1, 1, 1, 2))
    # source[2, 3, 8] and target[2, 4, 8] in float32.
    source, target = 2 * 3 * WIDTH * 4, 2 * 4 * WIDTH * 4
    sent = [
        [
            v.type.bytes
            for n in s.graph.nodes
            if n.op == "send" and n.during == "forward"
            for v in n.inputs
        ]
        for s in parts.stages
    ]
    # The target is an input of the first decoder stage, so the encoder's stages do not know it.
    assert [sorted(row) for row in sent] == [
        [source],
        [source],
        [source, target],
        [source, target],
        [],
    ]
