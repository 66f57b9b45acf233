"""Time of collectives from latency and bandwidth, over the hierarchy of links that a group spans.

A group of `size` ranks r, r + stride, r + 2 stride, ... lies on as many levels of links as it
needs (`costing.fabric`): the innermost link joins the ranks of one node, the next one the nodes. On
every level the fastest algorithm and protocol for the message is taken, as NCCL's tuner does; the
levels work as a pipeline, so their latencies add and the slowest wire decides.

Source: alpha-beta costs of ring and tree (Thakur, Rabenseifner, Gropp 2005). A switch that reduces takes
every byte once and gives it back once (FRED, arXiv 2406.19580); NVLink SHARP gives the sums of a part to
one rank, which sends them to all, so that the rank's own part passes once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, log2

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costing.fabric import Span, spans
from costing.hardware import Hardware
from costing.link import UPLINK, Link, Protocol
from costing.op_cost import network_bound
from graph_ir.errors import HardwareError

Array = NDArray[np.float64]

OPS = (
    *("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"),
    *("collective_permute", "send", "recv"),
)


@dataclass(frozen=True)
class CollectiveCost:
    """Time per message size."""

    time_s: Array
    terms: dict[str, Array]
    """Seconds that each link needs, 'network:LINK'; a long message is bound by the largest."""
    latency_s: Array
    """The part of `time_s` that does not depend on the message."""
    link_bytes: dict[str, Array]
    """What a rank sends over each link, by the link's name."""
    nominal_s: dict[str, Array]
    """Seconds that each link would need at its nominal bandwidth, by `terms`' names."""


@dataclass(frozen=True)
class _Flow:
    """The fastest way over one level, per message size."""

    start_s: Array
    steps_s: Array
    moved: Array
    """Bytes that a rank sends."""
    efficiency: Array
    """Fraction of the link's bandwidth that the protocol reaches."""
    reduced: Array
    """Whether a switch reduces: then what goes on to the next level is the switch's."""


def collective_cost(
    hardware: Hardware, op: str, message_bytes: ArrayLike, size: int, stride: int = 1
) -> CollectiveCost:
    """Prices one collective for each message size.

    Args:
        hardware: the device and its links.
        op: one of `OPS`.
        message_bytes: of the whole tensor: what every rank holds before an all-reduce or
            reduce-scatter, and after an all-gather.
        size: ranks in the group.
        stride: distance between neighbouring ranks of the group.

    Raises:
        HardwareError: if the group does not fit the hardware, or the operation is unknown.
    """
    if op not in OPS:
        raise HardwareError(f"unknown collective {op!r}; known: {', '.join(OPS)}")
    message = np.atleast_1d(np.asarray(message_bytes, dtype=np.float64))
    levels = spans(hardware, size, stride)
    zero = np.zeros_like(message)
    if not levels:
        return CollectiveCost(zero, {}, zero, {}, {})
    if op in ("send", "recv"):
        # A neighbour in the group: only the link that reaches it is used.
        reached = levels[-1] if stride > 1 or size == 2 else levels[0]
        levels = [replace(reached, peers=2)]
    if op == "collective_permute":
        # Everyone sends to the next at the same time: the slowest of these links decides.
        levels = [replace(levels[-1], peers=2)]
    latency, base = zero, zero
    found = CollectiveCost(zero, {}, zero, {}, {})
    flows: list[tuple[Span, _Flow]] = []
    inner_peers = 1
    for span in levels:
        flow = _fastest(op, span, message, inner_peers, size)
        base = np.maximum(base, flow.start_s)
        latency = latency + flow.steps_s
        _add(found, span.link, flow.moved, flow.efficiency, span.bytes_per_s(op))
        _add_below(found, hardware, flows, span, flow)
        flows.append((span, flow))
        inner_peers *= span.peers
    wire = np.maximum.reduce(list(found.terms.values()))
    local = levels[0].link.local_bytes_per_s
    copy = message / local if local is not None else zero
    inner = network_bound(levels[0].link.name)
    found.terms[inner] = found.terms[inner] + copy
    return replace(found, time_s=base + latency + copy + wire, latency_s=base + latency)


