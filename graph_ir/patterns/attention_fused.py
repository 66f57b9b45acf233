"""Attention that is one operator already, but whose operands or result are copied for it."""

from __future__ import annotations

from graph_ir.graph import Node, Value
from graph_ir.patterns.attention_mask import band_attrs, combine, mask_of
from graph_ir.patterns.layout import Layout, narrow
from graph_ir.patterns.match import Match
from graph_ir.patterns.operand import arranged, chain_to
from graph_ir.patterns.rewrite import Pattern, Replacement
from graph_ir.patterns.term import Apply, Either


def before_repeats(value: Value, r: Replacement) -> Value:
    """Key or value heads [b, g, t, d] before each is repeated for several query heads."""

    def change(layout: Layout) -> Layout:
        return (layout[0], narrow(layout[1]), *layout[2:])

    steps = chain_to(value, r)
    return arranged(steps, change, "heads", r) or value


def _simpler(match: Match, r: Replacement) -> bool:
    """Repeated key and value heads need no memory, nor does a mask that is known to be a causal band."""
    node = match.nodes["attention"]
    query, key, value, *masks = node.inputs
    attrs = {k: v for k, v in node.attrs.items() if k != "equation"}
    found = [before_repeats(key, r), before_repeats(value, r)]
    if found[0].type.shape[1] != found[1].type.shape[1]:
        found = [key, value]
    b, h, queries, _ = query.type.shape
    full = (b, h, queries, key.type.shape[2])
    if masks and not attrs.get("causal"):
        combined = combine([mask_of(masks[0], full)], r, full)
        if combined is not None and combined[0] is not masks[0]:
            mask, band = combined
            attrs |= band_attrs(band, *full[2:])
            masks = [mask] if mask is not None else []
    if [*found, *masks] == list(node.inputs[1:]):
        return False
    extra = [("lse", v.type) for v in node.outputs[1:]]
    return r.finish("attention", [query, *found, *masks], attrs, extra)


def _result_in_place(match: Match, r: Replacement) -> bool:
    """A copy that puts heads side by side: attention writes them so in the first place."""
    node = match.nodes["copied"]
    if node.attrs.get("view"):
        return False
    attrs = {**node.attrs, "view": True} if node.op == "transpose" else {"view": True}
    return r.finish("transpose" if node.op == "transpose" else "reshape", node.inputs, attrs)


def _heads_inward(node: Node) -> bool:
    return tuple(node.attrs["perm"]) == (0, 2, 1, 3)


PATTERNS = (
    Pattern("fused attention", Apply("attention", name="attention"), _simpler),
    Pattern(
        "copied attention",
        Either(
            Apply("transpose", Apply("attention"), name="copied", where=_heads_inward),
            Apply(
                "copy reshape",
                Apply("transpose", Apply("attention"), where=_heads_inward),
                name="copied",
            ),
        ),
        _result_in_place,
    ),
)
