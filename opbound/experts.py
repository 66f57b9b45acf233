"""What a report says about a mixture of experts: how its tokens are taken to be shared out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graph_ir.errors import OpboundError

if TYPE_CHECKING:
    from graph_ir.graph import Graph
    from opbound.options import Options


def routing_notes(graph: Graph, options: Options) -> tuple[str, ...]:
    """The assumption on tokens per expert; nothing for a model without experts.

    Raises:
        OpboundError: an imbalance is given that no routing over this model's experts has.
    """
    sizes = [n.inputs[1].type.shape[0] for n in graph.nodes if n.op == "grouped_matmul"]
    factor, ranks = options.expert_imbalance, options.parallel.get("ep", 1)
    if not sizes:
        if factor == 1:
            return ()
        raise OpboundError(
            f"expert_imbalance={factor:g}: {graph.name or 'the model'} has no experts to which it routes "
            f"tokens: leave it out"
        )
    # Where the rows do not divide evenly, some experts stand apart from the others.
    experts = max(sizes)
    if factor > experts:
        raise OpboundError(
            f"expert_imbalance={factor:g} is more than all tokens: of {experts} experts the busiest gets "
            f"at most {experts} times the mean"
        )
    if factor == 1:
        return ("tokens are shared out evenly over the experts",)
    if ranks == 1:
        return (
            f"an expert imbalance of {factor:g} changes nothing without ep: every device works on all "
            f"experts' tokens",
        )
    share = min(factor, ranks)
    which = "all tokens" if share == ranks else f"{share:g} times the mean number of tokens"
    return (f"the rank with the busiest experts gets {which}; its figures are shown",)