def _add(cost: CollectiveCost, link: Link, moved: Array, efficiency: Array, rate: float) -> None:
    name = network_bound(link.name)
    for sums, key, seconds in (
        (cost.terms, name, moved / (rate * efficiency)),
        (cost.nominal_s, name, moved / rate),
        (cost.link_bytes, link.name, moved),
    ):
        sums[key] = sums[key] + seconds if key in sums else seconds


def _add_below(
    cost: CollectiveCost,
    hardware: Hardware,
    flows: list[tuple[Span, _Flow]],
    span: Span,
    flow: _Flow,
) -> None:
    """What crosses an uplink passes the devices' ports to the links below it too."""
    spanned = {below.link.name: at for below, at in flows}
    moved, link = flow.moved, span.link
    for below in reversed(hardware.links[: hardware.links.index(link)]):
        if link.topology != UPLINK:
            return
        at = spanned.get(below.name)
        if at is not None:
            moved = np.where(at.reduced, 0.0, moved)
        best = np.full_like(moved, max(p.efficiency for p in below.protocols))
        _add(cost, below, moved, best if at is None else at.efficiency, below.device_bytes_per_s)
        link = below


def _fastest(op: str, span: Span, message: Array, inner: int, size: int) -> _Flow:
    """The fastest algorithm and protocol over one level, per message size."""
    ways = list(_ways(op, span, inner, size))
    if not ways:
        raise HardwareError(f"link {span.link.name!r} has no protocol for any of its algorithms")
    reduced = np.array([algorithm == "in_network" for algorithm, _, _, _ in ways])
    start_s, steps_s, share, efficiency = np.array(
        [
            (p.base_latency_s, steps * p.step_latency_s, share, p.efficiency)
            for _, steps, share, p in ways
        ]
    ).T
    per_byte = share / (span.bytes_per_s(op) * efficiency)
    best = ((start_s + steps_s)[:, None] + per_byte[:, None] * message).argmin(axis=0)
    moved = share[best] * message
    return _Flow(start_s[best], steps_s[best], moved, efficiency[best], reduced[best])


def _ways(
    op: str, span: Span, inner: int, size: int
) -> Iterator[tuple[str, float, float, Protocol]]:
    """(algorithm, steps, share of the message that a rank sends over this level, protocol).

    Below this level, `inner` ranks of the group's `size` have shared the message out, and each brings its
    part here. Only what all exchange with all stays whole: a rank has another part for each of the others.
    """
    n = span.peers
    share = (n - 1) / n / inner
    for algorithm in span.link.algorithms:
        if op == "all_reduce":
            ways = {
                "ring": (2.0 * (n - 1), 2 * share),
                "tree": (2.0 * ceil(log2(n)), 2.0 / inner),
                "in_network": (2.0, 1.0 / inner),
                "nvls": (2.0, (1 + 1 / n) / inner),
            }
        elif op == "all_to_all":
            # All pairs at once: one step on the wire, but a message to set up per peer.
            peers = (n - 1) * inner
            pairwise = "pairwise" in span.link.algorithms
            way = ("pairwise", 1.0 * peers) if pairwise else ("ring", 1.0)
            ways = {way[0]: (way[1], peers / size)}
        elif op in ("collective_permute", "send", "recv"):
            ways = {"ring": (1.0, 1.0)}
        elif op == "broadcast":
            ways = {"ring": (n - 1.0, 1.0 / inner), "tree": (1.0 * ceil(log2(n)), 1.0 / inner)}
        else:
            ways = {"ring": (n - 1.0, share)}
        if algorithm not in ways:
            continue
        steps, moved = ways[algorithm]
        for protocol in span.link.protocols:
            if algorithm in protocol.algorithms:
                yield algorithm, steps, moved, protocol
