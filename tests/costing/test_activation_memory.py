"""The activations a GPT block keeps follow from its traced graph, as Korthikanti et al. count them by hand.

Source: arXiv 2205.05198, equations 1-6 and table 2. Nothing in the program knows these formulas.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from costing.kernels import eager_groups, inner_values
from costing.memory import memory_use
from graph_ir.fold import fold
from graph_ir.graph import Graph
from graph_ir.training import training_graph
from importers import load
from partitioner.mesh import Mesh
from partitioner.partition import partition
from partitioner.strategy import Strategy

SEQUENCE, BATCH, WIDTH, HEADS = 256, 4, 768, 12
SBH = SEQUENCE * BATCH * WIDTH
SCORES = 5 * HEADS * SEQUENCE / WIDTH  # 5as/h


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Graph]:
    """Forward graphs of a small Megatron GPT with 3 and with 4 layers."""
    folder = tmp_path_factory.mktemp("configs")
    return {layers: _forward(folder, layers) for layers in (3, 4)}


def _forward(folder: Path, layers: int) -> Graph:
    shipped = resources.files("importers.model_configs").joinpath("megatron-22b.json")
    config = json.loads(shipped.read_text())
    config |= {"n_embd": WIDTH, "n_head": HEADS, "n_layer": layers, "n_inner": None}
    config |= {"n_positions": SEQUENCE, "vocab_size": 1024}
    path = folder / f"gpt-{layers}.json"
    path.write_text(json.dumps(config))
    model = load(f"hf:{path}", batch=BATCH, sequence=SEQUENCE, mode="training", dtype="fp16")
    return fold(model.graph)


@lru_cache(maxsize=64)
def _saved_bytes(forward: Graph, recompute: str, tensor: int, split_sequence: bool) -> int:
    graph = training_graph(forward, recompute=recompute)
    strategy = Strategy(Mesh({"tp": tensor}), sequence_parallel=split_sequence)
    local = partition(graph, strategy, lambda n: 1.0).stages[0].graph
    return memory_use(local, inner_values(local, eager_groups(local))).saved_bytes


@pytest.mark.parametrize(
    ("recompute", "t", "split_sequence", "per_sbh"),
    [
        ("none", 1, False, 34 + SCORES),
        ("none", 4, False, 10 + 24 / 4 + SCORES / 4),
        ("none", 4, True, 34 / 4 + SCORES / 4),
        ("selective", 1, False, 34),
        ("selective", 4, False, 10 + 24 / 4),
        ("selective", 4, True, 34 / 4),
        ("full", 1, False, 2),
        ("full", 4, False, 2),
        ("full", 4, True, 2 / 4),
    ],
)
def test_saved_activations_of_a_block(
    graphs: dict[int, Graph], recompute: str, t: int, split_sequence: bool, per_sbh: float
) -> None:
    saved = [_saved_bytes(graphs[n], recompute, t, split_sequence) for n in (3, 4)]
    # One layer more keeps one layer's activations more; the norms' statistics are the paper's "small".
    assert saved[1] - saved[0] == pytest.approx(per_sbh * SBH, rel=0.03)
