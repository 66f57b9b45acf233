"""Collectives: relations between them, and the links a group spans."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costing.collectives import OPS, collective_cost
from costing.fabric import spans
from costing.hardware import Hardware, Launch
from costing.hardware_file import list_hardware, load_hardware
from costing.link import Link, Protocol
from graph_ir.errors import HardwareError

LINKED = [name for name in list_hardware() if load_hardware(name).links]
sizes = st.sampled_from([1, 2, 3, 4, 8])
messages = st.integers(0, 10**10)


def plain(rate: float = 1e9, latency: float = 0.0, devices: int | None = None) -> Hardware:
    """One link, a ring, one protocol: costs that can be computed by hand."""
    link = Link("wire", "wire", devices, rate, ("ring",), (Protocol("p", 1.0, 0.0, latency),))
    return Hardware("plain", "plain", (), (), (link,), Launch(0.0, 0.0, True))


def seconds(device: Hardware, op: str, size: int, message: float, stride: int = 1) -> float:
    return float(collective_cost(device, op, message, size, stride).time_s[0])


@pytest.mark.parametrize("op", OPS)
def test_a_group_of_one_communicates_nothing(op: str) -> None:
    assert seconds(load_hardware("a100-sxm-80gb"), op, 1, 1e9) == 0


@given(st.integers(2, 64), messages)
def test_on_a_ring_all_reduce_is_reduce_scatter_then_all_gather(n: int, message: int) -> None:
    device = plain(latency=1e-6)
    whole = seconds(device, "all_reduce", n, message)
    parts = seconds(device, "reduce_scatter", n, message) + seconds(
        device, "all_gather", n, message
    )
    assert whole == pytest.approx(parts)


def test_a_ring_moves_what_the_textbook_says() -> None:
    # 2 (n - 1) / n x 1 GB at 1 GB/s, 6 steps of 1 ms.
    assert seconds(plain(latency=1e-3), "all_reduce", 4, 1e9) == pytest.approx(1.5 + 6e-3)
    assert seconds(plain(latency=1e-3), "all_gather", 4, 1e9) == pytest.approx(0.75 + 3e-3)


@settings(deadline=None)
@given(st.sampled_from(LINKED), st.sampled_from(OPS), sizes, messages, st.integers(0, 10**9))
def test_a_larger_message_never_takes_less_time(
    name: str, op: str, size: int, message: int, more: int
) -> None:
    device = load_hardware(name)
    assert seconds(device, op, size, message + more) >= seconds(device, op, size, message)


@settings(deadline=None)
@given(sizes, messages)
def test_without_help_from_a_switch_all_reduce_costs_no_less_than_its_halves(
    size: int, message: int
) -> None:
    device = load_hardware("a100-sxm-80gb")
    whole = seconds(device, "all_reduce", size, message)
    assert whole >= seconds(device, "reduce_scatter", size, message)


@settings(deadline=None)
@given(st.sampled_from(LINKED), st.sampled_from(OPS), sizes, messages)
def test_time_is_never_below_its_terms(name: str, op: str, size: int, message: int) -> None:
    cost = collective_cost(load_hardware(name), op, message, size)
    for term in cost.terms.values():
        assert cost.time_s[0] >= term[0]
    assert cost.time_s[0] >= cost.latency_s[0]


def test_a_group_spans_the_links_its_ranks_need() -> None:
    device = load_hardware("a100-sxm-80gb")

    def names(size: int, stride: int) -> list[tuple[str, int]]:
        return [(span.link.name, span.peers) for span in spans(device, size, stride)]

    assert names(8, 1) == [("nvlink", 8)]
    assert names(2, 4) == [("nvlink", 2)]
    assert names(64, 1) == [("nvlink", 8), ("infiniband", 8)]
    # tp=8 fills a node, so the data-parallel group has one rank per node.
    assert names(16, 8) == [("infiniband", 16)]
    assert names(16, 2) == [("nvlink", 4), ("infiniband", 4)]


def test_a_group_over_nodes_is_slower_than_within_one() -> None:
    device = load_hardware("a100-sxm-80gb")
    assert seconds(device, "all_reduce", 8, 1e9, 8) > 5 * seconds(device, "all_reduce", 8, 1e9)


def test_a_send_to_a_rank_of_another_node_takes_the_outer_link() -> None:
    device = load_hardware("a100-sxm-80gb")
    assert list(collective_cost(device, "send", 1e6, 2, 8).terms) == ["network:infiniband"]
    assert list(collective_cost(device, "send", 1e6, 2, 1).terms) == ["network:nvlink"]


def test_the_switch_reduces_faster_than_a_ring() -> None:
    h100 = load_hardware("h100-sxm-80gb")
    assert seconds(h100, "all_reduce", 8, 1e9) < 2 * seconds(h100, "reduce_scatter", 8, 1e9)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(HardwareError, match="no links"):
        spans(load_hardware("epyc-9654"), 2)
    with pytest.raises(HardwareError, match="only 8 devices"):
        spans(load_hardware("l40s"), 16)
    with pytest.raises(HardwareError, match="unknown collective"):
        collective_cost(load_hardware("l40s"), "gossip", 1, 2)


def test_an_all_to_all_sets_up_one_message_per_peer() -> None:
    """NCCL sends to all peers at once (its send/recv are grouped): small ones grow with the peers."""
    device = load_hardware("a100-sxm-80gb")
    two, eight = (collective_cost(device, "all_to_all", 1024, n).time_s[0] for n in (2, 8))
    step = next(p for p in device.links[0].protocols if "pairwise" in p.algorithms).step_latency_s
    assert eight - two == pytest.approx(6 * step, rel=0.05)
