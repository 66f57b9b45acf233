"""`opbound::selective_scan`: the scan of state-space models as one operator of torch.

Its name is that of graph_ir's record, its operands are in the record's order. It only has shapes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def selective_scan() -> Any:
    """The operator (u, dt, A, B, C) -> (y, last state); it is registered on first use."""
    import torch

    library = torch.library.Library("opbound", "DEF")
    library.define(
        "selective_scan(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C) -> (Tensor, Tensor)"
    )

    def shapes(u: Any, dt: Any, a: Any, b: Any, c: Any) -> tuple[Any, Any]:
        return torch.empty_like(u), u.new_empty((u.shape[0], *a.shape))

    torch.library.register_fake("opbound::selective_scan", shapes, lib=library)
    _KEPT.append(library)
    return torch.ops.opbound.selective_scan.default


def scan_of_kernel(
    u: Any,
    dt: Any,
    a: Any,
    b: Any,
    c: Any,
    *,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **others: Any,
) -> Any:
    """What mamba_ssm's `selective_scan_fn` computes: the scan and what stands around it.

    Args:
        u: input [batch, channels, tokens].
        dt: step sizes, in its shape.
        a: decays [channels, states].
        b: how the input enters the states [batch, states, tokens].
        c: how the output reads them, in its shape.
        z: gate, in the input's shape.
        delta_bias: added to the step sizes [channels].
        delta_softplus: whether they pass a softplus.
        return_last_state: whether the last state [batch, channels, states] is wanted too.
        others: `D`, what the input adds to the output [channels]; the rest says how a loop would run.
    """
    import torch

    skip = others.get("D")
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = torch.nn.functional.softplus(dt)
    y, state = selective_scan()(u, dt, a, b, c)
    if skip is not None:
        y = y + u * skip[None, :, None]
    if z is not None:
        y = y * torch.nn.functional.silu(z)
    y = y.to(u.dtype)
    return (y, state) if return_last_state else y


_KEPT: list[Any] = []
"""Libraries vanish with the object that defined them."""
