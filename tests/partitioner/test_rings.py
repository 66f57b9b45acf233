"""What goes round a ring, how often and how large; that it overlaps; what takes turns around a mesh."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from small_models import BATCH, TOKENS, model  # noqa: E402

from costing.hardware_file import load_hardware  # noqa: E402
from costing.node_cost import NodePricer  # noqa: E402
from costing.timeline import stage_times  # noqa: E402
from graph_ir.errors import MeshError, OpboundError  # noqa: E402
from graph_ir.graph import Graph, Node  # noqa: E402
from graph_ir.ops.collective import sent_bytes  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402
from partitioner.mesh import Mesh  # noqa: E402
from partitioner.partition import partition  # noqa: E402
from partitioner.strategy import Strategy  # noqa: E402

LAYERS, KEY_HEADS, HEAD = 3, 4, 4
KEYS_AND_VALUES = 2 * BATCH * KEY_HEADS * TOKENS * HEAD * 4
"""Bytes of a layer's keys and values, of all tokens."""


def local(mesh: dict[str, int], **options: Any) -> Graph:
    graph = training_graph(model("separate"))
    (stage,) = partition(graph, Strategy(Mesh(mesh), **options), lambda n: 1.0).stages
    return stage.graph


def sent(graph: Graph, op: str, during: str) -> list[Node]:
    return [n for n in graph.nodes if n.op == op and n.during == during]


@pytest.mark.parametrize("cp", [2, 4, 8])
def test_a_ring_sends_keys_and_values_p_minus_1_times(cp: int) -> None:
    graph = local({"cp": cp}, context_parallel="ring")
    forward = sent(graph, "collective_permute", "forward")
    assert len(forward) == cp - 1
    assert {n.count for n in forward} == {LAYERS}
    # Each time a p-th of the keys and values (Liu et al. 2023): together what a gathering sends.
    assert {sent_bytes(n) for n in forward} == {KEYS_AND_VALUES // cp}
    gathered = local({"cp": cp}, context_parallel="allgather")
    whole = sum(sent_bytes(n) for n in sent(gathered, "all_gather", "forward"))
    assert sum(sent_bytes(n) for n in forward) == whole
    # Backward they go round again, and their gradients with them, which must also come home.
    backward = sent(graph, "collective_permute", "backward")
    assert len(backward) == (cp - 1) + cp
    assert {sent_bytes(n) for n in backward} == {KEYS_AND_VALUES // cp}


@pytest.mark.parametrize("way", ["ring", "allgather", "ulysses:2+ring"])
def test_every_device_has_the_same_share_of_a_causal_mask(way: str) -> None:
    whole = [n for n in training_graph(model("separate")).nodes if n.op == "attention"]
    parts = [n for n in local({"cp": 4}, context_parallel=way).nodes if n.op == "attention"]

    def executed(node: Node) -> float:
        fraction = node.definition.executed_fraction
        assert fraction is not None
        return node.flops * fraction(node)

    assert sum(map(executed, parts)) * 4 == pytest.approx(sum(map(executed, whole)))


def test_ulysses_exchanges_four_tensors_each_way() -> None:
    graph = local({"cp": 4}, context_parallel="ulysses")
    # Query, key, value and the result (Jacobs et al. 2023, section 3.2), backward their gradients; the
    # result's gradient goes the same way as the result came.
    assert len(sent(graph, "all_to_all", "forward")) == 4
    assert not sent(graph, "all_gather", "forward")


@pytest.mark.parametrize(("hop_s", "exposed_s"), [(0.9, 0.0), (3.0, 3 * 2.0)])
def test_blocks_arrive_while_attention_works(hop_s: float, exposed_s: float) -> None:
    """A hop costs what it takes longer than the attention to a block, three times per layer."""
    pricer = NodePricer(load_hardware("h100-sxm-80gb"))
    graph = local({"cp": 4}, context_parallel="ring")
    seconds = {"attention": 1.0, "collective_permute": hop_s}
    # Without what a hop takes from the attention beside it, which is another test's matter.
    costs = {
        n: replace(pricer.cost(n), time_s=seconds.get(n.op, 0.0), processors_taken=0.0)
        for n in graph.nodes
    }
    found = stage_times(graph, costs).forward.exposed_s
    assert found == pytest.approx(LAYERS * exposed_s, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wheel", "'wheel'.*ulysses"),
        ("ulysses:3+ring", "cp=4 cannot be 3 times a ring"),
        ("ulysses:4+ring", "choose N as a divisor"),
    ],
)
def test_ways_that_do_not_exist(text: str, says: str) -> None:
    with pytest.raises(MeshError, match=says):
        local({"cp": 4}, context_parallel=text)


def test_a_ring_needs_fused_attention() -> None:
    graph = training_graph(model("gpt"))
    with pytest.raises(MeshError, match="--execution fused"):
        partition(graph, Strategy(Mesh({"cp": 2}), context_parallel="ring"), lambda n: 1.0)


def test_asynchronous_tensor_parallelism_sends_what_sequence_parallelism_sends() -> None:
    plain = local({"tp": 4}, sequence_parallel=True)
    pieces = local({"tp": 4}, sequence_parallel=True, async_tp=True)

    def of_layers(graph: Graph, during: str) -> int:
        kinds = ("all_gather", "reduce_scatter", "collective_permute")
        found = [n for n in graph.nodes if n.op in kinds and n.count == LAYERS]
        return sum(sent_bytes(n) for n in found if n.during == during)

    for during in ("forward", "backward"):
        assert of_layers(pieces, during) == of_layers(plain, during)
    assert len(sent(pieces, "collective_permute", "forward")) >= 4 * 3
    assert not [n for n in sent(pieces, "all_gather", "forward") if n.count == LAYERS]
    with pytest.raises(OpboundError, match="add --sequence-parallel"):
        Strategy(Mesh({"tp": 2}), async_tp=True)


def test_hybrid_sharding_stores_a_part_and_reduces_between_copies() -> None:
    whole = sum(v.type.bytes * v.count for v in training_graph(model("separate")).parameters)
    graph = local({"dp": 8}, zero=3, shard_group=4)
    assert sum(v.type.bytes * v.count for v in graph.parameters) == pytest.approx(
        whole / 4, rel=0.02
    )
    groups = {(n.op, n.attrs["group_size"], n.attrs["group_stride"]) for n in graph.nodes
              if n.phase == "communication"}  # fmt: skip
    # Neighbours gather and scatter; ranks 4 apart hold the same part (Zhao et al. 2023, figure 4).
    assert groups == {("all_gather", 4, 1), ("reduce_scatter", 4, 1), ("all_reduce", 2, 4)}
    with pytest.raises(MeshError, match="--shard-group 3 does not divide the 8 ranks"):
        local({"dp": 8}, zero=3, shard_group=3)


def test_an_order_of_the_mesh_says_who_is_a_neighbour() -> None:
    mesh = Mesh({"tp": 2, "dp": 4, "pp": 3}, ("dp", "tp"))
    assert [mesh.axis(n).stride for n in ("dp", "tp", "pp")] == [1, 4, 8]
    with pytest.raises(MeshError, match="no axis 'tq'"):
        Mesh({"tp": 2}, ("tq",))


def test_gradients_of_replicated_weights_are_reduced_once() -> None:
    graph = local({"dp": 2, "cp": 2}, zero=1)
    scatters = [n for n in graph.nodes if n.op == "reduce_scatter"]
    assert {(n.attrs["axis"], n.attrs["group_size"]) for n in scatters} == {("cp+dp", 4)}
    assert not [n for n in graph.nodes if n.op == "all_reduce"]
