"""Time of collectives from latency and bandwidth, over the hierarchy of links that a group spans.

A group of `size` ranks r, r + stride, r + 2 stride, ... lies on as many levels of links as it
needs: the innermost link joins the ranks of one node, the next one the nodes. On every level the
fastest algorithm and protocol for the message is taken, as NCCL's tuner does; the levels work as a
pipeline, so their latencies add and the slowest wire decides.

Source: alpha-beta costs of ring and tree (Thakur, Rabenseifner, Gropp 2005); in-switch reduction
sends every byte up and down once, plus the rank's own share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costing.hardware import Hardware, Link, Protocol
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


@dataclass(frozen=True)
class Span:
    """A level of the group: how many peers it joins by one link."""

    link: Link
    peers: int


def spans(hardware: Hardware, size: int, stride: int = 1) -> list[Span]:
    """The links that a group crosses, innermost first; empty for a group of one.

    Raises:
        HardwareError: if the hardware has no link, or not enough devices on it.
    """
    if size <= 1:
        return []
    if not hardware.links:
        raise HardwareError(
            f"{hardware.name} has no links, so it cannot work in a group of {size} devices; "
            "add a link to its file or choose a cluster"
        )
    levels: list[Span] = []
    left, step = size, stride
    for link in hardware.links:
        peers = left if link.devices is None else min(left, max(link.devices // step, 1))
        if peers > 1:
            levels.append(Span(link, peers))
            left = ceil(left / peers)
        if link.devices is not None:
            # Seen from the next link, one domain of this one is a single member.
            step = max(step, link.devices)
        if left == 1:
            return levels
    outer = hardware.links[-1]
    raise HardwareError(
        f"{hardware.name}: a group of {size} devices with stride {stride} does not fit: "
        f"{outer.name} joins only {outer.devices} devices"
    )


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
        return CollectiveCost(zero, {}, zero)
    if op in ("send", "recv"):
        # A neighbour in the group: only the link that reaches it is used.
        levels = [Span(levels[-1].link if stride > 1 or size == 2 else levels[0].link, 2)]
    if op == "collective_permute":
        # Everyone sends to the next at the same time: the slowest of these links decides.
        levels = [Span(levels[-1].link, 2)]
    latency, wire, base = zero, zero, zero
    terms: dict[str, Array] = {}
    part = message
    for span in levels:
        start, steps, flow = _fastest(op, span, part)
        base = np.maximum(base, start)
        latency = latency + steps
        wire = np.maximum(wire, flow)
        name = f"network:{span.link.name}"
        terms[name] = np.maximum(terms.get(name, zero), flow)
        part = part / span.peers
    local = levels[0].link.local_bytes_per_s
    copy = message / local if local is not None else zero
    inner = f"network:{levels[0].link.name}"
    terms[inner] = terms[inner] + copy
    return CollectiveCost(base + latency + copy + wire, terms, base + latency)


def _fastest(op: str, span: Span, message: Array) -> tuple[Array, Array, Array]:
    """(start, steps, wire) seconds of the fastest algorithm and protocol, per message size."""
    best: Array | None = None
    for steps, share, protocol in _ways(op, span):
        rate = span.link.bandwidth_bytes_per_s * protocol.efficiency
        start = np.full_like(message, protocol.base_latency_s)
        hops = np.full_like(message, steps * protocol.step_latency_s)
        flow = share * message / rate
        total = start + hops + flow
        if best is None:
            best, kept = total, (start, hops, flow)
            continue
        better = total < best
        best = np.where(better, total, best)
        kept = tuple(  # type: ignore[assignment]
            np.where(better, new, old) for new, old in zip((start, hops, flow), kept, strict=True)
        )
    if best is None:
        raise HardwareError(f"link {span.link.name!r} has no protocol for any of its algorithms")
    return kept


def _ways(op: str, span: Span) -> Iterator[tuple[float, float, Protocol]]:
    """(steps, share of the message that crosses a device's link one way, protocol)."""
    n = span.peers
    share = (n - 1) / n
    for algorithm in span.link.algorithms:
        if op == "all_reduce":
            ways = {
                "ring": (2.0 * (n - 1), 2 * share),
                "tree": (2.0 * ceil(log2(n)), 2.0),
                "in_network": (2.0, 1 + 1 / n),
            }
        elif op == "all_to_all":
            # All pairs at once: one step on the wire, but a message to set up per peer.
            pairwise = "pairwise" in span.link.algorithms
            ways = {"pairwise": (n - 1.0, share)} if pairwise else {"ring": (1.0, share)}
        elif op in ("collective_permute", "send", "recv"):
            ways = {"ring": (1.0, 1.0)}
        elif op == "broadcast":
            ways = {"ring": (n - 1.0, 1.0), "tree": (1.0 * ceil(log2(n)), 1.0)}
        else:
            ways = {"ring": (n - 1.0, share)}
        if algorithm not in ways:
            continue
        steps, moved = ways[algorithm]
        for protocol in span.link.protocols:
            if algorithm in protocol.algorithms:
                yield steps, moved, protocol
